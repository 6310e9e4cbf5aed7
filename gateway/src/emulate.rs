//! What a cluster would do to manifests: defaults, addresses, node ports, and EndpointSlices from selectors and Pods.
//!
//! It stands between a manifest source and the model, so that the model sees what the API server would show. The one
//! memory is [`Held`]: what was given away without being asked for, which stays with its Service as long as that lives.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Node, NodeAddress, NodeStatus, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

pub mod addresses;
pub mod defaults;
pub mod load_balancers;
pub mod node_ports;
pub mod slices;

use crate::{
    ipam::{load_balancer::memory::Memory, pool::PortRange},
    problem::{ByObject, Problem},
    watch::object::{Kind, Object, ObjectKey},
};

/// What there is to give away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Where ClusterIPs come from; the first network's family is the default one.
    pub service_cidrs: Vec<IpNet>,
    /// Where node ports come from.
    pub node_ports: PortRange,
    /// Where load-balancer addresses come from.
    pub load_balancer_pool: Vec<IpNet>,
}

/// What was given away without being asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub(crate) addresses: addresses::Held,
    pub(crate) node_ports: node_ports::Held,
    pub(crate) load_balancers: Memory,
}

/// What the API server would show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Emulated {
    /// The objects, completed, and the EndpointSlices made for them. Endpoints are not among them.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// What could not be obeyed.
    pub problems: ByObject,
}

/// Completes the objects. `held` is updated to what is given away now.
pub fn emulate(rules: &Rules, objects: &BTreeMap<ObjectKey, Object>, held: &mut Held) -> Emulated {
    let mut problems = ByObject::new();
    let mut services = Services::default();
    for (key, object) in objects {
        if let Object::Service(service) = object {
            let mut service = Service::clone(service);
            defaults::service(&mut service, &rules.service_cidrs, &mut |problem| {
                problems.entry(key.clone()).or_default().push(problem);
            });
            services.by_key.insert(key.clone(), service);
        }
    }
    services.sort();
    addresses::cluster_ips(rules, &mut services, &mut held.addresses, &mut problems);
    node_ports::assign(rules, &mut services, &mut held.node_ports, &mut problems);
    load_balancers::assign(rules, objects, &mut services, &mut held.load_balancers, &mut problems);

    let mut completed = BTreeMap::new();
    for slice in slices::all(&services, objects) {
        completed.insert(slice.key(), slice);
    }
    for (key, service) in services.by_key {
        completed.insert(key, Object::Service(Arc::new(service)));
    }
    for (key, object) in objects {
        match object {
            Object::Service(_) | Object::Endpoints(_) => {}
            Object::EndpointSlice(slice) => {
                completed.insert(key.clone(), Object::EndpointSlice(defaults::slice(slice.clone())));
            }
            Object::Pod(_)
            | Object::Node(_)
            | Object::Secret(_)
            | Object::Namespace(_)
            | Object::AddressPool(_)
            | Object::ServiceCIDR(_) => {
                completed.insert(key.clone(), object.clone());
            }
        }
    }
    if !completed.keys().any(|key| key.kind == Kind::Node) {
        let node = Object::Node(Arc::new(local_node()));
        completed.insert(node.key(), node);
    }
    Emulated { objects: completed, problems }
}

/// The node of manifests that name none: this host, by its loopback address.
fn local_node() -> Node {
    Node {
        metadata: ObjectMeta { name: Some("local".to_owned()), ..ObjectMeta::default() },
        spec: None,
        status: Some(NodeStatus {
            addresses: Some(vec![NodeAddress { type_: "InternalIP".to_owned(), address: "127.0.0.1".to_owned() }]),
            ..NodeStatus::default()
        }),
    }
}

/// The Services while they are completed.
#[derive(Debug, Default)]
pub struct Services {
    by_key: BTreeMap<ObjectKey, Service>,
    /// Oldest first; see [`Services::oldest_first`].
    order: Vec<ObjectKey>,
}

// === impl Services ===

impl Services {
    fn sort(&mut self) {
        self.order = self.by_key.keys().cloned().collect();
        // Of two that claim the same the older is served (S5.6): by creationTimestamp, then by namespace and name.
        self.order.sort_by_cached_key(|key| {
            let created = self.by_key[key].metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created.is_none(), created, key.clone())
        });
    }

    /// The keys, oldest first.
    pub fn oldest_first(&self) -> Vec<ObjectKey> {
        self.order.clone()
    }

    /// One of them.
    pub fn get(&self, key: &ObjectKey) -> Option<&Service> {
        self.by_key.get(key)
    }

    /// One of them, to be completed.
    pub fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut Service> {
        self.by_key.get_mut(key)
    }

    /// All of them, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.by_key.iter()
    }
}

/// Where a claimant's grant is looked for first: depends on its name alone, so that it survives restarts.
fn seed(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut seed = [0; 8];
    seed.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(seed)
}

fn report(problems: &mut ByObject, key: &ObjectKey, reason: &'static str, message: String) {
    problems.entry(key.clone()).or_default().push(Problem::new(reason, message));
}

#[cfg(test)]
mod tests;
