//! Everything a connection asks, compiled and immutable. A change of state makes a new table; workers swap it whole.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, Transport},
    workload::Workload,
};
use foldhash::fast::FixedState;
use ipnet::IpNet;

use crate::{balance::ring::Ring, report::outcome::Outcome};

pub mod certificate;
pub mod names;
pub mod zone;

use names::Names;
use zone::Zone;

/// A map that is read on the path of a connection. Keys are our own addresses, so a fixed fast hash is safe.
pub type Map<K, V> = HashMap<K, V, FixedState>;

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
}

/// An address that clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Address and port, as the client dialled it.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
}

/// What answers at a destination.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Which kind of address it is.
    pub kind: FrontendKind,
    /// The Service port behind it; `None` on the shared HTTP port, where each request names its Service.
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
}

/// One port of one Service, with all that is needed to serve it.
#[derive(Debug)]
pub struct Target {
    /// Namespace and name of the Service.
    pub service: NamespacedName,
    /// Name of the port, may be empty.
    pub port_name: Box<str>,
    /// Number of the port at the Service's addresses.
    pub port: u16,
    /// TCP or UDP.
    pub transport: Transport,
    /// What is spoken, inside TLS where that is terminated.
    pub protocol: AppProtocol,
    /// Whether and how TLS is terminated in front of `protocol`.
    pub tls: Terminate,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Endpoints for policy Cluster (S4.1).
    pub cluster: Candidates,
    /// Endpoints of this node for policy Local (S4.3).
    pub local: Candidates,
    /// Some endpoint anywhere is ready or draining (S4.6).
    pub any_endpoint: bool,
    /// Every endpoint that is ready or draining, whatever policy and hints say, sorted: UDP flows to these live on
    /// (S16.2). Empty for TCP, whose connections always do.
    pub serving: Box<[SocketAddr]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Policy Local overflows to other nodes instead of dropping.
    pub local_overflow: bool,
    /// Who may use load-balancer addresses, per family; an empty family is open (S7.2).
    pub source_ranges: Box<[IpNet]>,
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
    /// Pod ranges of all nodes, for telling pods from outsiders (S5).
    pub pod_cidrs: Vec<IpNet>,
}

// === impl Table ===

impl Table {
    /// What answers at `address`.
    pub fn frontend(&self, address: SocketAddr, transport: Transport) -> Option<&Frontend> {
        self.frontends.get(&Destination { address, transport })
    }

    /// Whether `address` is a Pod or this node, to which external policies are short-circuited (S5.3).
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.location.addresses.contains(&address)
            || self.workloads.contains_key(&address)
            || self.location.pod_cidrs.iter().any(|cidr| cidr.contains(&address))
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

// === impl Target ===

impl Target {
    /// The endpoints for a client, or why there are none (S5.1 to S5.3, S7). `inside` says that the client is a Pod or
    /// this node.
    ///
    /// # Errors
    /// [`Outcome::SourceRange`], [`Outcome::NoEndpoints`] or [`Outcome::NoLocalEndpoints`].
    pub fn candidates(&self, kind: FrontendKind, client: IpAddr, inside: bool) -> Result<&Candidates, Outcome> {
        if kind == FrontendKind::LoadBalancer && !self.admits(client) {
            return Err(Outcome::SourceRange);
        }
        if !self.any_endpoint {
            return Err(Outcome::NoEndpoints);
        }
        let local = match kind {
            FrontendKind::ClusterIp | FrontendKind::Route => self.internal_local,
            FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                self.external_local && !inside
            }
        };
        let candidates = if local { &self.local } else { &self.cluster };
        match candidates.backends.is_empty() {
            false => Ok(candidates),
            true if local && self.local_overflow && !self.cluster.backends.is_empty() => Ok(&self.cluster),
            true => Err(if local { Outcome::NoLocalEndpoints } else { Outcome::NoEndpoints }),
        }
    }

    fn admits(&self, client: IpAddr) -> bool {
        let mut ranges =
            self.source_ranges.iter().filter(|range| range.addr().is_ipv4() == client.is_ipv4()).peekable();
        ranges.peek().is_none() || ranges.any(|range| range.contains(&client))
    }

    /// What the record of a long connection keeps: the target, without its rings. They take most of the memory, and
    /// connections outlive many tables.
    pub fn for_long(self: &Arc<Self>) -> Arc<Self> {
        if self.cluster.ring.is_none() && self.local.ring.is_none() {
            return self.clone();
        }
        Arc::new(Self {
            service: self.service.clone(),
            port_name: self.port_name.clone(),
            port: self.port,
            transport: self.transport,
            protocol: self.protocol,
            tls: Terminate::No,
            balance: self.balance.clone(),
            cluster: Candidates::default(),
            local: Candidates::default(),
            any_endpoint: self.any_endpoint,
            serving: Box::default(),
            internal_local: self.internal_local,
            external_local: self.external_local,
            local_overflow: self.local_overflow,
            source_ranges: Box::default(),
        })
    }

    /// `service.namespace`, as in span names.
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.service.name, self.service.namespace)
    }
}
