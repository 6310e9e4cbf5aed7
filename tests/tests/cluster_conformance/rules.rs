//! What has to come of a question, worked out from the rules of Kubernetes Services. Written from the rules alone, and
//! compared with kube-proxy, so that a mistake here shows there.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::matrix::{Client, Destination, Endpoint, Family, Policy, Probe, Service, State};

/// Whose address the endpoint sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Client,
    /// An address of the node that the traffic enters by.
    Node,
}

/// What comes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The echo Pod of a node answered, and saw this source.
    Answer(u8, Source),
    /// The client learns at once that nobody is there.
    Refused,
    Silence,
    /// What no rule has.
    Other(String),
}

/// What may come of a question, and the rule that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub any_of: Vec<Outcome>,
    pub rule: &'static str,
}

/// Whose rules: annotations of Portico's mean nothing to kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Kube,
    Portico,
}

/// Where a connection comes from, seen from the node that decides (S5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Pod,
    Node,
    External,
}

/// What has to come of a question. `client` is the address that it comes from.
pub fn expected(probe: &Probe<'_>, client: IpAddr, proxy: Proxy) -> Expected {
    let Probe { service, destination, .. } = *probe;
    let here = probe.client.enters_by(destination);
    let from = from(probe.client, here);
    let only = |outcome, rule| Expected { any_of: vec![outcome], rule };
    match destination {
        Destination::SecondAddress => return only(Outcome::Refused, "S9.2 other address"),
        Destination::Loopback => return only(Outcome::Refused, "S9.3 loopback"),
        Destination::UnknownPort => return only(Outcome::Refused, "S5.4 unknown port"),
        Destination::Unallocated => return only(Outcome::Silence, "S5.4 unallocated address"),
        Destination::LoadBalancerIp if !admits(service, client, probe.family) => {
            return only(Outcome::Silence, "S7.3 source ranges");
        }
        _ => {}
    }
    if cluster(service).is_empty() {
        return only(Outcome::Refused, "S5.1 no endpoints");
    }
    let (is_local, rule) = match (destination, service.internal, service.external) {
        (Destination::ClusterIp, Policy::Local, _) => (true, "S5.2 internal Local"),
        (Destination::ClusterIp, Policy::Cluster, _) => (false, "S5.2 internal Cluster"),
        (_, _, Policy::Cluster) => (false, "S5.2 external Cluster"),
        (_, _, Policy::Local) if from == From::External => (true, "S5.2 external Local"),
        (_, _, Policy::Local) => (false, "S5.3 short circuit"),
    };
    let overflows = proxy == Proxy::Portico && has(service, "local-overflow", "true");
    let (nodes, rule) = match if is_local { local(service, here) } else { cluster(service) } {
        nodes if !nodes.is_empty() => (nodes, rule),
        _ if overflows => (cluster(service), "local-overflow"),
        _ => return only(Outcome::Silence, "S5.1 none usable here"),
    };
    let mut any_of = Vec::new();
    let mut bypassed = false;
    for node in nodes {
        let source = source(probe, from, node, proxy);
        let passes = node == here || probe.client.node() == Some(here);
        if source == Source::Node || passes {
            any_of.push(Outcome::Answer(node, source));
            continue;
        }
        // The endpoint would answer the client past the node that the question went through. What kube-proxy changed stays
        // changed then, and the client does not know who answers. With Portico the agent of that node brings the answer back.
        bypassed = true;
        any_of.push(match proxy {
            Proxy::Kube => Outcome::Silence,
            Proxy::Portico => Outcome::Answer(node, source),
        });
    }
    Expected { any_of, rule: if bypassed { "S6.2 answer passes by" } else { rule } }
}

fn from(client: Client, here: u8) -> From {
    match client {
        Client::Pod(_) | Client::Echo(_) => From::Pod,
        Client::Node(node) if node == here => From::Node,
        Client::Node(_) | Client::Outside => From::External,
    }
}

/// S7: a family without ranges is open.
fn admits(service: &Service, client: IpAddr, family: Family) -> bool {
    let ranges = service.ranges.iter().map(|range| range.parse::<IpNet>().expect("ranges are right"));
    let of_family: Vec<IpNet> =
        ranges.filter(|range| matches!(range, IpNet::V6(_)) == (family == Family::V6)).collect();
    of_family.is_empty() || of_family.iter().any(|range| range.contains(&client))
}

/// S4.1: nodes of the ready endpoints, or if there are none, of those that are draining.
fn cluster(service: &Service) -> Vec<u8> {
    ready_or_draining(&service.endpoints)
}

/// S4.3: the same of those here.
fn local(service: &Service, here: u8) -> Vec<u8> {
    let local: Vec<Endpoint> = service.endpoints.iter().copied().filter(|endpoint| endpoint.node == here).collect();
    ready_or_draining(&local)
}

fn ready_or_draining(endpoints: &[Endpoint]) -> Vec<u8> {
    let of = |state| endpoints.iter().filter(move |endpoint| endpoint.state == state).map(|endpoint| endpoint.node);
    let ready: Vec<u8> = of(State::Ready).collect();
    if ready.is_empty() { of(State::Draining).collect() } else { ready }
}

/// S6, for the echo Pod of a node.
fn source(probe: &Probe<'_>, from: From, node: u8, proxy: Proxy) -> Source {
    let hairpin = probe.client == Client::Echo(node);
    // Beyond what S6 promises, Portico keeps every client that has an address of its own.
    let keeps_all = proxy == Proxy::Portico && !has(probe.service, "client-address", "pool");
    let kept = match (from, probe.destination) {
        (From::Node, _) => false,
        _ if hairpin => false,
        _ if keeps_all => true,
        (From::Pod, Destination::ClusterIp) => true,
        (From::External, Destination::ClusterIp) => false,
        (From::Pod | From::External, _) => probe.service.external == Policy::Local,
    };
    if kept { Source::Client } else { Source::Node }
}

fn has(service: &Service, annotation: &str, value: &str) -> bool {
    service.annotations.contains(&(annotation, value))
}

// === impl Outcome ===

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answer(node, source) => write!(f, "echo-{node} sees {source}"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Silence => f.write_str("silence"),
            Outcome::Other(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Client => "client",
            Source::Node => "node",
        })
    }
}
