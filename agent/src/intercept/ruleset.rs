//! What packet rules have to know of a table, as values: which packets are caught, refused or dropped (S5, S7). Pure.
//!
//! A packet to an address of a Service is judged before anybody accepts it, so that a refused client learns it from its
//! first packet (S16.7). What is caught has a frontend in the table; the table decides the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::resource::service::Transport;
use ipnet::IpNet;

use crate::table::{Destination, FrontendKind, Table, Target, verdict::Verdict};

/// What happens to a new flow to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ours.
    Catch,
    /// Ours if the client is a Pod or this node; silence for others (S5.3).
    CatchInside,
    /// RST, or ICMP port unreachable.
    Refuse,
    /// Silence.
    Drop,
    /// [`Ruleset::guarded`] decides, once the source is found to be in one of [`Ruleset::admitted`] (S5.5).
    Guard,
}

/// The content of all sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Every destination of a Service.
    pub services: BTreeMap<Destination, Action>,
    /// What becomes of those with source ranges after the source was admitted.
    pub guarded: BTreeMap<Destination, Action>,
    /// Who may use the destinations with source ranges. The ranges of each are disjoint.
    pub admitted: BTreeSet<(Destination, IpNet)>,
    /// Pods and this node, as disjoint ranges. Further addresses of the node are known to the kernel.
    pub inside: BTreeSet<IpNet>,
    /// ClusterIPs. On ports that no Service has there they refuse (S5.4).
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Where ClusterIPs come from, as disjoint ranges. What nobody has there is dropped (S5.4).
    pub service_ranges: BTreeSet<IpNet>,
}

// === impl Ruleset ===

impl Ruleset {
    /// What `table` asks for.
    pub fn new(table: &Table) -> Self {
        let service_ranges = aggregate(table.service_cidrs.iter());
        let cluster_ips = table.cluster_ips.iter().copied().collect();
        let mut ruleset = Self { inside: inside(table), cluster_ips, service_ranges, ..Self::default() };
        for (destination, frontend) in &table.frontends {
            // The shared HTTP port has a socket of its own.
            let Some(target) = &frontend.target else { continue };
            let action = match action(target, frontend.kind) {
                // There is no way to end SCTP here (S17.3): clients learn it at once, and the gateway reports the port.
                Action::Catch | Action::CatchInside if destination.transport == Transport::Sctp => Action::Refuse,
                action => action,
            };
            let ranges = match frontend.kind {
                FrontendKind::LoadBalancer => admitted(target),
                _ => Vec::new(),
            };
            if ranges.is_empty() {
                ruleset.services.insert(*destination, action);
            } else {
                ruleset.services.insert(*destination, Action::Guard);
                ruleset.guarded.insert(*destination, action);
                ruleset.admitted.extend(ranges.into_iter().map(|range| (*destination, range)));
            }
        }
        ruleset
    }

    /// Number of destinations.
    pub fn count(&self) -> usize {
        self.services.len()
    }
}

/// S5.1 to S5.3, on those whom source ranges admit. HTTP ports without any endpoint are caught: they answer 503 and say
/// why.
fn action(target: &Target, kind: FrontendKind) -> Action {
    let on = |inside| target.verdict_on_admitted(kind, || inside);
    match (on(false), on(true)) {
        (Verdict::Forward(_), _) => Action::Catch,
        (_, Verdict::Forward(_)) => Action::CatchInside,
        (Verdict::Reject(_), _) if target.protocol.is_http() => Action::Catch,
        (Verdict::Reject(_), _) => Action::Refuse,
        (Verdict::Drop(_) | Verdict::Unhandled, _) => Action::Drop,
    }
}

/// The sources that a load-balancer address is open to; empty means everybody (S7).
fn admitted(target: &Target) -> Vec<IpNet> {
    if target.source_ranges.is_empty() {
        return Vec::new();
    }
    let own = target.own_sources.iter().map(|address| IpNet::from(*address));
    IpNet::aggregate(&target.source_ranges.iter().map(IpNet::trunc).chain(own).collect())
}

/// Where Pods and this node are. Pods that no pod range holds are named one by one.
fn inside(table: &Table) -> BTreeSet<IpNet> {
    let location = &table.location;
    let others = table.workloads.keys().filter(|address| !location.is_pod(**address));
    let addresses = location.addresses.iter().chain(others).map(|address| IpNet::from(*address));
    let ranges: Vec<IpNet> = location.pod_cidrs.iter().copied().chain(addresses).collect();
    aggregate(ranges.iter())
}

fn aggregate<'a>(ranges: impl Iterator<Item = &'a IpNet>) -> BTreeSet<IpNet> {
    IpNet::aggregate(&ranges.map(IpNet::trunc).collect()).into_iter().collect()
}

#[cfg(test)]
mod tests;
