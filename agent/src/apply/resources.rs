//! The last good content of every resource. What is refused changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use api::{
    delta::{Changes, Rejection},
    resource::{
        Key, Kind, Resource, certificate::Certificate, endpoint::Endpoint, hop_keys::HopKeys, name::NamespacedName,
        node::Node, service::Service, settings::Settings, slice::Slice, workload::Workload,
    },
};

use super::programming::Triggers;
use crate::table::Map;

/// Everything the agent was told, parsed.
#[derive(Debug, Default)]
pub struct Resources {
    settings: Option<Settings>,
    nodes: BTreeMap<Box<str>, Node>,
    services: BTreeMap<Box<str>, Arc<Service>>,
    /// Endpoints by Service, then by resource name.
    endpoints: HashMap<NamespacedName, BTreeMap<Box<str>, Arc<Endpoint>>>,
    /// Which Service an endpoint resource belonged to, for when it is removed or moves.
    endpoint_owner: HashMap<Box<str>, NamespacedName>,
    certificates: HashMap<Box<str>, Arc<Certificate>>,
    workloads: Arc<Map<IpAddr, Arc<Workload>>>,
    workload_names: HashMap<Box<str>, IpAddr>,
    namespaces: BTreeSet<Box<str>>,
    /// Services that another proxy serves: they are answered for by DNS, and not served.
    foreign: BTreeMap<Box<str>, Arc<Service>>,
    slices: HashMap<Box<str>, Slice>,
    hop_keys: Option<HopKeys>,
    /// Trigger times of changes that are not in force.
    triggers: Triggers,
}

/// What a change touched, so that the rest need not be compiled again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose own content, endpoints or certificate changed.
    pub services: BTreeSet<NamespacedName>,
    /// Node or settings changed: everything depends on them.
    pub all: bool,
    /// A namespace came or went, which only DNS cares for.
    pub namespaces: bool,
}

// === impl Dirty ===

impl Dirty {
    /// Adds what a later change touched.
    pub fn merge(&mut self, later: Self) {
        self.services.extend(later.services);
        self.all |= later.all;
        self.namespaces |= later.namespaces;
    }
}

// === impl Resources ===

impl Resources {
    /// Takes over a commit. Returns what was refused, and what must be compiled again.
    pub fn apply(&mut self, changes: Changes) -> (Vec<Rejection>, Dirty) {
        let mut rejections = Vec::new();
        let mut dirty = Dirty::default();
        for key in &changes.removed {
            self.remove(key, &mut dirty);
        }
        for changed in changes.set {
            let resource = Resource::decode(changed.key.kind, changed.body).and_then(|resource| {
                // A resource that claims another name than it travels under would be unreachable by its removal.
                let own = resource.key();
                if own == changed.key {
                    return Ok(resource);
                }
                Err(api::resource::invalid::Invalid::new("name", format!("is {} but the body says {own}", changed.key)))
            });
            match resource {
                Ok(resource) => self.set(changed.key.name, resource, &mut dirty),
                Err(invalid) => {
                    let message = invalid.to_string();
                    rejections.push(Rejection { key: changed.key, version: changed.version, message });
                }
            }
        }
        (rejections, dirty)
    }

    fn set(&mut self, name: Box<str>, resource: Resource, dirty: &mut Dirty) {
        match resource {
            Resource::Settings(settings) => {
                self.settings = Some(settings);
                dirty.all = true;
            }
            Resource::Node(node) => {
                self.nodes.insert(name, node);
                dirty.all = true;
            }
            Resource::Service(service) => {
                dirty.services.insert(service.name.clone());
                self.services.insert(name, Arc::from(service));
            }
            Resource::Endpoint(endpoint) => {
                self.forget_endpoint(&name, dirty);
                dirty.services.insert(endpoint.service.clone());
                self.endpoint_owner.insert(name.clone(), endpoint.service.clone());
                self.endpoints.entry(endpoint.service.clone()).or_default().insert(name, Arc::from(endpoint));
            }
            Resource::Certificate(certificate) => {
                self.certificate_changed(&certificate.name, dirty);
                self.certificates.insert(name, Arc::new(certificate));
            }
            Resource::Workload(workload) => {
                self.workload_names.insert(name, workload.address);
                Arc::make_mut(&mut self.workloads).insert(workload.address, Arc::new(workload));
            }
            Resource::Namespace(_) => dirty.namespaces |= self.namespaces.insert(name),
            Resource::ForeignService(service) => {
                dirty.services.insert(service.name.clone());
                self.foreign.insert(name, Arc::from(service));
            }
            Resource::Slice(slice) => {
                let changed = self.slices.get(&name).is_none_or(|before| before.content != slice.content);
                if let Some(time) = slice.triggered.filter(|_| changed) {
                    self.triggers.entry(slice.service.clone()).or_default().push(time);
                }
                self.slices.insert(name, slice);
            }
            Resource::HopKeys(keys) => self.hop_keys = Some(keys),
        }
    }

