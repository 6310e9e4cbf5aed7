//! One port of one Service in one IP family: the endpoints that each policy gives, and what decides between them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use api::resource::{
    endpoint::Endpoint,
    service::{Balancing, Service, ServicePort, TrafficPolicy, Transport},
};
use ipnet::IpNet;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    balance::eligible,
    table::{
        Affinity, Backend, Balance, Candidates, Family, HashKey, Locality, Location, Target, Terminate, hop::Exit,
    },
};

/// The target of a port. `endpoints` are all of the Service.
pub(super) fn of<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    tls: Terminate,
    endpoints: impl Iterator<Item = &'a Endpoint>,
    here: &Location,
) -> Target {
    let endpoints = endpoints.filter(|endpoint| Family::of(endpoint.address) == family);
    let endpoints: Vec<&Endpoint> = endpoints.filter(|endpoint| offers(endpoint, port)).collect();
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    let load_balancer_ips: Box<[IpAddr]> = service.load_balancer_ips.iter().filter(of_family).copied().collect();
    let external_ip = service.external_ips.iter().any(|address| of_family(&address));
    let source_ranges = service.source_ranges.iter().copied().filter(|range| Family::of(range.addr()) == family);
    let mut target = Target {
        port_name: port.name.as_str().into(),
        protocol: port.protocol,
        tls,
        balance: balance(service, port),
        affinity: affinity(service, port),
        client_address: service.client_address,
        any_endpoint: eligible::any(&endpoints),
        serving: serving(&endpoints, port),
        external: port.node_port.is_some() || !load_balancer_ips.is_empty() || external_ip,
        internal_local: service.internal_policy == TrafficPolicy::Local,
        external_local: service.external_policy == TrafficPolicy::Local,
        local_overflow: service.local_overflow,
        source_ranges: source_ranges.collect(),
        ..Target::new(service.name.clone(), port.port.get(), port.transport, family)
    };
    // S7.4. Without an address of its own the node is not known to be among those admitted.
    let admitted = |primary: &IpAddr| admits(&target.source_ranges, *primary);
    if here.addresses.iter().find(of_family).is_some_and(admitted) {
        target.own_sources = load_balancer_ips;
    }
    if target.uses_cluster() {
        target.cluster = candidates(&eligible::cluster(&endpoints, here), port, &target, here);
    }
    if target.uses_local() {
        target.local = candidates(&eligible::local(&endpoints, here), port, &target, here);
    }
    target
}

/// Whether ranges of one family hold an address; no ranges are no restriction (S7.2).
fn admits(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.contains(&address))
}

/// Whether an endpoint offers a port (S3.4).
fn offers(endpoint: &Endpoint, port: &ServicePort) -> bool {
    endpoint.ports.iter().any(|offered| offered.name == port.name && offered.transport == port.transport)
}

/// S8, for a port.
fn affinity(service: &Service, port: &ServicePort) -> Option<Affinity> {
    let timeout = service.affinity.filter(|timeout| !timeout.is_zero())?;
    let port = xxh3_64(format!("{}/{}/{}", service.name, port.name, port.transport.as_str()).as_bytes());
    Some(Affinity { timeout, port })
}

/// S8 first, then the annotation, then what fits the protocol.
pub(super) fn balance(service: &Service, port: &ServicePort) -> Balance {
    let client = Balance::Hash(HashKey::Client);
    if affinity(service, port).is_some() {
        return client;
    }
    let http = port.protocol.is_http();
    match &service.balancing {
        Some(Balancing::LeastRequest) => Balance::LeastRequest,
        Some(Balancing::Random) => Balance::Random,
        Some(Balancing::RoundRobin) => Balance::RoundRobin,
        Some(Balancing::ClientHash) => client,
        // Without HTTP there is no header to hash; the client address is what is left of the intention.
        Some(Balancing::HeaderHash(_) | Balancing::CookieHash(_)) if !http => client,
        Some(Balancing::HeaderHash(name)) => name.parse().map_or(client, |name| Balance::Hash(HashKey::Header(name))),
        Some(Balancing::CookieHash(name)) => Balance::Hash(HashKey::Cookie(name.as_str().into())),
        None if http => Balance::LeastRequest,
        None => Balance::Random,
    }
}

/// The dialled ports of the chosen endpoints, sorted, each address once.
fn candidates(chosen: &[&Endpoint], port: &ServicePort, target: &Target, here: &Location) -> Candidates {
    let mut backends: BTreeMap<SocketAddr, Arc<Backend>> = BTreeMap::new();
    for endpoint in chosen {
        let offered = endpoint.ports.iter().filter(|o| o.name == port.name && o.transport == port.transport);
        for offered in offered {
            let address = SocketAddr::new(endpoint.address, offered.port.get());
            let backend = || Arc::new(backend(endpoint, address, here));
            backends.entry(address).or_insert_with(backend);
        }
    }
    let mut candidates = Candidates::new(backends.into_values());
    if matches!(target.balance, Balance::Hash(_)) && candidates.backends.len() > 1 {
        candidates = candidates.with_ring();
    }
    if target.affinity.is_some() { candidates.with_tags() } else { candidates }
}

/// The endpoints of this node that serve a port, whatever policy and hints say: the agents of other nodes choose by theirs.
pub(super) fn exits<'a>(
    port: &ServicePort,
    target: &Arc<Target>,
    endpoints: impl Iterator<Item = &'a Endpoint>,
    here: &Location,
) -> impl Iterator<Item = Exit> {
    let serves = |endpoint: &&Endpoint| endpoint.is_ready() || endpoint.is_draining();
    let of_family = |endpoint: &&Endpoint| Family::of(endpoint.address) == target.family;
    let local = endpoints.filter(|endpoint| eligible::is_local(endpoint, here)).filter(of_family).filter(serves);
    local.flat_map(move |endpoint| {
        let offered = endpoint.ports.iter().filter(|o| o.name == port.name && o.transport == port.transport);
        offered.map(move |offered| {
            let address = SocketAddr::new(endpoint.address, offered.port.get());
            Exit { target: target.clone(), backend: Arc::new(backend(endpoint, address, here)) }
        })
    })
}

fn backend(endpoint: &Endpoint, address: SocketAddr, here: &Location) -> Backend {
    Backend {
        address,
        key: endpoint.hash_key.as_str().into(),
        pod: endpoint.pod.as_str().into(),
        node: endpoint.node.as_str().into(),
        zone: endpoint.zone.as_str().into(),
        locality: locality(endpoint, here),
        weight: endpoint.weight.get(),
        draining: !endpoint.ready,
    }
}

/// Where the endpoints of a UDP port are that serve, which is all that a flow asks of its endpoint (S16.2).
fn serving(endpoints: &[&Endpoint], port: &ServicePort) -> Box<[SocketAddr]> {
    if port.transport != Transport::Udp {
        return Box::default();
    }
    let serving = endpoints.iter().filter(|endpoint| endpoint.serving);
    let mut addresses: Vec<SocketAddr> = serving
        .flat_map(|endpoint| {
            let offered = endpoint.ports.iter().filter(|o| o.name == port.name && o.transport == port.transport);
            offered.map(|offered| SocketAddr::new(endpoint.address, offered.port.get()))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

fn locality(endpoint: &Endpoint, here: &Location) -> Locality {
    if eligible::is_local(endpoint, here) {
        Locality::Node
    } else if !endpoint.zone.is_empty() && endpoint.zone == here.zone {
        Locality::Zone
    } else {
        Locality::Cluster
    }
}
