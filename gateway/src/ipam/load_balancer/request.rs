//! What a Service of type LoadBalancer asks for, read from its spec and annotations.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::pool::Labels;
use crate::watch::object::ANNOTATION_PREFIX;

/// Annotation with the addresses a Service asks for, separated by commas, below [`ANNOTATION_PREFIX`].
pub const LOAD_BALANCER_IPS: &str = "load-balancer-ips";
/// Annotation with the pool a Service asks for.
pub const ADDRESS_POOL: &str = "address-pool";
/// Annotation with the key by which Services share an address.
pub const ALLOW_SHARED_IP: &str = "allow-shared-ip";

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// Which Services are given addresses (S11.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// The `spec.loadBalancerClass` that is ours, if any.
    pub named: Option<Arc<str>>,
    /// Whether Services without a class are ours.
    pub unnamed: bool,
}

/// What a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels, which pools select by.
    pub labels: Labels,
    /// The families of its ClusterIPs, of which it needs an address each; never empty. The first is its first family.
    pub families: Vec<Family>,
    /// Whether one family is enough (`PreferDualStack`).
    pub one_is_enough: bool,
    /// The addresses asked for, at most one for each family; empty for any.
    pub addresses: Vec<IpAddr>,
    /// The pool asked for.
    pub pool: Option<String>,
    /// On what terms it shares an address.
    pub terms: Terms,
}

/// On what terms a Service shares its address with others (S11.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    key: Option<String>,
    /// The Pods that must be the same; `None` where any node can serve every Service.
    backends: Option<BTreeMap<String, String>>,
    ports: BTreeSet<(String, i32)>,
}

/// Why a Service is given no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Both ways to ask for an address are used.
    #[error("spec.loadBalancerIP and {ANNOTATION_PREFIX}{LOAD_BALANCER_IPS} both ask for addresses; remove one")]
    Twice,
    /// What is asked for is not an address.
    #[error("{field}: {text:?} is not an IP address; give one for each family, separated by commas")]
    NotAnAddress {
        /// Where it says so.
        field: String,
        /// What it says.
        text: String,
    },
    /// Two addresses of one family.
    #[error("{field} asks for two addresses of one family; give at most one for each")]
    SameFamily {
        /// Where it says so.
        field: String,
    },
    /// Two families are required of a Service that has one.
    #[error("spec.ipFamilyPolicy is RequireDualStack, but there is one ClusterIP only")]
    OneClusterIp,
}

// === impl Family ===

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

// === impl Classes ===

impl Classes {
    /// Whether the Service is of type LoadBalancer and of a class of ours.
    pub fn take(&self, service: &Service) -> bool {
        let Some(spec) = &service.spec else { return false };
        spec.type_.as_deref() == Some("LoadBalancer") && self.contain(spec.load_balancer_class.as_deref())
    }

    /// Whether a class is ours. An empty one is none.
    pub fn contain(&self, class: Option<&str>) -> bool {
        match class {
            None | Some("") => self.unnamed,
            Some(class) => self.named.as_deref() == Some(class),
        }
    }
}

// === impl Request ===

impl Request {
    /// Reads what a Service asks for; `None` as long as it has no ClusterIP (S11.3).
    ///
    /// # Errors
    /// What contradicts itself, or cannot be read.
    pub fn of(namespace: &str, service: &Service) -> Result<Option<Self>, Malformed> {
        let none = ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&none);
        let families = families(spec);
        if families.is_empty() {
            return Ok(None);
        }
        let policy = spec.ip_family_policy.as_deref();
        if policy == Some("RequireDualStack") && families.len() < 2 {
            return Err(Malformed::OneClusterIp);
        }
        let value = |name: &str| {
            let annotations = service.metadata.annotations.as_ref()?;
            let value = annotations.get(&format!("{ANNOTATION_PREFIX}{name}"))?.trim();
            (!value.is_empty()).then_some(value)
        };
        let addresses = addresses(spec, value(LOAD_BALANCER_IPS))?;
        let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let port = |port: &k8s_openapi::api::core::v1::ServicePort| {
            (port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port.port)
        };
        Ok(Some(Self {
            namespace: namespace.into(),
            labels: service.metadata.labels.clone().unwrap_or_default(),
            one_is_enough: policy == Some("PreferDualStack"),
            families,
            addresses,
            pool: value(ADDRESS_POOL).map(str::to_owned),
            terms: Terms {
                key: value(ALLOW_SHARED_IP).map(str::to_owned),
                backends: is_local.then(|| spec.selector.clone().unwrap_or_default()),
                ports: spec.ports.iter().flatten().map(port).collect(),
            },
        }))
    }
}

// === impl Terms ===

impl Terms {
    /// Whether two Services may have the same address.
    pub fn allow(&self, other: &Terms) -> bool {
        self.key.is_some()
            && self.key == other.key
            && self.backends == other.backends
            && self.ports.is_disjoint(&other.ports)
    }
}

/// The families of the ClusterIPs, the first family first.
fn families(spec: &ServiceSpec) -> Vec<Family> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts = if listed.is_empty() { spec.cluster_ip.as_slice() } else { listed };
    let addresses = texts.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let mut families: Vec<_> = addresses.map(Family::of).collect();
    families.dedup();
    families.truncate(2);
    let first = spec.ip_families.iter().flatten().next();
    if families.len() == 2 && first.is_some_and(|first| first == families[1].as_str()) {
        families.reverse();
    }
    families
}

fn addresses(spec: &ServiceSpec, annotation: Option<&str>) -> Result<Vec<IpAddr>, Malformed> {
    let of_field = spec.load_balancer_ip.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let (field, text) = match (annotation, of_field) {
        (Some(_), Some(_)) => return Err(Malformed::Twice),
        (Some(text), None) => (format!("{ANNOTATION_PREFIX}{}", LOAD_BALANCER_IPS), text),
        (None, Some(text)) => ("spec.loadBalancerIP".to_owned(), text),
        (None, None) => return Ok(vec![]),
    };
    let parse = |text: &str| {
        let text = text.trim();
        text.parse().map_err(|_| Malformed::NotAnAddress { field: field.clone(), text: text.to_owned() })
    };
    // The field holds one address; a list in it is no address.
    let texts: Vec<_> = if of_field.is_some() { vec![text] } else { text.split(',').collect() };
    let mut addresses: Vec<IpAddr> = texts.into_iter().map(parse).collect::<Result<_, _>>()?;
    addresses.sort();
    if addresses.len() > 2 || addresses.windows(2).any(|pair| pair[0].is_ipv4() == pair[1].is_ipv4()) {
        return Err(Malformed::SameFamily { field });
    }
    Ok(addresses)
}
