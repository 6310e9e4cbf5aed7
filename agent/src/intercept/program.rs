//! The programs that tell the kernel, `nft` and `ip`: they report mistakes in words.

use std::{
    io,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Longer than `nft` takes for any number of Services on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `nft`: a script from standard input, as one transaction.
pub const APPLY: &[&str] = &["-f", "-"];

/// As [`APPLY`], printing sets without their elements.
pub const APPLY_TERSE: &[&str] = &["-t", "-f", "-"];

/// Why rules or routes are not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is missing.
    #[error("cannot run {program}, install the package {package} or set --intercept off")]
    Program {
        /// Its name.
        program: &'static str,
        /// What to install.
        package: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// A program did not end.
    #[error("{0} did not end within {LIMIT:?}")]
    Slow(&'static str),
    /// The process may not change the network.
    #[error("not permitted to change packet rules, give the agent the capability NET_ADMIN or set --intercept off")]
    Capability,
    /// The kernel lacks something.
    #[error("the kernel does not know {what}, load the module {module} or set --intercept off: {message}")]
    Module {
        /// Part of the rules.
        what: &'static str,
        /// What to load.
        module: &'static str,
        /// What the program said.
        message: String,
    },
    /// Something that was there is gone.
    #[error("the rules are not there any more: {0}")]
    Gone(String),
    /// Anything else.
    #[error("{program} failed: {message}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// What it said.
        message: String,
    },
}

/// Runs a script and returns what it printed.
///
/// # Errors
/// [`Error`].
pub async fn nft(args: &[&str], script: &str) -> Result<String, Error> {
    let output = run("nft", "nftables", args, script).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(&String::from_utf8_lossy(&output.stderr)))
}

/// What `nft` means. It prints each line that failed below the error.
fn failure(stderr: &str) -> Error {
    let parts: [(&'static str, &'static str, &'static str); 4] = [
        ("tproxy ", "TPROXY", "nft_tproxy"),
        ("socket ", "socket matching", "nft_socket"),
        ("fib ", "fib matching", "nft_fib_inet"),
        ("reject ", "reject", "nft_reject_inet"),
    ];
    let message = stderr.lines().take(3).collect::<Vec<_>>().join(" ");
    if stderr.contains("Operation not permitted") {
        return Error::Capability;
    }
    if stderr.contains("No such file or directory") || stderr.contains("Operation not supported") {
        let part = parts.into_iter().find(|(word, _, _)| stderr.contains(word));
        return match part {
            Some((_, what, module)) => Error::Module { what, module, message },
            None => Error::Gone(message),
        };
    }
    Error::Failed { program: "nft", message }
}

/// Runs lines of `ip`; errors that contain one of `expected` are none.
///
/// # Errors
/// [`Error`].
pub async fn ip(family: &str, script: &str, expected: &[&str]) -> Result<(), Error> {
    let output = run("ip", "iproute2", &[family, "-force", "-batch", "-"], script).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let unexpected = stderr
        .lines()
        .filter(|line| !line.starts_with("Command failed") && !line.is_empty())
        .find(|line| !expected.iter().any(|expected| line.contains(expected)));
    match unexpected {
        None => Ok(()),
        Some(line) if line.contains("Operation not permitted") => Err(Error::Capability),
        Some(line) => Err(Error::Failed { program: "ip", message: line.to_owned() }),
    }
}

/// Runs a program with this standard input, and gives what it printed and how it ended.
///
/// # Errors
/// [`Error::Program`] and [`Error::Slow`].
pub async fn run(program: &'static str, package: &'static str, args: &[&str], input: &str) -> Result<Output, Error> {
    let failed = |source| Error::Program { program, package, source };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let mut stdin = child.stdin.take();
    let work = async {
        if let Some(stdin) = &mut stdin {
            // A program that ends early says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    timeout(LIMIT, work).await.map_err(|_| Error::Slow(program))?.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_what_is_missing() {
        let check = |stderr: &str, expected: &str| {
            let error = failure(stderr).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("/dev/stdin:1:1-18: Error: Operation not permitted (you must be root)", "NET_ADMIN");
        let tproxy = "/dev/stdin:9:1-9: Error: Could not process rule: No such file or directory\n\
                      meta l4proto tcp tproxy ip to 127.0.0.1:1 accept\n                 ^^^^^^";
        check(tproxy, "nft_tproxy");
        check("/dev/stdin:1:1-5: Error: No such file or directory\nflush set inet portico alive", "not there any more");
        check("/dev/stdin:1:1-5: Error: syntax error", "nft failed");
    }
}
