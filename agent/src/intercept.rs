//! Interception on a node: packet rules that lead the traffic of all Services to one transparent listener per worker.
//!
//! The rules follow the tables that the control loop has given to the workers, so what is caught always finds its
//! frontend. They are looked after: renewed, installed again when somebody removed them, and gone when the agent is.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use api::resource::service::Transport;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    apply::control::{Progress, Round},
    listen::socket::{Listening, open_transparent},
};

pub mod ruleset;
pub mod script;
pub mod program;
pub mod host;
pub mod install;
pub mod state;
mod keeper;

use install::Installer;
use keeper::Keeper;
use program::Error;
use script::{Pair, Ports};
use state::State;

/// How long they outlive the last renewal: long enough for a machine that is too busy to start a program.
const LEASE: Duration = Duration::from_secs(16);

/// Whether traffic is intercepted, as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// If this process runs in a Pod and may change packet rules.
    Auto,
    /// Yes, or do not start.
    On,
    /// Real sockets.
    #[default]
    Off,
}

/// What becomes of the rules when the agent ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// They go: traffic passes to whoever else serves it. After a crash they are inert after [`LEASE`].
    #[default]
    Remove,
    /// They stay: what they refuse and drop is refused and dropped, new connections wait for the next agent.
    Keep,
}

/// What of the configuration concerns interception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether.
    pub choice: Choice,
    /// And afterwards.
    pub on_exit: OnExit,
}

/// Sockets that caught traffic is led to.
#[derive(Debug)]
pub struct Sockets {
    /// One list for each protocol and family, with one socket for each worker.
    pub listening: Vec<Vec<Listening>>,
    /// Where they are.
    pub ports: Ports,
}

/// What the rules follow, and who hears that they did.
pub struct Source {
    /// Tables that the workers have.
    pub progress: watch::Receiver<Progress>,
    /// Rounds of programming, each sent after its table is in `progress`.
    pub rounds: mpsc::UnboundedReceiver<Round>,
    /// Called with each round whose rules are in force.
    pub in_force: Box<dyn Fn(Round) + Send>,
    /// Called once, when the rules of the first table are in force.
    pub installed: Option<Box<dyn FnOnce() + Send>>,
}

/// The rules of a running agent. Dropping it leaves them to their lease.
#[derive(Debug)]
pub struct Interception {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

// === impl Choice ===

impl Choice {
    /// Whether to intercept, by what this process is and may do.
    pub fn decide(self, in_pod: bool, capable: bool) -> bool {
        match self {
            Choice::On => true,
            Choice::Off => false,
            Choice::Auto => in_pod && capable,
        }
    }

    /// As [`Choice::decide`], for this process.
    pub fn decide_here(self) -> bool {
        // The kubelet sets it in every Pod.
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        self.decide(in_pod, host::is_capable())
    }
}

// === impl Sockets ===

impl Sockets {
    /// Opens transparent sockets for so many workers.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_ADMIN.
    pub fn open(workers: usize) -> io::Result<Self> {
        let mut listening = Vec::new();
        let mut pair = |loopback: IpAddr| {
            let mut open = |transport| {
                let (sockets, port) = open_transparent(loopback, transport, workers)?;
                listening.push(sockets);
                io::Result::Ok(port)
            };
            io::Result::Ok(Pair { tcp: open(Transport::Tcp)?, udp: open(Transport::Udp)? })
        };
        let ipv4 = pair(Ipv4Addr::LOCALHOST.into())?;
        let ipv6 = if host::has_ipv6() { Some(pair(Ipv6Addr::LOCALHOST.into())?) } else { None };
        Ok(Self { listening, ports: Ports { ipv4, ipv6 } })
    }
}

// === impl Interception ===

impl Interception {
    /// Installs rules that catch nothing yet, so that what the kernel or the process lacks shows at once; then they follow
    /// the tables of `source`.
    ///
    /// # Errors
    /// When rules cannot be installed.
    pub async fn start(ports: Ports, on_exit: OnExit, source: Source, state: State) -> Result<Self, Error> {
        let lease = match on_exit {
            OnExit::Remove => Some(LEASE),
            OnExit::Keep => None,
        };
        let installer = Installer::new(ports, lease);
        installer.probe().await?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Keeper::new(installer, on_exit, source, state).run(stopped));
        Ok(Self { stop, task })
    }

    /// Removes the rules, unless they are to be kept.
    pub async fn end(self) {
        // A task that is gone cannot do it.
        let _ = self.stop.send(());
        // It has said all it has to say in the log.
        let _ = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_means_a_pod_that_may() {
        for (choice, in_pod, capable, expected) in [
            (Choice::Auto, true, true, true),
            (Choice::Auto, true, false, false),
            (Choice::Auto, false, true, false),
            (Choice::On, false, false, true),
            (Choice::Off, true, true, false),
        ] {
            assert_eq!(choice.decide(in_pod, capable), expected, "{choice:?} {in_pod} {capable}");
        }
    }
}
