//! The options of logging, shared by all subcommands.

use super::Problems;
use super::nearest::nearest;
use super::parse::one_of;
use tracing_subscriber::filter::Targets;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How and how much the process logs, as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// Format of log lines on standard error: text or json
    #[arg(long, global = true, value_name = "FORMAT", env = "PORTICO_LOG_FORMAT", default_value = "text")]
    pub log_format: String,

    /// What is logged: off, error, warn, info, debug or trace; also per module, such as info,agent=debug
    #[arg(long, global = true, value_name = "LEVEL", env = "PORTICO_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, module, message, fields.
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// [`LogArgs`], parsed.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The format of a line.
    pub format: Format,
    /// Which levels of which modules are written.
    pub level: Targets,
}

impl LogArgs {
    /// Parses both options, noting what is wrong with either.
    pub fn parse(&self, problems: &mut Problems) -> Option<LogConfig> {
        let format = problems.value("--log-format", &self.log_format, format, "");
        let level = problems.value("--log-level", &self.log_level, level, "");
        Some(LogConfig { format: format?, level: level? })
    }
}

/// `text` or `json`.
pub fn format(raw: &str) -> Result<Format, String> {
    one_of(&["text", "json"])(raw).map(|word| match word {
        "json" => Format::Json,
        _ => Format::Text,
    })
}

/// A level for all modules, or a list of levels and `MODULE=LEVEL`.
///
/// The parser of tracing takes any other word for a module and would turn `debgu` into "all of module debgu"; so
/// the words are checked here first.
pub fn level(raw: &str) -> Result<Targets, String> {
    for item in raw.split(',') {
        let level = item.rsplit_once('=').map_or(item, |(_, level)| level);
        let known = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        if !known {
            let levels = LEVELS.join(", ");
            return Err(match nearest(level, &LEVELS) {
                Some(near) => format!("names the level {level:?}, which is not one of {levels}; did you mean {near}?"),
                None => format!("names the level {level:?}, which is not one of {levels}"),
            });
        }
    }
    raw.parse::<Targets>().map_err(|_| "is not a level, nor a list such as info,agent=debug".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use tracing::Level;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn both_options_are_parsed_and_both_failures_reported() {
        let mut problems = Problems::new();
        let cli = Cli::parse_from(["x", "--log-format", "json", "--log-level", "warn,agent=debug"]);
        let config = cli.log.parse(&mut problems).unwrap();
        assert_eq!(config.format, Format::Json);
        assert!(config.level.would_enable("agent::table", &Level::DEBUG));
        assert!(!config.level.would_enable("gateway", &Level::INFO));

        let cli = Cli::parse_from(["x", "--log-format", "jsn", "--log-level", "debgu"]);
        assert!(cli.log.parse(&mut problems).is_none());
        let text = problems.finish().unwrap_err().to_string();
        assert!(text.contains("--log-format: \"jsn\" is not one of text, json; did you mean json?"), "{text}");
        assert!(text.contains("--log-level: \"debgu\" names the level \"debgu\""), "{text}");
        assert!(text.contains("did you mean debug?"), "{text}");
    }

    #[test]
    fn levels_are_checked_word_by_word() {
        for good in ["info", "INFO", "off", "info,agent=debug", "agent::table=trace,warn"] {
            assert!(level(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,agent", "agent=loud", "info,", "=debug=x"] {
            assert!(level(bad).is_err(), "{bad}");
        }
    }
}
