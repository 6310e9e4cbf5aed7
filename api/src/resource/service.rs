//! A Kubernetes Service as a data plane needs it.

use std::{net::IpAddr, num::NonZeroU16, time::Duration};

use ipnet::IpNet;

use super::{
    invalid::{self, Invalid},
    name::NamespacedName,
};
use crate::proto::discovery as wire;

/// A Service without its endpoints, with all defaults filled in (S2.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Type, with headless ones told apart.
    pub kind: ServiceType,
    /// ClusterIPs, primary family first.
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs (S10).
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer addresses that nodes answer themselves (S2.5).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the load-balancer addresses; empty means everybody (S7).
    pub source_ranges: Vec<IpNet>,
    /// Ports in the order of the Service.
    pub ports: Vec<ServicePort>,
    /// Concerns ClusterIPs only (S5.2).
    pub internal_policy: TrafficPolicy,
    /// Concerns node ports, external IPs and load-balancer IPs (S5.2).
    pub external_policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP` with its timeout (S8).
    pub affinity: Option<Duration>,
    /// What the annotation asks for; `None` leaves it to the protocol.
    pub balancing: Option<Balancing>,
    /// The Secret, in the namespace of the Service, whose certificate terminates TLS.
    pub tls_secret: Option<NamespacedName>,
    /// Health-check port for external load balancers (S12).
    pub health_check_node_port: Option<NonZeroU16>,
    /// Target of [`ServiceType::ExternalName`], else empty.
    pub external_name: String,
    /// Whether endpoints are dialled as the client.
    pub client_address: ClientAddress,
    /// External policy Local may overflow to other nodes.
    pub local_overflow: bool,
    /// `loadBalancerClass`, else empty.
    pub load_balancer_class: String,
}

/// One port of a Service; its key is (name, transport) (S2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for a single unnamed port.
    pub name: String,
    /// Protocol below the port.
    pub transport: Transport,
    /// Port at the addresses of the Service.
    pub port: NonZeroU16,
    /// Port at the addresses of nodes.
    pub node_port: Option<NonZeroU16>,
    /// What the port speaks (S17.2), inside TLS where that is terminated.
    pub protocol: AppProtocol,
    /// TLS is terminated in front of `protocol`, with the certificate that the Service names.
    pub terminate_tls: bool,
}

/// Type of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
    Headless,
}

/// Protocol below a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// What a TCP port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Bytes that are not looked at.
    Opaque,
    /// HTTP/1.1 to endpoints; clients may use HTTP/2 by prior knowledge or ALPN as well.
    Http,
    /// HTTP/2 to endpoints.
    Http2,
    /// As `Http2`; failures carry a grpc-status.
    Grpc,
    /// TLS; passed through unless the Service names a certificate.
    Tls,
}

/// Which endpoints may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Balancing {
    /// The better of two random endpoints by requests in flight.
    LeastRequest,
    /// Any endpoint, evenly.
    Random,
    /// One after the other, per worker.
    RoundRobin,
    /// The ring, by client address.
    ClientHash,
    /// The ring, by the value of this header (lower case).
    HeaderHash(String),
    /// The ring, by the value of this cookie.
    CookieHash(String),
}

/// Whether endpoints see the client's address as the source of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientAddress {
    /// Keep it for connections and flows; for requests, which share connections, where kube-proxy does (S6).
    #[default]
    Auto,
    /// Always keep it.
    Keep,
    /// Share connections.
    Pool,
}

// === impl Transport ===

impl Transport {
    /// Upper-case name as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        }
    }

    pub(super) fn from_wire(field: &str, value: i32) -> Result<Self, Invalid> {
        match wire::Transport::try_from(value) {
            Ok(wire::Transport::Tcp) => Ok(Transport::Tcp),
            Ok(wire::Transport::Udp) => Ok(Transport::Udp),
            Ok(wire::Transport::Sctp) => Ok(Transport::Sctp),
            _ => Err(Invalid::new(field, format!("{value} is not a known transport"))),
        }
    }

    pub(super) fn wire(self) -> wire::Transport {
        match self {
            Transport::Tcp => wire::Transport::Tcp,
            Transport::Udp => wire::Transport::Udp,
            Transport::Sctp => wire::Transport::Sctp,
        }
    }
}

// === impl AppProtocol ===

impl AppProtocol {
    /// Whether requests, not connections, are balanced.
    pub fn is_http(self) -> bool {
        matches!(self, AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc)
    }

    fn from_wire(field: &str, value: i32) -> Result<Self, Invalid> {
        match wire::AppProtocol::try_from(value) {
            Ok(wire::AppProtocol::Unspecified) => Ok(AppProtocol::Opaque),
            Ok(wire::AppProtocol::Http) => Ok(AppProtocol::Http),
            Ok(wire::AppProtocol::Http2) => Ok(AppProtocol::Http2),
            Ok(wire::AppProtocol::Grpc) => Ok(AppProtocol::Grpc),
            Ok(wire::AppProtocol::Tls) => Ok(AppProtocol::Tls),
            Err(_) => Err(Invalid::new(field, format!("{value} is not a known application protocol"))),
        }
    }

    fn wire(self) -> wire::AppProtocol {
        match self {
            AppProtocol::Opaque => wire::AppProtocol::Unspecified,
            AppProtocol::Http => wire::AppProtocol::Http,
            AppProtocol::Http2 => wire::AppProtocol::Http2,
            AppProtocol::Grpc => wire::AppProtocol::Grpc,
            AppProtocol::Tls => wire::AppProtocol::Tls,
        }
    }
}

// === impl Balancing ===

impl Balancing {
    fn from_wire(balancing: wire::Balancing) -> Result<Option<Self>, Invalid> {
        let key = |value: String| invalid::required("balancing.key", value);
        Ok(Some(match wire::BalancingPolicy::try_from(balancing.policy) {
            Ok(wire::BalancingPolicy::Unspecified) => return Ok(None),
            Ok(wire::BalancingPolicy::LeastRequest) => Balancing::LeastRequest,
            Ok(wire::BalancingPolicy::Random) => Balancing::Random,
            Ok(wire::BalancingPolicy::RoundRobin) => Balancing::RoundRobin,
            Ok(wire::BalancingPolicy::ClientHash) => Balancing::ClientHash,
            Ok(wire::BalancingPolicy::HeaderHash) => Balancing::HeaderHash(key(balancing.key)?),
            Ok(wire::BalancingPolicy::CookieHash) => Balancing::CookieHash(key(balancing.key)?),
            Err(_) => {
                return Err(Invalid::new("balancing.policy", format!("{} is not a known policy", balancing.policy)));
            }
        }))
    }

    fn wire(&self) -> wire::Balancing {
        let (policy, key) = match self {
            Balancing::LeastRequest => (wire::BalancingPolicy::LeastRequest, ""),
            Balancing::Random => (wire::BalancingPolicy::Random, ""),
            Balancing::RoundRobin => (wire::BalancingPolicy::RoundRobin, ""),
            Balancing::ClientHash => (wire::BalancingPolicy::ClientHash, ""),
            Balancing::HeaderHash(name) => (wire::BalancingPolicy::HeaderHash, name.as_str()),
            Balancing::CookieHash(name) => (wire::BalancingPolicy::CookieHash, name.as_str()),
        };
        wire::Balancing { policy: policy as i32, key: key.to_owned() }
    }
}

// === impl Service ===

impl Service {
    /// A Service without ports and addresses, and everything else as the API server fills it in (S2.10).
    pub fn new(name: NamespacedName, kind: ServiceType) -> Self {
        Self {
            name,
            kind,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            balancing: None,
            tls_secret: None,
            health_check_node_port: None,
            external_name: String::new(),
            client_address: ClientAddress::Auto,
            local_overflow: false,
            load_balancer_class: String::new(),
        }
    }
}

impl TryFrom<wire::Service> for Service {
    type Error = Invalid;

    fn try_from(service: wire::Service) -> Result<Self, Invalid> {
        let name = NamespacedName::parse(&service.namespace, &service.name)?;
        let kind = match wire::ServiceType::try_from(service.r#type) {
            Ok(wire::ServiceType::ClusterIp) => ServiceType::ClusterIp,
            Ok(wire::ServiceType::NodePort) => ServiceType::NodePort,
            Ok(wire::ServiceType::LoadBalancer) => ServiceType::LoadBalancer,
            Ok(wire::ServiceType::ExternalName) => ServiceType::ExternalName,
            Ok(wire::ServiceType::Headless) => ServiceType::Headless,
            _ => return Err(Invalid::new("type", format!("{} is not a known Service type", service.r#type))),
        };
        let ports = service.ports.into_iter().enumerate();
        let ports = ports
            .map(|(index, port)| ServicePort::try_from(port).map_err(|error| error.within(format!("ports[{index}]"))))
            .collect::<Result<Vec<_>, _>>()?;
        let tls_secret = (!service.tls_secret.is_empty())
            .then(|| NamespacedName::parse(&service.namespace, &service.tls_secret))
            .transpose()
            .map_err(|error| error.within("tls_secret"))?;
        let client_address = match wire::ClientAddress::try_from(service.client_address) {
            Ok(wire::ClientAddress::Unspecified) => ClientAddress::Auto,
            Ok(wire::ClientAddress::Keep) => ClientAddress::Keep,
            Ok(wire::ClientAddress::Pool) => ClientAddress::Pool,
            Err(_) => return Err(Invalid::new("client_address", "is not a known mode")),
        };
        Ok(Service {
            kind,
            cluster_ips: invalid::addresses("cluster_ips", &service.cluster_ips)?,
            external_ips: invalid::addresses("external_ips", &service.external_ips)?,
            load_balancer_ips: invalid::addresses("load_balancer_ips", &service.load_balancer_ips)?,
            source_ranges: invalid::networks("source_ranges", &service.source_ranges)?,
            ports,
            internal_policy: traffic_policy("internal_traffic_policy", service.internal_traffic_policy)?,
            external_policy: traffic_policy("external_traffic_policy", service.external_traffic_policy)?,
            affinity: (service.affinity_seconds > 0).then(|| Duration::from_secs(service.affinity_seconds.into())),
            balancing: service.balancing.map(Balancing::from_wire).transpose()?.flatten(),
            tls_secret,
            health_check_node_port: invalid::optional_port("health_check_node_port", service.health_check_node_port)?,
            external_name: service.external_name,
            client_address,
            local_overflow: service.local_overflow,
            load_balancer_class: service.load_balancer_class,
            name,
        })
    }
}

impl From<&Service> for wire::Service {
    fn from(service: &Service) -> Self {
        let strings = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::to_string).collect();
        wire::Service {
            namespace: service.name.namespace.to_string(),
            name: service.name.name.to_string(),
            r#type: match service.kind {
                ServiceType::ClusterIp => wire::ServiceType::ClusterIp,
                ServiceType::NodePort => wire::ServiceType::NodePort,
                ServiceType::LoadBalancer => wire::ServiceType::LoadBalancer,
                ServiceType::ExternalName => wire::ServiceType::ExternalName,
                ServiceType::Headless => wire::ServiceType::Headless,
            } as i32,
            cluster_ips: strings(&service.cluster_ips),
            external_ips: strings(&service.external_ips),
            load_balancer_ips: strings(&service.load_balancer_ips),
            source_ranges: service.source_ranges.iter().map(IpNet::to_string).collect(),
            ports: service.ports.iter().map(wire::ServicePort::from).collect(),
            internal_traffic_policy: wire_policy(service.internal_policy),
            external_traffic_policy: wire_policy(service.external_policy),
            affinity_seconds: service.affinity.map_or(0, |timeout| timeout.as_secs().clamp(1, 86_400) as u32),
            balancing: service.balancing.as_ref().map(Balancing::wire),
            tls_secret: service.tls_secret.as_ref().map_or_else(String::new, |secret| secret.name.to_string()),
            health_check_node_port: service.health_check_node_port.map_or(0, |port| port.get().into()),
            external_name: service.external_name.clone(),
            client_address: match service.client_address {
                ClientAddress::Auto => wire::ClientAddress::Unspecified,
                ClientAddress::Keep => wire::ClientAddress::Keep,
                ClientAddress::Pool => wire::ClientAddress::Pool,
            } as i32,
            local_overflow: service.local_overflow,
            load_balancer_class: service.load_balancer_class.clone(),
        }
    }
}

// === impl ServicePort ===

impl TryFrom<wire::ServicePort> for ServicePort {
    type Error = Invalid;

    fn try_from(port: wire::ServicePort) -> Result<Self, Invalid> {
        Ok(ServicePort {
            name: port.name,
            transport: Transport::from_wire("transport", port.transport)?,
            port: invalid::port("port", port.port)?,
            node_port: invalid::optional_port("node_port", port.node_port)?,
            protocol: AppProtocol::from_wire("app_protocol", port.app_protocol)?,
            terminate_tls: port.terminate_tls,
        })
    }
}

impl From<&ServicePort> for wire::ServicePort {
    fn from(port: &ServicePort) -> Self {
        wire::ServicePort {
            name: port.name.clone(),
            transport: port.transport.wire() as i32,
            port: port.port.get().into(),
            node_port: port.node_port.map_or(0, |port| port.get().into()),
            app_protocol: port.protocol.wire() as i32,
            terminate_tls: port.terminate_tls,
        }
    }
}

fn traffic_policy(field: &str, value: i32) -> Result<TrafficPolicy, Invalid> {
    match wire::TrafficPolicy::try_from(value) {
        Ok(wire::TrafficPolicy::Unspecified | wire::TrafficPolicy::Cluster) => Ok(TrafficPolicy::Cluster),
        Ok(wire::TrafficPolicy::Local) => Ok(TrafficPolicy::Local),
        Err(_) => Err(Invalid::new(field, format!("{value} is not a known traffic policy"))),
    }
}

fn wire_policy(policy: TrafficPolicy) -> i32 {
    match policy {
        TrafficPolicy::Cluster => wire::TrafficPolicy::Cluster as i32,
        TrafficPolicy::Local => wire::TrafficPolicy::Local as i32,
    }
}
