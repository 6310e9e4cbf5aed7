//! Which sockets are open: wanted minus open is opened, open minus wanted is closed, nothing else is touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::SystemTime,
};

use api::resource::{name::NamespacedName, service::Transport};

use super::socket::{self, Listening};
use crate::table::{Destination, Frontend, FrontendKind, Table};

/// Opens and closes sockets so that they follow the table.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Packet rules lead to transparent listeners what is for Services; only the shared HTTP port has a socket.
    intercepted: bool,
    open: BTreeSet<Destination>,
    failed: BTreeMap<Destination, Fault>,
}

/// A destination that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The Service, if the destination belongs to one.
    pub service: Option<NamespacedName>,
    /// Kind of the address.
    pub kind: FrontendKind,
    /// UPPER_SNAKE_CASE.
    pub reason: &'static str,
    /// The error of the system.
    pub message: String,
    /// When it was first seen.
    pub since: SystemTime,
}

/// One step of [`Listeners::follow`].
#[derive(Debug)]
pub enum Step {
    /// Sockets of a new destination, one for each worker.
    Open(Destination, Vec<Listening>),
    /// A destination that is no longer wanted.
    Close(Destination),
}

// === impl Listeners ===

impl Listeners {
    /// Where packet rules lead to other listeners what is for Services.
    pub fn beside_interception() -> Self {
        Self { intercepted: true, ..Self::default() }
    }

    /// The steps from what is open to what `table` wants. What failed before is tried again.
    pub fn follow(&mut self, table: &Table, workers: usize) -> Vec<Step> {
        let wanted: BTreeMap<&Destination, &Frontend> =
            table.frontends.iter().filter(|(_, frontend)| self.listens(frontend)).collect();
        let mut steps = Vec::new();
        // Close first: a port may go from one Service to another at the same address, or from one family to both.
        self.open.retain(|destination| {
            let keep = wanted.contains_key(destination);
            if !keep {
                steps.push(Step::Close(*destination));
            }
            keep
        });
        self.failed.retain(|destination, _| wanted.contains_key(destination));
        for (destination, frontend) in wanted {
            if self.open.contains(destination) {
                continue;
            }
            let sockets: io::Result<Vec<Listening>> = (0..workers).map(|_| socket::open(destination)).collect();
            match sockets {
                Ok(sockets) => {
                    self.failed.remove(destination);
                    self.open.insert(*destination);
                    steps.push(Step::Open(*destination, sockets));
                }
                Err(error) => self.fail(destination, frontend, &error),
            }
        }
        steps
    }

    fn fail(&mut self, destination: &Destination, frontend: &Frontend, error: &io::Error) {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => "PORT_IN_USE",
            io::ErrorKind::AddrNotAvailable => "ADDRESS_NOT_LOCAL",
            io::ErrorKind::PermissionDenied => "PERMISSION_DENIED",
            _ => "LISTEN_FAILED",
        };
        let service = frontend.target.as_ref().map(|target| target.service.clone());
        let message = format!("cannot listen on {}: {error}", destination.address);
        let known = self.failed.get(destination).filter(|fault| fault.reason == reason);
        let since = known.map_or_else(SystemTime::now, |fault| fault.since);
        if known.is_none() {
            let service = service.as_ref().map(ToString::to_string);
            tracing::warn!(address = %destination.address, service, reason, "{message}; trying again");
        }
        self.failed.insert(*destination, Fault { service, kind: frontend.kind, reason, message, since });
    }

    /// Whether a destination has a socket. Where nothing in the cluster could answer, opaque ports have none, so that the
    /// kernel refuses at once (S5.1, S16.7); HTTP ports answer 503 instead and say why.
    fn listens(&self, frontend: &Frontend) -> bool {
        match &frontend.target {
            None => true,
            Some(_) if self.intercepted => false,
            // There is no way to end SCTP here (S17.3); the control plane reports the port.
            Some(target) if target.transport == Transport::Sctp => false,
            Some(target) if target.transport == Transport::Udp => target.any_endpoint,
            Some(target) => target.any_endpoint || target.protocol.is_http(),
        }
    }

    /// Everything that could not be opened.
    pub fn faults(&self) -> &BTreeMap<Destination, Fault> {
        &self.failed
    }

    /// Number of destinations that are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }
}
