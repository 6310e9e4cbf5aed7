//! Commands of the system that the kubelet runs: `ip`, `mount` and the like.

use std::process::Stdio;

use anyhow::{Context as _, bail};
use tokio::process::Command;

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or fails; the error has what it said.
pub async fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command given as words divided by spaces.
///
/// # Errors
/// As [`run`].
pub async fn words(line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (program, arguments) = words.split_first().context("an empty command")?;
    run(program, arguments).await
}
