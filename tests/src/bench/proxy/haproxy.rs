//! HAProxy's configuration.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;

use super::{Proxy, Start, write};
use crate::bench::scenario::Scenario;

/// What is not a default, and why:
///
/// - `http-reuse always`: idle upstream connections are shared by all clients, as Portico's and nginx's are.
/// - `splice-response` for downloads: what `splice-auto` takes for a fast stream needs a larger buffer than the default to
///   be recognised as one, so that it never splices here; this way it does, at little more than half the cost.
/// - `tune.pipesize`: splicing through pipes of 1 MiB costs it less per byte than through the kernel's 64 KiB.
const PREAMBLE: &str = "\
global
    nbthread 1
    maxconn 4096
    tune.pipesize 1048576

defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    balance source
    hash-type consistent
    http-reuse always
";

/// Writes the configuration; `-db` keeps the process in the foreground, where it is the only one.
pub fn configure(dir: &Path) -> Result<Start> {
    let path = write(dir, "haproxy.cfg", &render())?;
    let args = ["-db".to_owned(), "-f".to_owned(), path.display().to_string()];
    Ok(Start { args: args.into(), version: &["-v"] })
}

fn render() -> String {
    let mut text = PREAMBLE.to_owned();
    for scenario in Scenario::ALL.into_iter().filter(|scenario| Proxy::Haproxy.supports(*scenario)) {
        let (options, proto) = match scenario {
            Scenario::Http => ("    mode http\n    option forwardfor\n", ""),
            Scenario::Grpc => ("    mode http\n    option forwardfor\n", " proto h2"),
            Scenario::Download => ("    mode tcp\n    option splice-response\n", ""),
            Scenario::Tcp | Scenario::Udp => ("    mode tcp\n    option splice-auto\n", ""),
        };
        let name = format!("{scenario:?}").to_lowercase();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\nlisten {name}\n    bind {}{proto}", Proxy::Haproxy.address(scenario));
        text.push_str(options);
        for (index, backend) in scenario.backends().iter().enumerate() {
            let _ = writeln!(text, "    server backend{index} {backend}{proto}");
        }
    }
    text
}
