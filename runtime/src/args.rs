//! Option values: parsed once, at the edge, with every problem reported in one run.
//!
//! clap knows the names, help, defaults and environment variables; all values reach us as text. Each subsystem turns
//! its group of options into a typed config through one shared `Problems`, so a user with three wrong values
//! learns of three.

pub mod log;
pub mod nearest;
pub mod parse;

use std::fmt;

/// The wrong option values of one run.
#[derive(Debug, Default)]
pub struct Problems {
    found: Vec<(String, String)>,
}

impl Problems {
    /// None so far.
    pub fn new() -> Self {
        Problems::default()
    }

    /// Parses one value. A failure is noted as `FIELD: "RAW" FAILURE; EXPECTED` and gives `None`.
    ///
    /// `field` is what the user typed, such as `--drain-timeout`. `parse` fails with the rest of a sentence whose subject
    /// is the value, such as `is not a duration`; those in [`parse`] do. `expected` says what would be right, such as
    /// `give a number with unit, such as 30s`, and may be empty.
    pub fn value<T>(
        &mut self,
        field: &str,
        raw: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        expected: &str,
    ) -> Option<T> {
        match parse(raw) {
            Ok(value) => Some(value),
            Err(failure) => {
                let mut message = format!("{raw:?} {failure}");
                if !expected.is_empty() {
                    message.push_str("; ");
                    message.push_str(expected);
                }
                self.push(field, message);
                None
            }
        }
    }

    /// Notes a problem that is not one of parsing, such as two options that exclude each other.
    ///
    /// The same problem again is not noted again: one variable may be read by several subsystems.
    pub fn push(&mut self, field: impl Into<String>, message: impl Into<String>) {
        let problem = (field.into(), message.into());
        if !self.found.contains(&problem) {
            self.found.push(problem);
        }
    }

    /// Each problem, as [`fmt::Display`] would write its line.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.found.iter().map(|(field, message)| format!("{field}: {message}"))
    }

    /// Whether none was noted.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The end of configuration: an error if any problem was noted.
    ///
    /// # Errors
    /// All of them; [`fmt::Display`] writes one per line.
    pub fn finish(self) -> Result<(), Problems> {
        if self.found.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (field, message)) in self.found.iter().enumerate() {
            if at > 0 {
                out.write_str("\n")?;
            }
            write!(out, "{field}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_problem_is_reported_in_order_with_field_and_fix() {
        let mut problems = Problems::new();
        let drain = problems.value("--drain-timeout", "5 parsecs", parse::duration, parse::DURATION);
        let idle = problems.value("--idle-timeout", "1m30s", parse::duration, parse::DURATION);
        problems.value("--admin-listen", "18080", parse::socket_addr, parse::SOCKET_ADDR);
        problems.push("--gateway", "is required unless --manifests is given");
        assert_eq!((drain, idle), (None, Some(Duration::from_secs(90))));
        assert_eq!(
            problems.finish().unwrap_err().to_string(),
            "--drain-timeout: \"5 parsecs\" is not a duration; give a number with unit, such as 30s\n\
             --admin-listen: \"18080\" is not an address with port; give both, such as 0.0.0.0:18080 or [::]:18080\n\
             --gateway: is required unless --manifests is given"
        );
    }

    #[test]
    fn values_from_a_hostile_environment_cannot_break_the_line() {
        let mut problems = Problems::new();
        problems.value("--workers", "4\n\u{1b}[2J", parse::number(1..=64u16), "");
        let text = problems.finish().unwrap_err().to_string();
        assert_eq!(text, "--workers: \"4\\n\\u{1b}[2J\" is not a number");
    }

    #[test]
    fn no_problem_is_no_error() {
        assert!(Problems::new().is_empty());
        assert!(Problems::new().finish().is_ok());
    }
}
