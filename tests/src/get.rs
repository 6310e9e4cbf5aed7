//! `portico get`, as people run it.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::process::Command;

use crate::{binary, tools};

/// `portico get ARGS` of the gateway with this health port, yet to be run.
pub fn command(health: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new(binary::path());
    command.arg("get").args(args).arg(format!("--gateway=http://{health}"));
    // Variables of the user's shell must not have a say.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PORTICO_")) {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end. Gives what it printed, and its warnings.
///
/// # Panics
/// When it fails.
pub async fn text(health: SocketAddr, args: &[&str]) -> (String, String) {
    let (status, out, err) = tools::run(&mut command(health, args)).await;
    assert_eq!(status, Some(0), "portico get {args:?}: {err}");
    (out, err)
}

/// What it prints with `-o json`.
///
/// # Panics
/// When it fails, or prints something else.
pub async fn json(health: SocketAddr, args: &[&str]) -> Value {
    let (out, _) = text(health, &[args, &["-o", "json"]].concat()).await;
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("not JSON ({error}): {out}"))
}
