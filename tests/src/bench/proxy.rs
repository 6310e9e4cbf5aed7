//! The proxies under comparison, each configured to do the same work: one thread, balancing by client address over
//! three backends, `X-Forwarded-For` added to HTTP, upstream connections kept, no access log.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;

use super::{cpu, load, process::Pinned, scenario::Scenario};

/// HAProxy's configuration.
mod haproxy;
/// nginx's configuration.
mod nginx;
/// Portico's manifests.
mod portico;

/// How long a proxy may take from its start to its first right answers.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Between two probes of a proxy that is starting.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// A proxy to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proxy {
    /// Ours, as `portico standalone`.
    Portico,
    /// HAProxy as the distribution packages it.
    Haproxy,
    /// nginx as the distribution packages it, with its stream module.
    Nginx,
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Running {
    /// Which one.
    pub proxy: Proxy,
    /// What it says about its version.
    pub version: String,
    child: Pinned,
}

/// What to run: a program, the arguments for the comparison, and the arguments that make it print its version.
struct Start {
    args: Vec<String>,
    version: &'static [&'static str],
}

impl Proxy {
    /// All proxies, in the order of a round and of the table.
    pub const ALL: [Self; 3] = [Self::Portico, Self::Haproxy, Self::Nginx];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portico => "Portico",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }

    /// Whether it can do this scenario. HAProxy proxies no UDP other than syslog and QUIC.
    pub fn supports(self, scenario: Scenario) -> bool {
        self != Self::Haproxy || scenario != Scenario::Udp
    }

    /// Where it takes a scenario's traffic.
    pub fn address(self, scenario: Scenario) -> SocketAddr {
        SocketAddr::from((self.ip(), scenario.proxy_port()))
    }

    fn ip(self) -> Ipv4Addr {
        match self {
            Self::Portico => Ipv4Addr::new(127, 0, 1, 1),
            Self::Haproxy => Ipv4Addr::new(127, 0, 1, 2),
            Self::Nginx => Ipv4Addr::new(127, 0, 1, 3),
        }
    }

    /// Writes the configuration to `dir` and starts `program` on processor `core`.
    ///
    /// # Errors
    ///
    /// Fails if the configuration cannot be written or the program cannot be run.
    pub fn start(self, program: &Path, dir: &Path, core: usize) -> Result<Running> {
        let dir = dir.join(self.name());
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let start = match self {
            Self::Portico => portico::configure(&dir)?,
            Self::Haproxy => haproxy::configure(&dir)?,
            Self::Nginx => nginx::configure(&dir)?,
        };
        let version = version(program, start.version)?;
        let child = Pinned::start(&dir, self.name(), core, program, &start.args)?;
        Ok(Running { proxy: self, version, child })
    }
}

impl Running {
    /// Waits until it answers every scenario of the list rightly.
    ///
    /// # Errors
    ///
    /// Fails with what it wrote last if it ended or does not answer in time.
    pub async fn ready(&mut self, scenarios: &[Scenario]) -> Result<()> {
        let begin = Instant::now();
        for &scenario in scenarios.iter().filter(|scenario| self.proxy.supports(**scenario)) {
            loop {
                self.child.ensure_running()?;
                match load::probe(scenario, self.proxy.address(scenario), PROBE_LIMIT).await {
                    Ok(()) => break,
                    Err(_) if begin.elapsed() < START_LIMIT => tokio::time::sleep(PROBE_INTERVAL).await,
                    Err(error) => {
                        return Err(error.context(format!("{} said: {}", self.proxy.name(), self.child.last_words())));
                    }
                }
            }
        }
        Ok(())
    }

    /// The processor time it has used since it began.
    ///
    /// # Errors
    ///
    /// Fails with what it wrote last if it ended.
    pub fn usage(&mut self) -> Result<cpu::Usage> {
        self.child.ensure_running()?;
        cpu::usage(self.child.pid())
    }
}

/// The first line of what a program says about its version, on either output.
fn version(program: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| {
        format!(
            "run {}: is it installed? scripts/setup installs the peers, scripts/bench builds Portico",
            program.display()
        )
    })?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
}

/// Writes a configuration file and returns its path.
fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
