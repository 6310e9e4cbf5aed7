//! From resources to a table. Total: there is no input for which it fails, and no IO. What did not change is shared
//! with the previous table.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use api::resource::{
    certificate::Certificate,
    endpoint::Endpoint,
    name::NamespacedName,
    service::{AppProtocol, Balancing, Service, ServicePort, ServiceType, Transport},
};
use ipnet::IpNet;
use rustls::ServerConfig;

use super::{
    resources::{Dirty, Resources},
    zone::ZoneCompiler,
};
use crate::{
    balance::{eligible, ring::Ring},
    table::{
        Backend, Balance, Candidates, Destination, Frontend, FrontendKind, HashKey, Locality, Location, Map, Table,
        Target, Terminate,
        certificate::{Alpn, TlsContext},
        names::{Named, Names},
    },
};

/// What of the configuration decides the table.
#[derive(Clone, Debug)]
pub struct Here {
    /// Name of this node.
    pub node: String,
    /// Where NodePorts answer; empty means at all addresses of the node (S9.2).
    pub node_port_addresses: Vec<IpNet>,
    /// The shared HTTP port.
    pub http_port: Option<NonZeroU16>,
}

/// Compiles tables, one after the other.
pub struct Compiler {
    here: Here,
    tls: TlsContext,
    /// Compiled ports of each Service, in its order; `None` for those that are not TCP or UDP.
    targets: BTreeMap<NamespacedName, Compiled>,
    /// TLS configurations by Secret and ALPN. Rebuilt when the certificate is another one.
    configs: HashMap<(NamespacedName, Alpn), Prepared>,
    zone: ZoneCompiler,
}

/// A certificate, and the configuration made of it; `None` if it cannot be used.
type Prepared = (Arc<Certificate>, Option<Arc<ServerConfig>>);

/// A Service, compiled.
struct Compiled {
    service: Arc<Service>,
    ports: Vec<Option<Arc<Target>>>,
}

// === impl Compiler ===

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new(here: Here, tls: TlsContext) -> Self {
        Self { here, tls, targets: BTreeMap::new(), configs: HashMap::new(), zone: ZoneCompiler::default() }
    }

    /// The table for `resources`, of which `dirty` changed since the last call.
    pub fn compile(&mut self, resources: &Resources, dirty: &Dirty) -> Table {
        let location = self.location(resources);
        self.targets.retain(|name, _| !dirty.all && !dirty.services.contains(name));
        for service in resources.services() {
            if !self.targets.contains_key(&service.name) {
                let ports = service.ports.iter().map(|port| self.target(service, port, resources, &location));
                let ports = ports.collect();
                self.targets.insert(service.name.clone(), Compiled { service: service.clone(), ports });
            }
        }
        self.configs.retain(|(name, _), _| resources.certificate(name).is_some());
        let domain = resources.settings().map_or("cluster.local", |settings| &settings.cluster_domain);
        Table {
            frontends: self.frontends(&location),
            names: Names::new(domain, self.targets.values().filter_map(named)),
            zone: self.zone.compile(domain, resources, dirty),
            workloads: resources.workloads().clone(),
            location,
        }
    }

    fn location(&self, resources: &Resources) -> Location {
        let pod_cidrs = resources.nodes().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
        let Some(node) = resources.node(&self.here.node) else {
            return Location { node: self.here.node.clone(), pod_cidrs, ..Location::default() };
        };
        let addresses = node.internal_addresses.iter().chain(&node.external_addresses).copied().collect();
        Location { node: node.name.clone(), zone: node.zone.clone(), addresses, pod_cidrs }
    }

    fn target(
        &mut self,
        service: &Service,
        port: &ServicePort,
        resources: &Resources,
        here: &Location,
    ) -> Option<Arc<Target>> {
        if port.transport == Transport::Sctp || service.kind == ServiceType::ExternalName {
            return None;
        }
        let endpoints: Vec<&Endpoint> = resources.endpoints(&service.name).filter(|e| offers(e, port)).collect();
        let balance = balance(service, port);
        let candidates = |chosen: Vec<&Endpoint>| candidates(&chosen, port, &balance, here);
        let tls = match &service.tls_secret {
            Some(secret) if port.terminate_tls => self.terminate(secret, port.protocol, resources),
            _ => Terminate::No,
        };
        Some(Arc::new(Target {
            service: service.name.clone(),
            port_name: port.name.as_str().into(),
            port: port.port.get(),
            transport: port.transport,
            protocol: port.protocol,
            tls,
            cluster: candidates(eligible::cluster(&endpoints, here)),
            local: candidates(eligible::local(&endpoints, here)),
            any_endpoint: eligible::any(&endpoints),
            serving: serving(&endpoints, port),
            internal_local: service.internal_policy == api::resource::service::TrafficPolicy::Local,
            external_local: service.external_policy == api::resource::service::TrafficPolicy::Local,
            local_overflow: service.local_overflow,
            source_ranges: service.source_ranges.as_slice().into(),
            balance,
        }))
    }

    fn terminate(&mut self, secret: &NamespacedName, protocol: AppProtocol, resources: &Resources) -> Terminate {
        let alpn = if protocol.is_http() { Alpn::Http } else { Alpn::None };
        let Some(certificate) = resources.certificate(secret) else { return Terminate::Missing(secret.clone()) };
        let known = self.configs.get(&(secret.clone(), alpn)).filter(|(known, _)| known == certificate);
        let config = match known {
            Some((_, config)) => config.clone(),
            None => {
                let config = self.tls.server(certificate, alpn);
                if let Err(invalid) = &config {
                    tracing::warn!(%secret, %invalid, "certificate cannot be used; TLS connections to it are refused");
                }
                let config = config.ok();
                self.configs.insert((secret.clone(), alpn), (certificate.clone(), config.clone()));
                config
            }
        };
        config.map_or_else(|| Terminate::Missing(secret.clone()), Terminate::With)
    }

    /// Every address that clients may dial. The control plane has settled conflicts; of two claims that reach us all the
    /// same, the Service that comes first by name wins, on every node alike (S5.6).
    fn frontends(&self, here: &Location) -> Map<Destination, Frontend> {
        let mut frontends = Map::default();
        let node_addresses = here.addresses.iter().copied().filter(|address| {
            let ranges = &self.here.node_port_addresses;
            ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
        });
        let node_addresses: Vec<IpAddr> = node_addresses.collect();
        for Compiled { service, ports } in self.targets.values() {
            if matches!(service.kind, ServiceType::Headless | ServiceType::ExternalName) {
                continue;
            }
            for (port, target) in service.ports.iter().zip(ports) {
                let Some(target) = target else { continue };
                let mut claim = |address: IpAddr, number: u16, kind: FrontendKind| {
                    let address = SocketAddr::new(address, number);
                    let destination = Destination { address, transport: port.transport };
                    frontends.entry(destination).or_insert_with(|| Frontend { kind, target: Some(target.clone()) });
                };
                let number = port.port.get();
                service.cluster_ips.iter().for_each(|ip| claim(*ip, number, FrontendKind::ClusterIp));
                service.external_ips.iter().for_each(|ip| claim(*ip, number, FrontendKind::ExternalIp));
                service.load_balancer_ips.iter().for_each(|ip| claim(*ip, number, FrontendKind::LoadBalancer));
                if let Some(node_port) = port.node_port {
                    node_addresses.iter().for_each(|ip| claim(*ip, node_port.get(), FrontendKind::NodePort));
                }
            }
        }
        if let Some(port) = self.here.http_port {
            for address in &here.addresses {
                let address = SocketAddr::new(*address, port.get());
                let shared = Frontend { kind: FrontendKind::Route, target: None };
                frontends.entry(Destination { address, transport: Transport::Tcp }).or_insert(shared);
            }
        }
        frontends
    }
}

