//! From resources to a table. Total: there is no input for which it fails, and no IO. What did not change is shared
//! with the previous table.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use api::resource::{
    certificate::Certificate,
    name::NamespacedName,
    service::{AppProtocol, Service, ServicePort, ServiceType, Transport},
};
use ipnet::IpNet;
use rustls::ServerConfig;

use super::{
    hop::HopCompiler,
    resources::{Dirty, Resources},
    zone::ZoneCompiler,
};
use crate::{
    balance::eligible,
    hop::State,
    table::{
        Destination, Family, Frontend, FrontendKind, HealthCheck, Location, Map, Table, Target, Terminate,
        certificate::{Alpn, TlsContext},
        hop::Exit,
        names::{Named, Names},
    },
};

mod target;

/// What of the configuration decides the table.
#[derive(Clone, Debug)]
pub struct Here {
    /// Name of this node.
    pub node: String,
    /// Where NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// The shared HTTP port.
    pub http_port: Option<NonZeroU16>,
}

/// At which of the node's addresses NodePorts answer (S9.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// At all of them.
    All,
    /// At the first one of each family.
    Primary,
    /// At those within these ranges. Loopback is among them only here (S9.3).
    Within(Vec<IpNet>),
}

/// Compiles tables, one after the other.
pub struct Compiler {
    here: Here,
    tls: TlsContext,
    /// Compiled ports of each Service.
    targets: BTreeMap<NamespacedName, Compiled>,
    /// TLS configurations by Secret and ALPN. Rebuilt when the certificate is another one.
    configs: HashMap<(NamespacedName, Alpn), Prepared>,
    zone: ZoneCompiler,
    hop: HopCompiler,
}

/// A certificate, and the configuration made of it; `None` if it cannot be used.
type Prepared = (Arc<Certificate>, Option<Arc<ServerConfig>>);

/// A Service, compiled.
struct Compiled {
    service: Arc<Service>,
    /// Its families, first choice first (S2.2); none if it is an alias.
    families: Vec<Family>,
    /// In the order of the Service, and for each port in the order of its families.
    ports: Vec<Vec<Arc<Target>>>,
    /// The endpoints of this node, whatever policy and hints say, with their ports.
    exits: Vec<Exit>,
    health_check: Option<HealthCheck>,
}

