//! A question to what the zone says of it: pure.
//!
//! Schema 1.1.0 of "Kubernetes DNS-Based Service Discovery"; where it leaves something open, as CoreDNS answers.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use api::resource::workload::Workload;
use fastrand::Rng;
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, HINFO, NS, PTR, SOA, SRV, TXT},
    },
};

use crate::table::{
    Map,
    zone::{Content, Entry, Host, Port, Zone},
};

/// How long an answer may be kept, in seconds, also that there is none. It is what CoreDNS says.
pub const TTL: u32 = 5;

/// How long the version of the schema may be kept, in seconds.
const VERSION_TTL: u32 = 28_800;

/// How far ExternalName may lead from one Service to the next.
const ALIAS_DEPTH: usize = 8;

/// With more targets than this their addresses are left out; the client asks for those it wants.
const ADDRESSES_OF: usize = 32;

/// Whether Pods have names made of their addresses, `a-b-c-d.NAMESPACE.pod.DOMAIN` (S19.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None has.
    #[default]
    Disabled,
    /// Pods that exist have.
    Verified,
}

/// What an answer depends on.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Names of the cluster.
    pub zone: &'a Zone,
    /// Pods by address.
    pub workloads: &'a Map<IpAddr, Arc<Workload>>,
    /// Whether Pods have names.
    pub pods: PodNames,
    /// Addresses of this server, which is the name server of the zone.
    pub servers: &'a [IpAddr],
}

/// What the zone says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// All there is to say.
    Here(Answer),
    /// An alias leads out of the zone: what was found so far, and the name to ask others for.
    Elsewhere(Vec<Record>, Name),
    /// Not a name of ours.
    NotOurs,
}

/// Sections of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How the question ended.
    pub code: ResponseCode,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// Start of authority, if nothing was found.
    pub authorities: Vec<Record>,
    /// Addresses that will be asked for next.
    pub additionals: Vec<Record>,
}

/// What stands at a name.
enum Node<'a> {
    /// Nothing, and nothing below it.
    Missing,
    /// Nothing, but there is something below it.
    Between,
    Apex,
    Version,
    NameServer,
    Service(&'a Entry),
    Host(&'a Host),
    /// `_port._proto` of a Service.
    Ports(&'a Entry, &'a [u8], &'a [u8]),
    Pod(IpAddr),
}

/// Answers `query`, in random order where there are several records.
pub fn answer(query: &Query, known: &Known<'_>, random: &mut Rng) -> Answered {
    if !known.zone.domain.zone_of(query.name()) {
        return reverse(query, known);
    }
    let (kind, mut found, mut owner) = (query.query_type(), Vec::new(), query.name().clone());
    for _ in 0..ALIAS_DEPTH {
        let lower = owner.to_lowercase();
        let labels: Vec<&[u8]> = lower.iter().rev().skip(usize::from(known.zone.domain.num_labels())).collect();
        let node = node(&labels, known);
        if let Node::Service(Entry { content: Content::Alias(target), .. }) = &node
            && kind != RecordType::ANY
        {
            found.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME {
                return Answered::Here(Answer { answers: found, ..Answer::default() });
            }
            if !known.zone.domain.zone_of(target) {
                return Answered::Elsewhere(found, target.clone());
            }
            owner = target.clone();
            continue;
        }
        return Answered::Here(at(&node, kind, owner, found, known, random));
    }
    // A circle of aliases is a mistake of whoever wrote them, and no name that does not exist.
    Answered::Here(Answer { code: ResponseCode::ServFail, ..Answer::default() })
}

/// The answer from what stands at the end of the aliases in `found`.
fn at(
    node: &Node<'_>,
    kind: RecordType,
    owner: Name,
    found: Vec<Record>,
    known: &Known<'_>,
    random: &mut Rng,
) -> Answer {
    let authority = || vec![start_of_authority(known.zone.domain.clone(), known.zone)];
    if matches!(node, Node::Missing) {
        let code = ResponseCode::NXDomain;
        return Answer { code, answers: found, authorities: authority(), ..Answer::default() };
    }
    let mut data = match (node, kind) {
        // One record says that we do not list everything (RFC 8482).
        (_, RecordType::ANY) => vec![RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()))],
        (Node::Apex, RecordType::SOA) => {
            return Answer { answers: vec![start_of_authority(owner, known.zone)], ..Answer::default() };
        }
        (Node::Apex, RecordType::NS) => vec![RData::NS(NS(name_server(&known.zone.domain)))],
        (Node::Version, RecordType::TXT) => vec![RData::TXT(TXT::new(vec!["1.1.0".to_owned()]))],
        (_, RecordType::A | RecordType::AAAA) => addresses(node, kind, known),
        (_, RecordType::SRV) => services(node),
        _ => vec![],
    };
    if data.is_empty() {
        return Answer { answers: found, authorities: authority(), ..Answer::default() };
    }
    random.shuffle(&mut data);
    let ttl = if matches!(data.first(), Some(RData::TXT(_))) { VERSION_TTL } else { TTL };
    let additionals = additionals(node, &data, known);
    let mut answers = found;
    answers.extend(data.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data)));
    Answer { answers, additionals, ..Answer::default() }
}

