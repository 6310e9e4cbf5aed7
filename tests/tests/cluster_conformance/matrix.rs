//! What is asked: Services in every state, clients in every place, every kind of destination.

use std::fmt;

use tests::probe::Transport;

/// The node by which traffic from outside enters.
pub const ENTRY: u8 = 1;
/// The other node with endpoints.
pub const OTHER: u8 = 2;

/// Whether a policy confines traffic to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Cluster,
    Local,
}

/// What the conditions of an endpoint say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// Terminating, and serving yet.
    Draining,
    /// Neither ready nor terminating.
    NotReady,
    /// Terminating, and not serving any more.
    Gone,
}

/// The echo Pod of a node, as an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub node: u8,
    pub state: State,
}

/// What distinguishes a Service from the others. All have both families, TCP and UDP, and every kind of address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub internal: Policy,
    pub external: Policy,
    pub endpoints: Vec<Endpoint>,
    /// `loadBalancerSourceRanges`.
    pub ranges: &'static [&'static str],
    /// Session affinity by the client's address.
    pub sticky: bool,
    /// Annotations that are Portico's own, by what follows `portico.dev/`.
    pub annotations: &'static [(&'static str, &'static str)],
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// A Pod on this node that is no endpoint.
    Pod(u8),
    /// The echo Pod of this node, which is an endpoint.
    Echo(u8),
    /// A process in the network of this node, as Pods with `hostNetwork` are.
    Node(u8),
    /// In no cluster.
    Outside,
}

/// Which address of a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    ClusterIp,
    /// The node port on the address of the node by which traffic enters.
    NodePort,
    ExternalIp,
    LoadBalancerIp,
    /// The node port on an address that the node has beside those of its Node object.
    SecondAddress,
    /// The node port on the loopback address.
    Loopback,
    /// The ClusterIP, at a port that the Service does not have.
    UnknownPort,
    /// An address of the range of ClusterIPs that no Service has.
    Unallocated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Probe<'a> {
    pub service: &'a Service,
    pub client: Client,
    pub destination: Destination,
    pub transport: Transport,
    pub family: Family,
}

const CLIENTS: [Client; 6] = [
    Client::Pod(ENTRY),
    Client::Pod(OTHER),
    Client::Echo(ENTRY),
    Client::Node(ENTRY),
    Client::Node(OTHER),
    Client::Outside,
];
const ADDRESSES: [Destination; 4] =
    [Destination::ClusterIp, Destination::NodePort, Destination::ExternalIp, Destination::LoadBalancerIp];
/// What no Service has. That is the same for all of them, so one is asked, one with an endpoint everywhere.
const STRAY: [Destination; 4] =
    [Destination::SecondAddress, Destination::Loopback, Destination::UnknownPort, Destination::Unallocated];
const STRAY_OF: &str = "cc-both";

/// Endpoints that Services have, under the names of these states of affairs.
const ENDPOINTS: [(&str, &[Endpoint]); 9] = [
    ("none", &[]),
    ("elsewhere", &[endpoint(OTHER, State::Ready)]),
    ("here", &[endpoint(ENTRY, State::Ready)]),
    ("both", &[endpoint(ENTRY, State::Ready), endpoint(OTHER, State::Ready)]),
    ("draining-here", &[endpoint(ENTRY, State::Draining), endpoint(OTHER, State::Ready)]),
    ("all-draining", &[endpoint(ENTRY, State::Draining), endpoint(OTHER, State::Draining)]),
    ("unready", &[endpoint(ENTRY, State::NotReady)]),
    ("unready-here", &[endpoint(ENTRY, State::NotReady), endpoint(OTHER, State::Ready)]),
    ("gone", &[endpoint(ENTRY, State::Gone)]),
];

const POLICIES: [(&str, Policy, Policy); 4] = [
    ("cc", Policy::Cluster, Policy::Cluster),
    ("cl", Policy::Cluster, Policy::Local),
    ("lc", Policy::Local, Policy::Cluster),
    ("ll", Policy::Local, Policy::Local),
];

