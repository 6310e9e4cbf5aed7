//! EndpointSlices of one Service, joined and split into single endpoints, so that one Pod changes one small resource (S3).

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, num::NonZeroU16, sync::Arc};

use api::resource::{
    endpoint::{Endpoint, EndpointPort},
    name::NamespacedName,
    service::Transport,
};
use k8s_openapi::api::discovery::v1::{self, EndpointSlice};

/// Addresses that an endpoint may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of a cluster: neither loopback nor link-local nor multicast (S18.1).
    Cluster,
    /// Also loopback addresses, where nodes and Pods of a manifest live on one machine.
    Machine,
}

/// The endpoints of a Service, in order of their names. The union over all its slices: never more than one endpoint for
/// an address, port and port name.
pub fn derive<'a>(
    service: &NamespacedName,
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
    reach: Reach,
) -> Vec<Endpoint> {
    let mut best: BTreeMap<(IpAddr, Option<EndpointPort>), Facts> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<EndpointPort> = slice.ports.iter().flatten().filter_map(port).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(address) = address(&slice.address_type, endpoint, reach) else { continue };
            let facts = Facts::of(endpoint);
            // Slices of headless Services may have no ports; DNS wants their addresses all the same.
            let ports = if ports.is_empty() { vec![None] } else { ports.iter().cloned().map(Some).collect() };
            for port in ports {
                let known = best.entry((address, port)).or_insert_with(|| facts.clone());
                // Happens while an endpoint moves between slices, or an address is used again (S3.9).
                if facts.rank() > known.rank() {
                    *known = facts.clone();
                }
            }
        }
    }
    let mut by_address: BTreeMap<IpAddr, BTreeMap<Facts, Vec<EndpointPort>>> = BTreeMap::new();
    for ((address, port), facts) in best {
        by_address.entry(address).or_default().entry(facts).or_default().extend(port);
    }
    let mut endpoints = Vec::new();
    for (address, groups) in by_address {
        let with_ports = groups.values().any(|ports| !ports.is_empty());
        let mut groups: Vec<_> = groups.into_iter().filter(|(_, ports)| !with_ports || !ports.is_empty()).collect();
        // Named by their lowest port, which does not move when conditions change.
        groups.sort_by(|(_, one), (_, other)| one.first().cmp(&other.first()));
        for (index, (facts, ports)) in groups.into_iter().enumerate() {
            let split = match (index, ports.first()) {
                (0, _) | (_, None) => String::new(),
                (_, Some(port)) => format!("{}-{}-{}", port.name, port.transport.as_str().to_lowercase(), port.port),
            };
            endpoints.push(facts.into_endpoint(service, address, ports, split));
        }
    }
    endpoints
}

/// What an endpoint is, apart from its address and ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Facts {
    ready: bool,
    serving: bool,
    terminating: bool,
    node: String,
    zone: String,
    hint_zones: Vec<String>,
    hint_nodes: Vec<String>,
    pod: String,
    hostname: String,
}

// === impl Facts ===

impl Facts {
    fn of(endpoint: &v1::Endpoint) -> Self {
        // Each condition has a default of its own (S3.7).
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let hints = endpoint.hints.clone().unwrap_or_default();
        let mut hint_zones: Vec<_> = hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect();
        let mut hint_nodes: Vec<_> = hints.for_nodes.into_iter().flatten().map(|node| node.name).collect();
        hint_zones.sort();
        hint_nodes.sort();
        let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        Self {
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node: endpoint.node_name.clone().unwrap_or_default(),
            zone: endpoint.zone.clone().unwrap_or_default(),
            hint_zones,
            hint_nodes,
            pod: target.and_then(|target| target.name.clone()).unwrap_or_default(),
            hostname: endpoint.hostname.clone().unwrap_or_default(),
        }
    }

    /// The higher one of two duplicates is used; the last parts only make the choice the same everywhere.
    fn rank(&self) -> impl Ord + '_ {
        (!self.terminating, self.ready, self.serving, Reverse(self))
    }

    fn into_endpoint(
        self,
        service: &NamespacedName,
        address: IpAddr,
        ports: Vec<EndpointPort>,
        split: String,
    ) -> Endpoint {
        Endpoint {
            ports,
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            node: self.node,
            zone: self.zone,
            hint_zones: self.hint_zones,
            hint_nodes: self.hint_nodes,
            pod: self.pod,
            hostname: self.hostname,
            split,
            ..Endpoint::new(service.clone(), address)
        }
    }
}

/// A port of a slice; `None` if it has no name or no number (S3.4).
fn port(port: &v1::EndpointPort) -> Option<EndpointPort> {
    let transport = match port.protocol.as_deref() {
        None | Some("TCP") => Transport::Tcp,
        Some("UDP") => Transport::Udp,
        Some("SCTP") => Transport::Sctp,
        Some(_) => return None,
    };
    let number = u16::try_from(port.port?).ok().and_then(NonZeroU16::new)?;
    Some(EndpointPort { name: port.name.clone()?, transport, port: number })
}

/// The one address of an endpoint that counts (S3.6), if it is of the slice's family (S3.2) and may be dialled.
fn address(address_type: &str, endpoint: &v1::Endpoint, reach: Reach) -> Option<IpAddr> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let of_family = match address_type {
        "IPv4" => address.is_ipv4(),
        "IPv6" => address.is_ipv6(),
        _ => false,
    };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let loopback = address.is_loopback() && reach == Reach::Cluster;
    let unusable = address.is_unspecified() || address.is_multicast() || link_local || loopback;
    (of_family && !unusable).then_some(address)
}