/// What stands at the name of these labels, the one next to the domain first.
fn node<'a>(labels: &[&'a [u8]], known: &Known<'a>) -> Node<'a> {
    let zone = known.zone;
    match *labels {
        [] => Node::Apex,
        [b"dns-version"] => Node::Version,
        [b"dns", b"ns"] => Node::NameServer,
        [b"dns" | b"svc" | b"pod"] => Node::Between,
        [b"svc", namespace] => between(zone.has_namespace(namespace)),
        [b"svc", namespace, service, ref rest @ ..] => {
            let entry = zone.service(service, namespace);
            entry.map_or(Node::Missing, |entry| below(entry, rest))
        }
        [b"pod", ref rest @ ..] if known.pods == PodNames::Verified => pod(rest, known),
        _ => Node::Missing,
    }
}

fn between(exists: bool) -> Node<'static> {
    if exists { Node::Between } else { Node::Missing }
}

/// What stands below the name of a Service, or at it.
fn below<'a>(entry: &'a Entry, labels: &[&'a [u8]]) -> Node<'a> {
    match *labels {
        // A headless Service without a ready endpoint has no name (S19.4).
        [] if entry.content == Content::Headless && entry.hosts.is_empty() => Node::Missing,
        [] => Node::Service(entry),
        [proto] if proto.starts_with(b"_") => between(ports(entry).any(|(port, _)| port.is_over(proto))),
        [label] => entry.host(label).map_or(Node::Missing, Node::Host),
        [proto, port] if ports(entry).any(|(known, _)| known.is(port, proto)) => Node::Ports(entry, port, proto),
        _ => Node::Missing,
    }
}

fn pod<'a>(labels: &[&[u8]], known: &Known<'a>) -> Node<'a> {
    let found = match *labels {
        [namespace] => return between(known.zone.has_namespace(namespace)),
        [namespace, label] => undashed(label).filter(|address| {
            let owner = known.workloads.get(address);
            owner.is_some_and(|owner| owner.pod.namespace.as_bytes() == namespace)
        }),
        _ => None,
    };
    found.map_or(Node::Missing, Node::Pod)
}

/// The address that a label stands for.
fn undashed(label: &[u8]) -> Option<IpAddr> {
    let label = std::str::from_utf8(label).ok()?;
    let ipv4 = label.matches('-').count() == 3 && !label.contains("--");
    label.replace('-', if ipv4 { "." } else { ":" }).parse().ok()
}

/// The named ports of a Service, each with the name to dial for it.
fn ports(entry: &Entry) -> impl Iterator<Item = (&Port, &Name)> {
    let (own, hosts): (&[Port], &[Host]) = match &entry.content {
        Content::ClusterIps(_, ports) => (ports, &[]),
        Content::Headless => (&[], &entry.hosts),
        Content::Alias(_) => (&[], &[]),
    };
    let of_hosts = hosts.iter().flat_map(|host| host.ports.iter().map(move |port| (port, &host.name)));
    own.iter().map(|port| (port, &entry.name)).chain(of_hosts)
}

fn addresses(node: &Node<'_>, kind: RecordType, known: &Known<'_>) -> Vec<RData> {
    let of_family = |address: &&IpAddr| address.is_ipv4() == (kind == RecordType::A);
    let data = |addresses: &[IpAddr]| addresses.iter().filter(of_family).map(|address| RData::from(*address)).collect();
    match node {
        Node::NameServer => data(known.servers),
        Node::Host(host) => data(&host.addresses),
        Node::Pod(address) => data(&[*address]),
        Node::Service(entry) | Node::Ports(entry, ..) => match &entry.content {
            Content::ClusterIps(addresses, _) => data(addresses),
            Content::Headless | Content::Alias(_) => data(&of_hosts(entry, node)),
        },
        Node::Missing | Node::Between | Node::Apex | Node::Version => vec![],
    }
}

