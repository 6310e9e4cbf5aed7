//! What DNS answers for the cluster domain, compiled: names of Services and of their endpoints, and addresses back to
//! names (S19).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use api::resource::{
    endpoint::Endpoint,
    name::NamespacedName,
    service::{Service, ServiceType, Transport},
};
use foldhash::fast::FixedState;
use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::Map;

/// The cluster domain and all that is known below it, immutable.
#[derive(Debug)]
pub struct Zone {
    /// The cluster domain, fully qualified and in lower case.
    pub domain: Name,
    /// Grows whenever the content changes.
    pub serial: u32,
    /// Ranges of Pods and Services, sorted. An address in one of them belongs to somebody we know, or to nobody.
    pub ranges: Box<[IpNet]>,
    /// By `service.namespace`.
    services: Map<Box<[u8]>, Arc<Entry>>,
    namespaces: HashSet<Box<[u8]>, FixedState>,
    /// What an address is called: the Service whose ClusterIP it is, else the endpoints there that have names.
    pointers: Map<IpAddr, Box<[Name]>>,
}

/// The names of one Service.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// `service.namespace.svc.DOMAIN`.
    pub name: Name,
    /// What the name itself stands for.
    pub content: Content,
    /// Ready endpoints that have a name of their own, in the order of their labels. For a Service with ClusterIPs these
    /// are only the endpoints that were given a host name.
    pub hosts: Box<[Host]>,
}

/// What the name of a Service stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// Its ClusterIPs, with or without endpoints.
    ClusterIps(Box<[IpAddr]>, Box<[Port]>),
    /// Its ready endpoints.
    Headless,
    /// ExternalName: another name.
    Alias(Name),
}

/// Endpoints that share a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Host {
    /// The label in front of the name of the Service, in lower case.
    pub label: Box<[u8]>,
    /// The full name.
    pub name: Name,
    /// Addresses, sorted.
    pub addresses: Box<[IpAddr]>,
    /// Named ports, sorted.
    pub ports: Box<[Port]>,
}

/// A port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name, in lower case and not empty.
    pub name: Box<str>,
    /// Protocol below it.
    pub transport: Transport,
    /// Its number.
    pub number: u16,
}

// === impl Zone ===

impl Zone {
    /// A zone of these Services. Namespaces of Services exist even if nobody says so.
    pub fn new<'a>(
        domain: Name,
        serial: u32,
        ranges: Box<[IpNet]>,
        entries: &'a BTreeMap<NamespacedName, Arc<Entry>>,
        namespaces: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let services = entries.iter().map(|(name, entry)| (key(&name.name, &name.namespace), entry.clone())).collect();
        let of_services = entries.keys().map(|name| &*name.namespace);
        let namespaces = namespaces.into_iter().chain(of_services);
        let namespaces = namespaces.map(|name| name.to_ascii_lowercase().into_bytes().into()).collect();
        Self { domain, serial, ranges, services, namespaces, pointers: pointers(entries.values()) }
    }

    /// The Service of this name, in lower case.
    pub fn service(&self, service: &[u8], namespace: &[u8]) -> Option<&Entry> {
        let mut key = Vec::with_capacity(service.len() + 1 + namespace.len());
        key.extend_from_slice(service);
        key.push(b'.');
        key.extend_from_slice(namespace);
        self.services.get(&*key).map(|entry| &**entry)
    }

    /// Whether there is a namespace of this name, in lower case.
    pub fn has_namespace(&self, namespace: &[u8]) -> bool {
        self.namespaces.contains(namespace)
    }

    /// What an address is called.
    pub fn names_of(&self, address: IpAddr) -> &[Name] {
        self.pointers.get(&address).map_or(&[], |names| names)
    }

    /// The range of Pods or Services that an address is in.
    pub fn range_of(&self, address: IpAddr) -> Option<&IpNet> {
        self.ranges.iter().find(|range| range.contains(&address))
    }
}

fn key(service: &str, namespace: &str) -> Box<[u8]> {
    format!("{service}.{namespace}").to_ascii_lowercase().into_bytes().into()
}