/// The range of the outside client alone, in both families.
const OUTSIDE_ONLY: &[&str] = &["10.245.0.100/32", "fd45::100/128"];
/// Nobody here, and nothing about IPv6.
const NOBODY_V4: &[&str] = &["192.0.2.0/24"];

const fn endpoint(node: u8, state: State) -> Endpoint {
    Endpoint { node, state }
}

/// All Services. Names are `<internal and external policy>-<endpoints>`, or say what is special.
pub fn services() -> Vec<Service> {
    let by_policy = POLICIES.iter().flat_map(|&(policies, internal, external)| {
        ENDPOINTS.iter().map(move |&(name, endpoints)| Service {
            internal,
            external,
            ..plain(&format!("{policies}-{name}"), endpoints)
        })
    });
    let here = [endpoint(ENTRY, State::Ready)];
    let elsewhere = [endpoint(OTHER, State::Ready)];
    let both = [here[0], elsewhere[0]];
    let special = [
        Service { ranges: OUTSIDE_ONLY, ..plain("ranges-outside", &here) },
        Service { ranges: OUTSIDE_ONLY, external: Policy::Local, ..plain("ranges-outside-local", &here) },
        Service { ranges: NOBODY_V4, ..plain("ranges-nobody", &here) },
        Service { ranges: NOBODY_V4, ..plain("ranges-no-endpoints", &[]) },
        Service { sticky: true, ..plain("sticky", &both) },
        Service { annotations: &[("client-address", "keep")], ..plain("keep", &here) },
        Service {
            annotations: &[("local-overflow", "true")],
            external: Policy::Local,
            ..plain("overflow-external", &elsewhere)
        },
        Service {
            annotations: &[("local-overflow", "true")],
            internal: Policy::Local,
            ..plain("overflow-internal", &elsewhere)
        },
    ];
    by_policy.chain(special).collect()
}

fn plain(name: &str, endpoints: &[Endpoint]) -> Service {
    Service {
        name: name.to_owned(),
        internal: Policy::Cluster,
        external: Policy::Cluster,
        endpoints: endpoints.to_vec(),
        ranges: &[],
        sticky: false,
        annotations: &[],
    }
}

/// Every question about these Services.
pub fn probes(services: &[Service]) -> Vec<Probe<'_>> {
    let addresses = services.iter().flat_map(|service| ADDRESSES.map(|destination| (service, destination)));
    let stray = services.iter().filter(|service| service.name == STRAY_OF);
    let stray = stray.flat_map(|service| STRAY.map(|destination| (service, destination)));
    let mut probes = Vec::new();
    for (service, destination) in addresses.chain(stray) {
        for client in CLIENTS.into_iter().filter(|client| client.reaches(destination)) {
            for transport in [Transport::Tcp, Transport::Udp] {
                for family in [Family::V4, Family::V6] {
                    probes.push(Probe { service, client, destination, transport, family });
                }
            }
        }
    }
    probes
}

// === impl Client ===

impl Client {
    /// Whether such an address leads to a node from here: everybody has a loopback address of their own.
    fn reaches(self, destination: Destination) -> bool {
        destination != Destination::Loopback || matches!(self, Client::Node(_))
    }

    /// The node that it is on.
    pub fn node(self) -> Option<u8> {
        match self {
            Client::Pod(node) | Client::Echo(node) | Client::Node(node) => Some(node),
            Client::Outside => None,
        }
    }

    /// The node whose proxy decides.
    pub fn enters_by(self, destination: Destination) -> u8 {
        match destination {
            // It is the address of this node, whoever sends there.
            Destination::NodePort | Destination::SecondAddress => ENTRY,
            _ => self.node().unwrap_or(ENTRY),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Pod(node) => write!(f, "pod on node-{node}"),
            Client::Echo(node) => write!(f, "endpoint on node-{node}"),
            Client::Node(node) => write!(f, "process of node-{node}"),
            Client::Outside => f.write_str("outside"),
        }
    }
}

impl fmt::Display for Probe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, client, destination, transport, family } = self;
        write!(f, "{}: {client} to {destination:?} {transport:?} {family:?}", service.name)
    }
}