    fn remove(&mut self, key: &Key, dirty: &mut Dirty) {
        match key.kind {
            Kind::Settings => {
                self.settings = None;
                dirty.all = true;
            }
            Kind::Node => {
                self.nodes.remove(&key.name);
                dirty.all = true;
            }
            Kind::Service => {
                if let Some(service) = self.services.remove(&key.name) {
                    dirty.services.insert(service.name.clone());
                }
            }
            Kind::Endpoint => self.forget_endpoint(&key.name, dirty),
            Kind::Certificate => {
                if let Some(certificate) = self.certificates.remove(&key.name) {
                    self.certificate_changed(&certificate.name, dirty);
                }
            }
            Kind::Workload => {
                if let Some(address) = self.workload_names.remove(&key.name) {
                    Arc::make_mut(&mut self.workloads).remove(&address);
                }
            }
            Kind::Namespace => dirty.namespaces |= self.namespaces.remove(&key.name),
            Kind::ForeignService => {
                if let Some(service) = self.foreign.remove(&key.name) {
                    dirty.services.insert(service.name.clone());
                }
            }
            // The trigger time of a slice that is gone is that of an earlier change.
            Kind::Slice => {
                if let Some(slice) = self.slices.remove(&key.name) {
                    self.triggers.remove(&slice.service);
                }
            }
            Kind::HopKeys => self.hop_keys = None,
        }
    }

    fn forget_endpoint(&mut self, name: &str, dirty: &mut Dirty) {
        let Some(service) = self.endpoint_owner.remove(name) else { return };
        if let Some(endpoints) = self.endpoints.get_mut(&service) {
            endpoints.remove(name);
            if endpoints.is_empty() {
                self.endpoints.remove(&service);
            }
        }
        dirty.services.insert(service);
    }

    fn certificate_changed(&self, name: &NamespacedName, dirty: &mut Dirty) {
        let users = self.services.values().filter(|service| service.tls_secret.as_ref() == Some(name));
        dirty.services.extend(users.map(|service| service.name.clone()));
    }

    /// Settings, if they were sent.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// All Services, in the order of their names.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// A Service by name, whoever serves it.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        let name = name.to_string();
        self.services.get(name.as_str()).or_else(|| self.foreign.get(name.as_str()))
    }

    /// Services that another proxy serves, in the order of their names.
    pub fn foreign_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.foreign.values()
    }

    /// Namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.namespaces.iter().map(|name| &**name)
    }

    /// The endpoints of a Service, in the order of their resource names.
    pub fn endpoints(&self, service: &NamespacedName) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.get(service).into_iter().flat_map(|endpoints| endpoints.values().map(|endpoint| &**endpoint))
    }

    /// A certificate by the name of its Secret.
    pub fn certificate(&self, name: &NamespacedName) -> Option<&Arc<Certificate>> {
        self.certificates.get(name.to_string().as_str())
    }

    /// The keys by which agents know each other, if they were sent.
    pub fn hop_keys(&self) -> Option<&HopKeys> {
        self.hop_keys.as_ref()
    }

    /// Pods by address.
    pub fn workloads(&self) -> &Arc<Map<IpAddr, Arc<Workload>>> {
        &self.workloads
    }

    /// The trigger times of all changes since the last call, as far as they are after `started` (S20).
    pub fn take_triggers(&mut self, started: SystemTime) -> Triggers {
        let mut triggers = std::mem::take(&mut self.triggers);
        triggers.retain(|_, times| {
            times.retain(|time| *time > started);
            !times.is_empty()
        });
        triggers
    }

    /// Resources held, by kind, for metrics.
    pub fn counts(&self) -> [(Kind, usize); Kind::ALL.len()] {
        [
            (Kind::Settings, usize::from(self.settings.is_some())),
            (Kind::Node, self.nodes.len()),
            (Kind::Service, self.services.len()),
            (Kind::Endpoint, self.endpoint_owner.len()),
            (Kind::Certificate, self.certificates.len()),
            (Kind::Workload, self.workloads.len()),
            (Kind::Namespace, self.namespaces.len()),
            (Kind::ForeignService, self.foreign.len()),
            (Kind::Slice, self.slices.len()),
            (Kind::HopKeys, usize::from(self.hop_keys.is_some())),
        ]
    }
}
