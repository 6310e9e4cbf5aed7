//! Everything a connection asks, compiled and immutable. A change of state makes a new table; workers swap it whole.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, ClientAddress, Transport},
    workload::Workload,
};
use foldhash::fast::FixedState;
use ipnet::IpNet;

use crate::balance::{pin::Tag, ring::Ring};

pub mod certificate;
pub mod hop;
pub mod names;
pub mod verdict;
pub mod zone;

use hop::Hop;
use names::Names;
use zone::Zone;

/// A map that is read on the path of a connection. Keys are our own addresses, so a fixed fast hash is safe.
pub type Map<K, V> = HashMap<K, V, FixedState>;

/// As [`Map`], without values.
pub type Set<K> = HashSet<K, FixedState>;

/// The compiled state of one commit, for one node.
#[derive(Debug, Default)]
pub struct Table {
    /// Where this node is.
    pub location: Location,
    /// What is served at which address.
    pub frontends: Map<Destination, Frontend>,
    /// DNS names of Services, as requests carry them.
    pub names: Names,
    /// What DNS answers; `None` before the first commit of the gateway.
    pub zone: Option<Arc<Zone>>,
    /// Which Pod owns an address.
    pub workloads: Arc<Map<IpAddr, Arc<Workload>>>,
    /// Every ClusterIP, whatever its ports (S5.4).
    pub cluster_ips: Set<IpAddr>,
    /// Ranges of ClusterIPs; empty when unknown (S1.4).
    pub service_cidrs: Box<[IpNet]>,
    /// First and last node port that the cluster gives out, if known (S9.4).
    pub node_port_range: Option<(NonZeroU16, NonZeroU16)>,
    /// Addresses of this node at which node ports and health-check node ports answer (S9.2).
    pub node_port_addresses: Box<[IpAddr]>,
    /// The health-check node ports, by Service (S12).
    pub health_checks: Box<[HealthCheck]>,
    /// How connections are handed to the agents of other nodes, where they are.
    pub hop: Option<Arc<Hop>>,
}

/// A health-check node port and what it answers (S12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The Service.
    pub service: NamespacedName,
    /// Where it is asked.
    pub port: NonZeroU16,
    /// Distinct addresses of this node's ready endpoints, over all ports (S12.3), by [`Family`]: who asks by one family is
    /// told of those that this family's traffic can go to, and an endpoint of both families is one.
    pub local_endpoints: [usize; 2],
}

/// Which of the two traffic policies of a Service is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `internalTrafficPolicy`: ClusterIPs.
    Internal,
    /// `externalTrafficPolicy`: every other address.
    External,
}

/// An IP family. A Service is served once in each family it has a ClusterIP of (S2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// An address that clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Address and port, as the client dialled it.
    pub address: SocketAddr,
    /// Protocol below the port.
    pub transport: Transport,
}

/// What answers at a destination.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Which kind of address it is.
    pub kind: FrontendKind,
    /// The Service port behind it; `None` on the shared HTTP port, where each request names its Service, and on the port
    /// for other agents, where each connection does.
    pub target: Option<Arc<Target>>,
}

/// Kind of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FrontendKind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
    /// The shared HTTP port, routed by name.
    Route,
    /// The port where agents of other nodes hand over connections.
    Hop,
}

/// One port of one Service in one IP family, with all that is needed to serve it.
#[derive(Debug)]
pub struct Target {
    /// Namespace and name of the Service.
    pub service: NamespacedName,
    /// Name of the port, may be empty.
    pub port_name: Box<str>,
    /// Number of the port at the Service's addresses.
    pub port: u16,
    /// Protocol below the port. SCTP has verdicts, but no listener (S17.3).
    pub transport: Transport,
    /// Its addresses and endpoints are of this family.
    pub family: Family,
    /// What is spoken, inside TLS where that is terminated.
    pub protocol: AppProtocol,
    /// Whether and how TLS is terminated in front of `protocol`.
    pub tls: Terminate,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// `sessionAffinity: ClientIP` (S8).
    pub affinity: Option<Affinity>,
    /// Whether endpoints see the client's address, as far as this can be chosen.
    pub client_address: ClientAddress,
    /// Endpoints for policy Cluster (S4.1); none if that is not used ([`Target::uses_cluster`]).
    pub cluster: Candidates,
    /// Endpoints of this node for policy Local (S4.3); none if that is not used ([`Target::uses_local`]).
    pub local: Candidates,
    /// Some endpoint anywhere is ready or draining (S4.6).
    pub any_endpoint: bool,
    /// Every endpoint that serves, whatever policy and hints say, sorted: UDP flows to these live on (S16.2). Empty for
    /// TCP, whose connections always do.
    pub serving: Box<[SocketAddr]>,
    /// It has a node port, a load-balancer address or an external IP (S2.8).
    pub external: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Policy Local overflows to other nodes instead of dropping.
    pub local_overflow: bool,
    /// Who may use load-balancer addresses; nobody named means everybody (S7.2).
    pub source_ranges: Box<[IpNet]>,
    /// Load-balancer addresses, which are the source where this node dials them (S7.4). None where no range admits the
    /// node.
    pub own_sources: Box<[IpAddr]>,
}