/// Addresses of the endpoints of a headless Service, or of those that have the port which is asked for.
fn of_hosts(entry: &Entry, node: &Node<'_>) -> Vec<IpAddr> {
    let wanted = |host: &&Host| match node {
        Node::Ports(_, port, proto) => host.ports.iter().any(|known| known.is(port, proto)),
        _ => true,
    };
    // An address may have two names, and is listed once.
    let all: BTreeSet<IpAddr> =
        entry.hosts.iter().filter(wanted).flat_map(|host| host.addresses.iter().copied()).collect();
    all.into_iter().collect()
}

fn services(node: &Node<'_>) -> Vec<RData> {
    let record = |(port, target): (&Port, &Name)| RData::SRV(SRV::new(0, 100, port.number, target.clone()));
    match node {
        Node::Service(entry) => ports(entry).map(record).collect(),
        Node::Ports(entry, port, proto) => {
            ports(entry).filter(|(known, _)| known.is(port, proto)).map(record).collect()
        }
        Node::Host(host) => host.ports.iter().map(|port| record((port, &host.name))).collect(),
        _ => vec![],
    }
}

/// Addresses of the names in `data`, of both families.
fn additionals(node: &Node<'_>, data: &[RData], known: &Known<'_>) -> Vec<Record> {
    let mut records = Vec::new();
    let mut add = |name: &Name, addresses: &[IpAddr]| {
        let record = |address: &IpAddr| Record::from_rdata(name.clone(), TTL, RData::from(*address));
        records.extend(addresses.iter().map(record));
    };
    match node {
        Node::Apex if matches!(data.first(), Some(RData::NS(_))) => {
            add(&name_server(&known.zone.domain), known.servers)
        }
        Node::Host(host) if matches!(data.first(), Some(RData::SRV(_))) => add(&host.name, &host.addresses),
        Node::Service(entry) | Node::Ports(entry, ..) if matches!(data.first(), Some(RData::SRV(_))) => {
            match &entry.content {
                Content::ClusterIps(addresses, _) => add(&entry.name, addresses),
                Content::Headless if data.len() <= ADDRESSES_OF => {
                    let asked =
                        |host: &&Host| data.iter().any(|d| matches!(d, RData::SRV(srv) if srv.target == host.name));
                    entry.hosts.iter().filter(asked).for_each(|host| add(&host.name, &host.addresses));
                }
                Content::Headless | Content::Alias(_) => {}
            }
        }
        _ => {}
    }
    records
}

/// Names of addresses. Of what we do not know, only an address of the cluster's own ranges surely has no name.
fn reverse(query: &Query, known: &Known<'_>) -> Answered {
    let Ok(network) = query.name().parse_arpa_name() else { return Answered::NotOurs };
    if network.prefix_len() != network.max_prefix_len() {
        return Answered::NotOurs;
    }
    let address = network.addr();
    let names = known.zone.names_of(address);
    let range = known.zone.range_of(address);
    if names.is_empty() && range.is_none() {
        return Answered::NotOurs;
    }
    if !names.is_empty() && query.query_type() == RecordType::PTR {
        let pointer = |name: &Name| Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(name.clone())));
        return Answered::Here(Answer { answers: names.iter().map(pointer).collect(), ..Answer::default() });
    }
    // The zone is the part of the name that belongs to the range, in whole labels.
    let (bits, suffix) = if address.is_ipv4() { (8, 2) } else { (4, 2) };
    let labels = range.map_or(query.name().num_labels(), |range| range.prefix_len().div_ceil(bits) + suffix);
    let authorities = vec![start_of_authority(query.name().trim_to(usize::from(labels)), known.zone)];
    let code = if names.is_empty() { ResponseCode::NXDomain } else { ResponseCode::NoError };
    Answered::Here(Answer { code, authorities, ..Answer::default() })
}

fn start_of_authority(owner: Name, zone: &Zone) -> Record {
    let hostmaster = zone.domain.prepend_label("hostmaster").unwrap_or_else(|_| zone.domain.clone());
    let data = SOA::new(name_server(&zone.domain), hostmaster, zone.serial, 7_200, 1_800, 86_400, TTL);
    Record::from_rdata(owner, TTL, RData::SOA(data))
}

/// `ns.dns.DOMAIN`.
fn name_server(domain: &Name) -> Name {
    let name = domain.prepend_label("dns").and_then(|name| name.prepend_label("ns"));
    // The domain is so long that nothing fits below it.
    name.unwrap_or_else(|_| domain.clone())
}

#[cfg(test)]
mod tests;