fn pointers<'a>(entries: impl Iterator<Item = &'a Arc<Entry>> + Clone) -> Map<IpAddr, Box<[Name]>> {
    let mut pointers: BTreeMap<IpAddr, Vec<Name>> = BTreeMap::new();
    for entry in entries.clone() {
        if let Content::ClusterIps(addresses, _) = &entry.content {
            // An address is one Service's only. Of two that claim it, the first by name has it, as for its traffic.
            for address in addresses {
                pointers.entry(*address).or_insert_with(|| vec![entry.name.clone()]);
            }
        }
    }
    let services: BTreeSet<IpAddr> = pointers.keys().copied().collect();
    for host in entries.flat_map(|entry| &entry.hosts) {
        for address in host.addresses.iter().filter(|address| !services.contains(address)) {
            pointers.entry(*address).or_default().push(host.name.clone());
        }
    }
    pointers.into_iter().map(|(address, names)| (address, names.into())).collect()
}

// === impl Entry ===

impl Entry {
    /// The names of a Service with these endpoints; `None` if DNS cannot say any of it.
    pub fn new<'a>(
        domain: &Name,
        service: &Service,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Option<Self> {
        let labels = ["svc", &*service.name.namespace, &*service.name.name];
        let name =
            labels.into_iter().try_fold(domain.clone(), |name, label| name.prepend_label(label.as_bytes())).ok()?;
        let name = name.to_lowercase();
        let content = match service.kind {
            ServiceType::ExternalName => Content::Alias(alias(&service.external_name)?),
            ServiceType::Headless => Content::Headless,
            ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {
                let ports =
                    service.ports.iter().filter_map(|port| Port::new(&port.name, port.transport, port.port.get()));
                Content::ClusterIps(service.cluster_ips.as_slice().into(), ports.collect())
            }
        };
        let named = |endpoint: &&Endpoint| match content {
            Content::Headless => true,
            Content::ClusterIps(..) => !endpoint.hostname.is_empty(),
            Content::Alias(_) => false,
        };
        let hosts = hosts(&name, endpoints.into_iter().filter(|endpoint| endpoint.ready).filter(named));
        Some(Self { name, content, hosts })
    }

    /// The endpoints of this label, in lower case.
    pub fn host(&self, label: &[u8]) -> Option<&Host> {
        self.hosts.binary_search_by(|host| (*host.label).cmp(label)).ok().map(|at| &self.hosts[at])
    }
}

/// The target of an ExternalName. An address is not a name, and Kubernetes does not make one of it.
fn alias(external_name: &str) -> Option<Name> {
    if external_name.is_empty() || external_name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let mut name = Name::from_ascii(external_name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn hosts<'a>(service: &Name, endpoints: impl Iterator<Item = &'a Endpoint>) -> Box<[Host]> {
    #[derive(Default)]
    struct Shared {
        addresses: BTreeSet<IpAddr>,
        ports: BTreeSet<Port>,
    }
    let mut by_label: BTreeMap<String, Shared> = BTreeMap::new();
    for endpoint in endpoints {
        let label = match endpoint.hostname.as_str() {
            "" => dashed(endpoint.address),
            hostname => hostname.to_ascii_lowercase(),
        };
        let shared = by_label.entry(label).or_default();
        shared.addresses.insert(endpoint.address);
        let ports = endpoint.ports.iter().filter_map(|port| Port::new(&port.name, port.transport, port.port.get()));
        shared.ports.extend(ports);
    }
    let host = |(label, shared): (String, Shared)| {
        Some(Host {
            name: service.prepend_label(label.as_bytes()).ok()?,
            label: label.into_bytes().into(),
            addresses: shared.addresses.into_iter().collect(),
            ports: shared.ports.into_iter().collect(),
        })
    };
    by_label.into_iter().filter_map(host).collect()
}

/// The label that stands for an address, as CoreDNS makes it: dashes for dots and colons, and no dash at the end.
fn dashed(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

// === impl Port ===

impl Port {
    fn new(name: &str, transport: Transport, number: u16) -> Option<Self> {
        (!name.is_empty()).then(|| Self { name: name.to_ascii_lowercase().into(), transport, number })
    }

    /// Whether this is the port that `_port._proto` names, in lower case and with the underscores.
    pub fn is(&self, port: &[u8], proto: &[u8]) -> bool {
        port.strip_prefix(b"_") == Some(self.name.as_bytes()) && self.is_over(proto)
    }

    /// Whether `proto` is the label of its transport: `_tcp`, `_udp` or `_sctp`.
    pub fn is_over(&self, proto: &[u8]) -> bool {
        proto
            == match self.transport {
                Transport::Tcp => b"_tcp".as_slice(),
                Transport::Udp => b"_udp",
                Transport::Sctp => b"_sctp",
            }
    }
}