/// `sessionAffinity: ClientIP` of a port (S8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// How long a client keeps its endpoint after its latest connection.
    pub timeout: Duration,
    /// Stands for the Service port, whatever address of it is dialled (S8.2).
    pub port: u64,
}

/// TLS termination of a port.
#[derive(Clone, Debug)]
pub enum Terminate {
    /// Bytes are passed through.
    No,
    /// With this configuration.
    With(Arc<rustls::ServerConfig>),
    /// The Service names a Secret that is not there, or not usable.
    Missing(NamespacedName),
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The better of two by requests in flight.
    LeastRequest,
    /// Evenly.
    Random,
    /// In turn, per worker.
    RoundRobin,
    /// By the ring, with this key.
    Hash(HashKey),
}

/// What is hashed for the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// Client address (S8.2).
    Client,
    /// Value of a header, else the client address.
    Header(http::HeaderName),
    /// Value of a cookie, else the client address.
    Cookie(Box<str>),
}

/// Endpoints that may be dialled, in the order of their addresses.
#[derive(Debug, Default)]
pub struct Candidates {
    /// The endpoints.
    pub backends: Box<[Arc<Backend>]>,
    /// Present if the target hashes and there is a choice.
    pub ring: Option<Ring>,
    /// Present if the target has affinity: the place of each endpoint by its tag, in the order of tags.
    pub tags: Box<[(Tag, u32)]>,
}

/// An endpoint port to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where to dial.
    pub address: SocketAddr,
    /// Its identity on the ring.
    pub key: Box<str>,
    /// Name of its Pod, may be empty.
    pub pod: Box<str>,
    /// Its node, may be empty.
    pub node: Box<str>,
    /// Its zone, may be empty.
    pub zone: Box<str>,
    /// How near it is.
    pub locality: Locality,
    /// Share of choice, at least 1.
    pub weight: u32,
    /// It is being deleted: no new request over a pooled connection once others are ready (S16.4).
    pub draining: bool,
}

/// How near an endpoint is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Locality {
    Node,
    Zone,
    Cluster,
}

/// Where a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Name of the Node object.
    pub node: String,
    /// Its zone, empty if unknown.
    pub zone: String,
    /// Its addresses, primary first.
    pub addresses: Vec<IpAddr>,
    /// Pod ranges of all nodes, for telling pods from outsiders (S5): disjoint, and in order.
    pub pod_cidrs: Vec<IpNet>,
    /// It is being deleted, by itself or by the cluster autoscaler (S13.2).
    pub leaving: bool,
}

// === impl Table ===

impl Table {
    /// What answers at `address`.
    pub fn frontend(&self, address: SocketAddr, transport: Transport) -> Option<&Frontend> {
        self.frontends.get(&Destination { address, transport })
    }

    /// How many Service ports have endpoints, but none on this node, where the policy for `from` is Local (S20).
    pub fn without_local_endpoints(&self, family: Family, from: Origin) -> usize {
        // Each has exactly one ClusterIP in its family.
        let ports = self.frontends.values().filter(|frontend| frontend.kind == FrontendKind::ClusterIp);
        let targets = ports.filter_map(|frontend| frontend.target.as_ref());
        let applies = |target: &Target| match from {
            Origin::Internal => target.internal_local,
            Origin::External => target.external_local && target.external,
        };
        let missing = |target: &Target| target.any_endpoint && target.local.backends.is_empty();
        targets.filter(|target| target.family == family && applies(target) && missing(target)).count()
    }
}

// === impl FrontendKind ===

impl FrontendKind {
    /// `portico.listener.kind`.
    pub fn label(self) -> &'static str {
        match self {
            FrontendKind::ClusterIp => "cluster_ip",
            FrontendKind::NodePort => "node_port",
            FrontendKind::LoadBalancer => "load_balancer",
            FrontendKind::ExternalIp => "external_ip",
            FrontendKind::Route => "route",
            FrontendKind::Hop => "hop",
        }
    }
}