// === impl Compiler ===

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new(here: Here, tls: TlsContext) -> Self {
        Self {
            here,
            tls,
            targets: BTreeMap::new(),
            configs: HashMap::new(),
            zone: ZoneCompiler::default(),
            hop: HopCompiler::default(),
        }
    }

    /// Has connections handed to the agents of other nodes, and by them, at this port of every node.
    pub fn with_hop(self, port: NonZeroU16, state: Arc<State>) -> Self {
        Self { hop: HopCompiler::new(port, state), ..self }
    }

    /// The table for `resources`, of which `dirty` changed since the last call.
    pub fn compile(&mut self, resources: &Resources, dirty: &Dirty) -> Table {
        let location = self.location(resources);
        self.targets.retain(|name, _| !dirty.all && !dirty.services.contains(name));
        for service in resources.services() {
            if !self.targets.contains_key(&service.name) {
                let compiled = self.service(service, resources, &location);
                self.targets.insert(service.name.clone(), compiled);
            }
        }
        self.configs.retain(|(name, _), _| resources.certificate(name).is_some());
        let domain = resources.settings().map_or("cluster.local", |settings| &settings.cluster_domain);
        let node_port_addresses = self.here.node_port_addresses.of(&location.addresses);
        let exits = self.targets.values().flat_map(|compiled| &compiled.exits);
        let hop = self.hop.compile(&location, resources, exits);
        let mut frontends = self.frontends(&location, &node_port_addresses);
        if let Some((hop, address)) = hop.as_ref().zip(location.addresses.first()) {
            let address = SocketAddr::new(*address, hop.port.get());
            for transport in [Transport::Tcp, Transport::Udp] {
                let agents = Frontend { kind: FrontendKind::Hop, target: None };
                frontends.entry(Destination { address, transport }).or_insert(agents);
            }
        }
        let services = || self.targets.values().map(|compiled| &compiled.service);
        Table {
            frontends,
            hop,
            names: Names::new(domain, self.targets.values().filter_map(named)),
            zone: self.zone.compile(domain, resources, dirty),
            workloads: resources.workloads().clone(),
            cluster_ips: services().flat_map(|service| service.cluster_ips.iter().copied()).collect(),
            service_cidrs: resources
                .settings()
                .map_or_else(Box::default, |known| known.service_cidrs.as_slice().into()),
            node_port_range: resources.settings().and_then(|settings| {
                let (first, last) = settings.node_ports;
                NonZeroU16::new(first).zip(NonZeroU16::new(last))
            }),
            health_checks: self.targets.values().filter_map(|compiled| compiled.health_check.clone()).collect(),
            node_port_addresses: node_port_addresses.into(),
            location,
        }
    }

    fn location(&self, resources: &Resources) -> Location {
        let mut pod_cidrs =
            IpNet::aggregate(&resources.nodes().flat_map(|node| node.pod_cidrs.iter().copied()).collect());
        pod_cidrs.sort_unstable_by_key(IpNet::network);
        let Some(node) = resources.node(&self.here.node) else {
            return Location { node: self.here.node.clone(), pod_cidrs, ..Location::default() };
        };
        let addresses = node.internal_addresses.iter().chain(&node.external_addresses).copied().collect();
        Location { node: node.name.clone(), zone: node.zone.clone(), addresses, pod_cidrs, leaving: node.leaving }
    }

    fn service(&mut self, service: &Arc<Service>, resources: &Resources, here: &Location) -> Compiled {
        let families = families(service);
        let mut port = |port: &ServicePort| -> Vec<Arc<Target>> {
            let tls = match &service.tls_secret {
                Some(secret) if port.terminate_tls => self.terminate(secret, port.protocol, resources),
                _ => Terminate::No,
            };
            let all = || resources.endpoints(&service.name);
            families
                .iter()
                .map(|family| Arc::new(target::of(service, port, *family, tls.clone(), all(), here)))
                .collect()
        };
        let ports: Vec<Vec<Arc<Target>>> = service.ports.iter().map(&mut port).collect();
        let exits = if self.hop.is_on() {
            let pairs = service.ports.iter().zip(&ports);
            let targets = pairs.flat_map(|(port, targets)| targets.iter().map(move |target| (port, target)));
            targets
                .flat_map(|(port, target)| target::exits(port, target, resources.endpoints(&service.name), here))
                .collect()
        } else {
            Vec::new()
        };
        let health_check = service.health_check_node_port.map(|port| HealthCheck {
            service: service.name.clone(),
            port,
            local_endpoints: eligible::local_ready_addresses(resources.endpoints(&service.name), here),
        });
        Compiled { service: service.clone(), families, ports, exits, health_check }
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
    fn frontends(&self, here: &Location, node_ports_at: &[IpAddr]) -> Map<Destination, Frontend> {
        let mut frontends = Map::default();
        for Compiled { service, families, ports, .. } in self.targets.values() {
            if matches!(service.kind, ServiceType::Headless | ServiceType::ExternalName) {
                continue;
            }
            for (port, targets) in service.ports.iter().zip(ports) {
                let mut claim = |address: IpAddr, number: u16, kind: FrontendKind| {
                    // Without a ClusterIP of the family the Service does not exist in it (S2.2).
                    let Some(index) = families.iter().position(|family| *family == Family::of(address)) else { return };
                    let destination =
                        Destination { address: SocketAddr::new(address, number), transport: port.transport };
                    let target = Some(targets[index].clone());
                    frontends.entry(destination).or_insert(Frontend { kind, target });
                };
                let number = port.port.get();
                service.cluster_ips.iter().for_each(|ip| claim(*ip, number, FrontendKind::ClusterIp));
                // An address that is both is guarded by the source ranges (S7.1).
                service.load_balancer_ips.iter().for_each(|ip| claim(*ip, number, FrontendKind::LoadBalancer));
                service.external_ips.iter().for_each(|ip| claim(*ip, number, FrontendKind::ExternalIp));
                if let Some(node_port) = port.node_port {
                    node_ports_at.iter().for_each(|ip| claim(*ip, node_port.get(), FrontendKind::NodePort));
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

// === impl NodePortAddresses ===

impl NodePortAddresses {
    /// Which of a node's addresses, primary first, answer.
    fn of(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        match self {
            NodePortAddresses::All => addresses.to_vec(),
            NodePortAddresses::Primary => {
                let first = |family| addresses.iter().copied().find(|address| Family::of(*address) == family);
                Family::ALL.into_iter().filter_map(first).collect()
            }
            NodePortAddresses::Within(ranges) => {
                // Nodes of manifests share one machine by having loopback addresses; what all of them have is nobody's.
                let shared = addresses.iter().any(IpAddr::is_loopback);
                let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                let loopback = loopback.into_iter().filter(|_| !shared);
                let all = addresses.iter().copied().chain(loopback);
                all.filter(|address| ranges.iter().any(|range| range.contains(address))).collect()
            }
        }
    }
}

/// The families that a Service is served in, first choice first. One without ClusterIPs is reached by name only, at
/// endpoints of any family.
fn families(service: &Service) -> Vec<Family> {
    match service.kind {
        ServiceType::ExternalName => vec![],
        ServiceType::Headless => Family::ALL.to_vec(),
        ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {
            let mut families: Vec<Family> = service.cluster_ips.iter().map(|address| Family::of(*address)).collect();
            families.dedup();
            families
        }
    }
}

/// The DNS name of a Service and what it stands for.
fn named(compiled: &Compiled) -> Option<(String, Named)> {
    let service = &compiled.service;
    let name = format!("{}.{}", service.name.name, service.name.namespace);
    if service.kind == ServiceType::ExternalName {
        return Some((name, Named::Alias(service.external_name.as_str().into())));
    }
    let tcp = compiled.ports.iter().filter_map(|targets| {
        let usable = targets.iter().find(|target| target.any_endpoint).or(targets.first());
        usable.filter(|target| target.transport == Transport::Tcp).cloned()
    });
    Some((name, Named::Service(tcp.collect())))
}

#[cfg(test)]
mod tests;