/// Whether an endpoint offers a port (S3.4).
fn offers(endpoint: &Endpoint, port: &ServicePort) -> bool {
    endpoint.ports.iter().any(|offered| offered.name == port.name && offered.transport == port.transport)
}

/// S8 first, then the annotation, then what fits the protocol.
fn balance(service: &Service, port: &ServicePort) -> Balance {
    let client = Balance::Hash(HashKey::Client);
    if service.affinity.is_some_and(|timeout| timeout > Duration::ZERO) {
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
fn candidates(chosen: &[&Endpoint], port: &ServicePort, balance: &Balance, here: &Location) -> Candidates {
    let mut backends: BTreeMap<SocketAddr, Arc<Backend>> = BTreeMap::new();
    for endpoint in chosen {
        let offered = endpoint.ports.iter().filter(|o| o.name == port.name && o.transport == port.transport);
        for offered in offered {
            let address = SocketAddr::new(endpoint.address, offered.port.get());
            let backend = || {
                Arc::new(Backend {
                    address,
                    key: endpoint.hash_key.as_str().into(),
                    pod: endpoint.pod.as_str().into(),
                    node: endpoint.node.as_str().into(),
                    zone: endpoint.zone.as_str().into(),
                    locality: locality(endpoint, here),
                    weight: endpoint.weight.get(),
                    draining: !endpoint.ready,
                })
            };
            backends.entry(address).or_insert_with(backend);
        }
    }
    let backends: Box<[Arc<Backend>]> = backends.into_values().collect();
    let hashed = matches!(balance, Balance::Hash(_)) && backends.len() > 1;
    let ring = hashed.then(|| Ring::new(backends.iter().map(|backend| (&*backend.key, backend.weight))));
    Candidates { backends, ring }
}

/// Where the endpoints of a UDP port are, as long as they serve (S16.2).
fn serving(endpoints: &[&Endpoint], port: &ServicePort) -> Box<[SocketAddr]> {
    if port.transport != Transport::Udp {
        return Box::default();
    }
    let serving = endpoints.iter().filter(|endpoint| endpoint.is_ready() || endpoint.is_draining());
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
    if !endpoint.node.is_empty() && endpoint.node == here.node {
        Locality::Node
    } else if !endpoint.zone.is_empty() && endpoint.zone == here.zone {
        Locality::Zone
    } else {
        Locality::Cluster
    }
}

/// The DNS name of a Service and what it stands for.
fn named(compiled: &Compiled) -> Option<(String, Named)> {
    let service = &compiled.service;
    let name = format!("{}.{}", service.name.name, service.name.namespace);
    if service.kind == ServiceType::ExternalName {
        return Some((name, Named::Alias(service.external_name.as_str().into())));
    }
    let tcp = compiled.ports.iter().flatten().filter(|target| target.transport == Transport::Tcp);
    Some((name, Named::Service(tcp.cloned().collect())))
}

#[cfg(test)]
mod tests;