// === impl Origin ===

impl Origin {
    /// `traffic_policy` of kube-proxy's metrics.
    pub fn label(self) -> &'static str {
        match self {
            Origin::Internal => "internal",
            Origin::External => "external",
        }
    }
}

// === impl Family ===

impl Family {
    /// Both, in the order in which they are tried where either would do.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// `ip_family` of kube-proxy's metrics.
    pub fn label(self) -> &'static str {
        match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        }
    }
}

// === impl Locality ===

impl Locality {
    /// `portico.backend.locality`.
    pub fn label(self) -> &'static str {
        match self {
            Locality::Node => "node",
            Locality::Zone => "zone",
            Locality::Cluster => "cluster",
        }
    }
}

// === impl Backend ===

impl Backend {
    /// An endpoint of which no more is known than its address, by which the ring knows it too.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            key: address.to_string().into(),
            pod: Box::default(),
            node: Box::default(),
            zone: Box::default(),
            locality: Locality::Cluster,
            weight: 1,
            draining: false,
        }
    }
}

// === impl Candidates ===

impl Candidates {
    /// These endpoints, in the order of their addresses.
    pub fn new(backends: impl IntoIterator<Item = Arc<Backend>>) -> Self {
        Self { backends: backends.into_iter().collect(), ..Self::default() }
    }

    /// Adds the ring, for those who hash.
    pub fn with_ring(mut self) -> Self {
        self.ring = Some(Ring::new(self.backends.iter().map(|backend| (&*backend.key, backend.weight))));
        self
    }

    /// Adds the tags by which affinity finds endpoints again.
    pub fn with_tags(mut self) -> Self {
        let tags = self.backends.iter().zip(0..).map(|(backend, place)| (Tag::of(backend.address), place));
        let mut tags: Vec<(Tag, u32)> = tags.collect();
        tags.sort_unstable();
        self.tags = tags.into();
        self
    }

    /// The endpoint of a tag.
    pub fn tagged(&self, tag: Tag) -> Option<&Arc<Backend>> {
        let at = self.tags.binary_search_by_key(&tag, |(tag, _)| *tag).ok()?;
        self.backends.get(self.tags[at].1 as usize)
    }

    /// Whether there is an endpoint beside these.
    pub fn has_other(&self, tried: &[SocketAddr]) -> bool {
        self.backends.iter().any(|backend| !tried.contains(&backend.address))
    }
}

// === impl Target ===

impl Target {
    /// A port as its Service makes it by saying nothing more: opaque, only inside the cluster, without endpoints.
    pub fn new(service: NamespacedName, port: u16, transport: Transport, family: Family) -> Self {
        Self {
            service,
            port_name: Box::default(),
            port,
            transport,
            family,
            protocol: AppProtocol::Opaque,
            tls: Terminate::No,
            balance: Balance::Random,
            affinity: None,
            client_address: ClientAddress::default(),
            cluster: Candidates::default(),
            local: Candidates::default(),
            any_endpoint: false,
            serving: Box::default(),
            external: false,
            internal_local: false,
            external_local: false,
            local_overflow: false,
            source_ranges: Box::default(),
            own_sources: Box::default(),
        }
    }

    /// Whether the endpoints for policy Cluster are used by anybody (S2.9).
    pub fn uses_cluster(&self) -> bool {
        !self.internal_local || self.external || self.local_overflow
    }

    /// Whether the endpoints for policy Local are used by anybody (S2.9).
    pub fn uses_local(&self) -> bool {
        self.internal_local || (self.external_local && self.external)
    }

    /// What the record of a long connection keeps: the target, without its rings. They take most of the memory, and
    /// connections outlive many tables.
    pub fn for_long(self: &Arc<Self>) -> Arc<Self> {
        if self.cluster.ring.is_none() && self.local.ring.is_none() {
            return self.clone();
        }
        Arc::new(Self {
            port_name: self.port_name.clone(),
            protocol: self.protocol,
            balance: self.balance.clone(),
            affinity: self.affinity,
            client_address: self.client_address,
            any_endpoint: self.any_endpoint,
            external: self.external,
            internal_local: self.internal_local,
            external_local: self.external_local,
            local_overflow: self.local_overflow,
            ..Self::new(self.service.clone(), self.port, self.transport, self.family)
        })
    }

    /// `service.namespace`, as in span names.
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.service.name, self.service.namespace)
    }
}
