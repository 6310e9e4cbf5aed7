//! What happens to a new connection (S5 to S7): one decision, for the listener and for packet rules alike.

use std::net::{IpAddr, SocketAddr};

use api::resource::service::Transport;

use super::{Candidates, Destination, FrontendKind, Location, Table, Target};
use crate::report::outcome::Outcome;

/// Where a connection comes from (S5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// An address of a Pod.
    Pod,
    /// An address of this node.
    Node,
    /// Any other, also of other nodes.
    External,
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// It goes to one of these endpoints; there is at least one.
    Forward(&'a Candidates),
    /// The client learns at once: a reset for TCP, port unreachable for the others.
    Reject(Outcome),
    /// Silence. A listener that has accepted already can only reset.
    Drop(Outcome),
    /// Not for a Service: the kernel goes on as if we were not there.
    Unhandled,
}

// === impl Verdict ===

impl<'a> Verdict<'a> {
    /// The endpoints, or why there are none.
    ///
    /// # Errors
    /// The outcome of a connection that is refused.
    pub fn candidates(self) -> Result<&'a Candidates, Outcome> {
        match self {
            Verdict::Forward(candidates) => Ok(candidates),
            Verdict::Reject(outcome) | Verdict::Drop(outcome) => Err(outcome),
            Verdict::Unhandled => Err(Outcome::UnknownName),
        }
    }
}

// === impl Table ===

impl Table {
    /// The verdict on the first packet from `client` to `address`. The shared HTTP port is [`Verdict::Unhandled`]: it
    /// has a socket of its own, and no Service before a request names one.
    pub fn verdict(&self, client: IpAddr, address: SocketAddr, transport: Transport) -> Verdict<'_> {
        match self.frontends.get(&Destination { address, transport }) {
            Some(frontend) => match &frontend.target {
                Some(target) => target.verdict(frontend.kind, client, || self.client_kind(client)),
                None => Verdict::Unhandled,
            },
            // S5.4.
            None if self.cluster_ips.contains(&address.ip()) => Verdict::Reject(Outcome::UnknownPort),
            None if self.service_cidrs.iter().any(|range| range.contains(&address.ip())) => {
                Verdict::Drop(Outcome::UnknownName)
            }
            None => Verdict::Unhandled,
        }
    }

    /// Where `address` belongs. Pods are known by their ranges, and one by one where ranges are not configured.
    pub fn client_kind(&self, address: IpAddr) -> ClientKind {
        if self.location.addresses.contains(&address) {
            ClientKind::Node
        } else if self.workloads.contains_key(&address) || self.location.is_pod(address) {
            ClientKind::Pod
        } else {
            ClientKind::External
        }
    }
}

// === impl Location ===

impl Location {
    /// Whether the pod ranges hold `address`.
    pub fn is_pod(&self, address: IpAddr) -> bool {
        // They are disjoint and in order, so only the last one that begins at or before the address can hold it.
        let after = self.pod_cidrs.partition_point(|range| range.network() <= address);
        after.checked_sub(1).is_some_and(|last| self.pod_cidrs[last].contains(&address))
    }
}

// === impl Target ===

impl Target {
    /// The verdict on a connection to an address of this port (S5.1 to S5.3, S5.5). `from` is asked only where it matters.
    pub fn verdict(&self, kind: FrontendKind, client: IpAddr, from: impl FnOnce() -> ClientKind) -> Verdict<'_> {
        if kind == FrontendKind::LoadBalancer && !self.admits(client) {
            return Verdict::Drop(Outcome::SourceRange);
        }
        self.verdict_on_admitted(kind, || self.is_own(client) || from() != ClientKind::External)
    }

    /// As [`Target::verdict`], on a client whom source ranges admit, and who is a Pod or on this node if it is `inside`.
    pub fn verdict_on_admitted(&self, kind: FrontendKind, inside: impl FnOnce() -> bool) -> Verdict<'_> {
        if !self.any_endpoint {
            return Verdict::Reject(Outcome::NoEndpoints);
        }
        let local = match kind {
            FrontendKind::ClusterIp | FrontendKind::Route => self.internal_local,
            // Another node has chosen the endpoint already.
            FrontendKind::Hop => false,
            // S5.3: for those inside, it is as if the packet had left and come back through the load balancer.
            FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                self.external_local && !inside()
            }
        };
        let candidates = if local { &self.local } else { &self.cluster };
        match candidates.backends.is_empty() {
            false => Verdict::Forward(candidates),
            true if local && self.local_overflow && !self.cluster.backends.is_empty() => {
                Verdict::Forward(&self.cluster)
            }
            true if local => Verdict::Drop(Outcome::NoLocalEndpoints),
            true => Verdict::Reject(Outcome::NoEndpoints),
        }
    }

    /// Whether `client` may use the load-balancer addresses (S7).
    pub fn admits(&self, client: IpAddr) -> bool {
        self.source_ranges.is_empty()
            || self.source_ranges.iter().any(|range| range.contains(&client))
            || self.is_own(client)
    }

    /// Whether `client` is a load-balancer address of the port, as it is where this node dials that address (S7.4).
    fn is_own(&self, client: IpAddr) -> bool {
        self.own_sources.contains(&client)
    }

    /// Whether the endpoint sees the client's address instead of the node's under kube-proxy (S6).
    pub fn keeps_client(&self, kind: FrontendKind, client: IpAddr, from: ClientKind, endpoint: IpAddr) -> bool {
        let promised = match kind {
            FrontendKind::ClusterIp | FrontendKind::Route => from == ClientKind::Pod,
            FrontendKind::Hop => true,
            FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => self.external_local,
        };
        promised && self.can_keep_client(client, from, endpoint)
    }

    /// Whether the endpoint may see the client's address at all. A process of this node has no other address to be reached
    /// at, and an endpoint that reaches itself would answer to itself, past the node.
    pub fn can_keep_client(&self, client: IpAddr, from: ClientKind, endpoint: IpAddr) -> bool {
        from != ClientKind::Node && client != endpoint && !self.is_own(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(ranges: &[&str]) -> Location {
        let pod_cidrs = ranges.iter().map(|range| range.parse().expect("a network")).collect();
        Location { pod_cidrs, ..Location::default() }
    }

    #[test]
    fn pods_are_known_by_ranges_of_both_families() {
        let location = location(&["10.1.0.0/24", "10.2.0.0/16", "fd00:10::/64"]);
        let check = |address: &str, expected| {
            assert_eq!(location.is_pod(address.parse().expect("an address")), expected, "{address}");
        };
        for pod in ["10.1.0.0", "10.1.0.255", "10.2.255.255", "fd00:10::1"] {
            check(pod, true);
        }
        for other in ["10.0.255.255", "10.1.1.0", "10.3.0.0", "0.0.0.0", "fd00:9::1", "fd00:10:0:1::", "::"] {
            check(other, false);
        }
    }

    #[test]
    fn without_ranges_nobody_is_a_pod() {
        assert!(!location(&[]).is_pod([10, 0, 0, 1].into()));
    }
}
