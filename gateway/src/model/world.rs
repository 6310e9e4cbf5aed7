//! The objects by key, and which resources each change of them touches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use api::resource::{name::NamespacedName, settings::Settings};
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};

use super::{
    annotation, certificate,
    endpoint::Reach,
    service::{self, Policy},
    workload,
};
use crate::{
    emulate::slices::{SERVICE_NAME, SERVICE_PROXY_NAME},
    ipam::load_balancer::{
        memory::is_concerned,
        pool::{NamespaceLabels, Pool},
    },
    problem::Problem,
    watch::{
        address_pool::AddressPool,
        object::{Event, Kind, Object, ObjectKey},
    },
};

/// The value of the label that hands a Service to us.
const PROXY_NAME: &str = "portico";

/// Which Services are ours (S1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Those whose label names us.
    Labelled,
    /// These, and all without the label.
    AllButForeign,
}

/// What the model needs to know beside the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Facts about the whole cluster.
    pub settings: Settings,
    /// Which Services are ours.
    pub ownership: Ownership,
    /// Which addresses endpoints may have.
    pub reach: Reach,
    /// What Services may ask for.
    pub policy: Policy,
}

/// All objects that were seen.
#[derive(Debug)]
pub struct World {
    pub(super) config: Config,
    pub(super) services: BTreeMap<NamespacedName, Arc<Service>>,
    /// By Service, then by name of the slice.
    pub(super) slices: HashMap<NamespacedName, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    /// The Service that each slice belongs to.
    slice_owners: HashMap<NamespacedName, NamespacedName>,
    pub(super) pods: HashMap<NamespacedName, workload::Facts>,
    pub(super) pods_at: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    pub(super) nodes: BTreeMap<Arc<str>, Arc<Node>>,
    pub(super) secrets: HashMap<NamespacedName, certificate::Parsed>,
    /// The Services that name each Secret.
    pub(super) secret_users: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// The address pools, each as it was last right.
    pools: BTreeMap<Arc<str>, Pool>,
    pub(super) namespaces: NamespaceLabels,
    /// Ranges of ClusterIPs by ServiceCIDR (S1.4).
    service_cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    /// Annotations of ours where they mean nothing, and what is wrong with address pools, by object.
    pub(super) misplaced: BTreeMap<ObjectKey, Vec<Problem>>,
    listed: BTreeSet<Kind>,
}

/// What a change touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose resource may differ.
    pub services: BTreeSet<NamespacedName>,
    /// Services whose endpoints may differ.
    pub endpoints: BTreeSet<NamespacedName>,
    /// Secrets whose certificate may differ.
    pub certificates: BTreeSet<NamespacedName>,
    /// Nodes that may differ.
    pub nodes: BTreeSet<Arc<str>>,
    /// Namespaces that came or went.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Addresses whose owner may differ.
    pub addresses: BTreeSet<IpAddr>,
    /// Objects of other kinds whose problems may differ.
    pub misplaced: BTreeSet<ObjectKey>,
    /// Facts about the whole cluster may differ.
    pub settings: bool,
    /// Who has which load-balancer address may differ.
    pub load_balancers: bool,
    /// An endpoint takes no new connections any more, which nobody should learn late.
    pub urgent: bool,
}

/// Proof that every kind was listed once. Before that, nothing may be published: an empty list would look like a deletion.
#[derive(Clone, Copy, Debug)]
pub struct Synced<'a> {
    pub(super) world: &'a World,
}

// === impl World ===

impl World {
    /// A world without objects.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            services: BTreeMap::new(),
            slices: HashMap::new(),
            slice_owners: HashMap::new(),
            pods: HashMap::new(),
            pods_at: HashMap::new(),
            nodes: BTreeMap::new(),
            secrets: HashMap::new(),
            secret_users: HashMap::new(),
            pools: BTreeMap::new(),
            namespaces: NamespaceLabels::new(),
            service_cidrs: BTreeMap::new(),
            misplaced: BTreeMap::new(),
            listed: BTreeSet::new(),
        }
    }

    /// The kinds that are not listed yet. Endpoints are not among them: they reach the model as slices only (S1.1).
    pub fn missing(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| *kind != Kind::Endpoints && !self.listed.contains(kind)).collect()
    }

    /// Proof that every kind was listed once, if so.
    pub fn synced(&self) -> Option<Synced<'_>> {
        self.missing().is_empty().then_some(Synced { world: self })
    }

    /// The Service object of this name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The Node object of this name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = (&NamespacedName, &Arc<Service>)> {
        self.services.iter()
    }

    /// The address pools, each as it was last right, by name.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    /// The labels of namespaces.
    pub fn namespaces(&self) -> &NamespaceLabels {
        &self.namespaces
    }

    /// Facts about the whole cluster: those that are configured, and the ranges that its objects name. Beside another proxy
    /// the ranges are that one's: what no Service of ours has there may well be a Service of its own.
    pub fn settings(&self) -> Settings {
        let mut settings = self.config.settings.clone();
        if self.config.ownership == Ownership::AllButForeign {
            settings.service_cidrs.extend(self.service_cidrs.values().flatten().copied());
        }
        settings.service_cidrs.sort_unstable();
        settings.service_cidrs.dedup();
        settings
    }

    /// Everything, for a derivation from scratch.
    pub fn everything(&self) -> Dirty {
        Dirty {
            services: self.services.keys().cloned().collect(),
            endpoints: self.services.keys().cloned().collect(),
            certificates: self.secret_users.keys().cloned().collect(),
            nodes: self.nodes.keys().cloned().collect(),
            namespaces: self.namespaces.keys().cloned().collect(),
            addresses: self.pods_at.keys().copied().collect(),
            misplaced: self.misplaced.keys().cloned().collect(),
            settings: true,
            load_balancers: true,
            urgent: false,
        }
    }

    /// Takes in a change and adds what it touches to `dirty`. Changes of nothing that matters touch nothing.
    pub fn apply(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Reset(kind, objects) => {
                let kept: HashSet<ObjectKey> = objects.iter().map(Object::key).collect();
                for key in self.keys(kind) {
                    if !kept.contains(&key) {
                        self.delete(&key, dirty);
                    }
                }
                objects.into_iter().for_each(|object| self.set(object, dirty));
                self.listed.insert(kind);
            }
            Event::Apply(object) => self.set(object, dirty),
            Event::Delete(key) => self.delete(&key, dirty),
        }
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let namespaced = |name: &NamespacedName| ObjectKey::new(kind, name.namespace.clone(), name.name.clone());
        let global = |name: &Arc<str>| ObjectKey::new(kind, "", name.clone());
        match kind {
            Kind::Service => self.services.keys().map(namespaced).collect(),
            Kind::EndpointSlice => self.slice_owners.keys().map(namespaced).collect(),
            Kind::Pod => self.pods.keys().map(namespaced).collect(),
            Kind::Node => self.nodes.keys().map(global).collect(),
            Kind::Secret => self.secrets.keys().map(namespaced).collect(),
            Kind::Namespace => self.namespaces.keys().map(global).collect(),
            Kind::AddressPool => self.pools.keys().map(global).collect(),
            Kind::ServiceCIDR => self.service_cidrs.keys().map(global).collect(),
            // Nothing is kept of them but what is wrong with them.
            Kind::Endpoints => self.misplaced.keys().filter(|key| key.kind == kind).cloned().collect(),
        }
    }

    fn set(&mut self, object: Object, dirty: &mut Dirty) {
        let key = object.key();
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        self.check_annotations(&key, &object, dirty);
        match object {
            Object::Service(service) => self.set_service(name, Some(service), dirty),
            Object::EndpointSlice(slice) => self.set_slice(name, Some(slice), dirty),
            Object::Pod(pod) => self.set_pod(name, Some(workload::Facts::of(&pod)), dirty),
            Object::Node(node) => {
                if self.nodes.get(&key.name) != Some(&node) {
                    self.nodes.insert(key.name.clone(), node);
                    dirty.nodes.insert(key.name);
                }
            }
            Object::Secret(secret) => {
                let parsed = certificate::parse(&name, &secret, self.secrets.get(&name));
                self.set_secret(name, Some(parsed), dirty);
            }
            Object::Namespace(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                if self.namespaces.get(&key.name) != Some(&labels) {
                    dirty.namespaces.insert(key.name.clone());
                    dirty.load_balancers = true;
                    self.namespaces.insert(key.name, labels);
                }
            }
            Object::AddressPool(pool) => self.set_pool(key.name, &pool, dirty),
            Object::ServiceCIDR(range) => {
                // The API server lets no other text pass.
                let ranges = range.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
                let ranges: Vec<IpNet> = ranges.iter().filter_map(|range| range.parse().ok()).collect();
                if self.service_cidrs.get(&key.name) != Some(&ranges) {
                    self.service_cidrs.insert(key.name, ranges);
                    dirty.settings = true;
                }
            }
            Object::Endpoints(_) => {}
        }
    }

    fn delete(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        if self.misplaced.remove(key).is_some() {
            dirty.misplaced.insert(key.clone());
        }
        match key.kind {
            Kind::Service => self.set_service(name, None, dirty),
            Kind::EndpointSlice => self.set_slice(name, None, dirty),
            Kind::Pod => self.set_pod(name, None, dirty),
            Kind::Node => {
                if self.nodes.remove(&key.name).is_some() {
                    dirty.nodes.insert(key.name.clone());
                }
            }
            Kind::Secret => self.set_secret(name, None, dirty),
            Kind::Namespace => {
                if self.namespaces.remove(&key.name).is_some() {
                    dirty.namespaces.insert(key.name.clone());
                    dirty.load_balancers = true;
                }
            }
            Kind::AddressPool => dirty.load_balancers |= self.pools.remove(&key.name).is_some(),
            Kind::ServiceCIDR => dirty.settings |= self.service_cidrs.remove(&key.name).is_some(),
            Kind::Endpoints => {}
        }
    }

    fn check_annotations(&mut self, key: &ObjectKey, object: &Object, dirty: &mut Dirty) {
        let annotations = object.metadata().annotations.as_ref();
        let mut problems = Vec::new();
        let mut report = |problem| problems.push(problem);
        match key.kind {
            // Those of a Service are read, and reported, where its resource is derived.
            Kind::Service => return,
            Kind::Pod => annotation::of_pod(annotations, &mut report),
            Kind::AddressPool => {
                annotation::of_other(key.kind.as_str(), annotations, &mut report);
                if let Object::AddressPool(pool) = object {
                    Pool::parse(&key.name, &pool.spec, &mut report);
                }
            }
            kind => annotation::of_other(kind.as_str(), annotations, &mut report),
        }
        let before = if problems.is_empty() {
            self.misplaced.remove(key)
        } else {
            self.misplaced.insert(key.clone(), problems.clone())
        };
        if before.unwrap_or_default() != problems {
            dirty.misplaced.insert(key.clone());
        }
    }

    fn set_service(&mut self, name: NamespacedName, service: Option<Arc<Service>>, dirty: &mut Dirty) {
        let before = match &service {
            Some(service) if self.services.get(&name) == Some(service) => return,
            Some(service) => self.services.insert(name.clone(), service.clone()),
            None => self.services.remove(&name),
        };
        let named = |service: &Option<Arc<Service>>| {
            let service = service.as_ref().filter(|service| self.config.ownership.takes(&service.metadata.labels));
            service.and_then(|service| service::tls_secret(&name, service))
        };
        let (old, new) = (named(&before), named(&service));
        if old != new {
            if let Some(old) = old {
                if let Some(users) = self.secret_users.get_mut(&old) {
                    users.remove(&name);
                    if users.is_empty() {
                        self.secret_users.remove(&old);
                    }
                }
                dirty.certificates.insert(old);
            }
            if let Some(new) = new {
                self.secret_users.entry(new.clone()).or_default().insert(name.clone());
                dirty.certificates.insert(new);
            }
        }
        dirty.load_balancers |= [&before, &service].into_iter().flatten().any(|service| is_concerned(service));
        dirty.services.insert(name.clone());
        dirty.endpoints.insert(name);
    }

    fn set_slice(&mut self, name: NamespacedName, slice: Option<Arc<EndpointSlice>>, dirty: &mut Dirty) {
        let owner = slice.as_ref().and_then(|slice| self.owner(&name, slice));
        let before_owner = self.slice_owners.get(&name).cloned();
        let before = before_owner.as_ref().and_then(|owner| self.slices.get(owner)?.get(&name.name).cloned());
        if owner == before_owner && slice == before {
            return;
        }
        dirty.urgent |= before.as_ref().is_some_and(|before| lost_ready(before, slice.as_deref()));
        if let Some(before_owner) = before_owner {
            if let Some(slices) = self.slices.get_mut(&before_owner) {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices.remove(&before_owner);
                }
            }
            self.slice_owners.remove(&name);
            dirty.endpoints.insert(before_owner);
        }
        if let (Some(owner), Some(slice)) = (owner, slice) {
            self.slices.entry(owner.clone()).or_default().insert(name.name.clone(), slice);
            self.slice_owners.insert(name, owner.clone());
            dirty.endpoints.insert(owner);
        }
    }

    /// The Service that a slice belongs to (S3.1).
    fn owner(&self, name: &NamespacedName, slice: &EndpointSlice) -> Option<NamespacedName> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels.get(SERVICE_NAME).filter(|service| !service.is_empty())?;
        Some(NamespacedName::new(name.namespace.clone(), service.as_str()))
    }

    fn set_pod(&mut self, name: NamespacedName, facts: Option<workload::Facts>, dirty: &mut Dirty) {
        if self.pods.get(&name) == facts.as_ref() {
            return;
        }
        if let Some(before) = self.pods.remove(&name) {
            for address in before.addresses {
                if let Some(pods) = self.pods_at.get_mut(&address) {
                    pods.remove(&name);
                    if pods.is_empty() {
                        self.pods_at.remove(&address);
                    }
                }
                dirty.addresses.insert(address);
            }
        }
        if let Some(facts) = facts {
            for address in &facts.addresses {
                self.pods_at.entry(*address).or_default().insert(name.clone());
                dirty.addresses.insert(*address);
            }
            self.pods.insert(name, facts);
        }
    }

    /// Takes in a pool. One that is wrong stays as it was last right: addresses in use must not be lost to a slip of the pen.
    fn set_pool(&mut self, name: Arc<str>, object: &AddressPool, dirty: &mut Dirty) {
        let mut is_wrong = false;
        let pool = Pool::parse(&name, &object.spec, &mut |_| is_wrong = true);
        let before = self.pools.get(&name);
        if before == Some(&pool) || (is_wrong && before.is_some()) {
            return;
        }
        self.pools.insert(name, pool);
        dirty.load_balancers = true;
    }

    fn set_secret(&mut self, name: NamespacedName, parsed: Option<certificate::Parsed>, dirty: &mut Dirty) {
        if self.secrets.get(&name) == parsed.as_ref() {
            return;
        }
        // Services report what is wrong with the Secret they name.
        if let Some(users) = self.secret_users.get(&name) {
            dirty.services.extend(users.iter().cloned());
            dirty.certificates.insert(name.clone());
        }
        match parsed {
            Some(parsed) => self.secrets.insert(name, parsed),
            None => self.secrets.remove(&name),
        };
    }
}

/// Whether a slice is for another proxy (S1.2). One written by hand for a Service of ours need not repeat its label.
pub(super) fn is_foreign(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(SERVICE_PROXY_NAME)).is_some_and(|proxy| proxy != PROXY_NAME)
}

/// Whether an endpoint that took connections takes them no more.
fn lost_ready(before: &EndpointSlice, after: Option<&EndpointSlice>) -> bool {
    let ready = |slice: &EndpointSlice| -> HashSet<String> {
        let endpoints = slice.endpoints.iter().flatten();
        let ready = endpoints
            .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
        ready.filter_map(|endpoint| endpoint.addresses.first().cloned()).collect()
    };
    let still = after.map(ready).unwrap_or_default();
    !ready(before).is_subset(&still)
}

// === impl Ownership ===

impl Ownership {
    /// Whether an object with these labels is ours.
    pub fn takes(self, labels: &Option<BTreeMap<String, String>>) -> bool {
        match labels.as_ref().and_then(|labels| labels.get(SERVICE_PROXY_NAME)) {
            Some(proxy) => proxy == PROXY_NAME,
            None => self == Ownership::AllButForeign,
        }
    }
}

// === impl Dirty ===

impl Dirty {
    /// Whether nothing is touched.
    pub fn is_empty(&self) -> bool {
        *self == Dirty { urgent: self.urgent, ..Dirty::default() }
    }
}

// === impl Synced ===

impl<'a> Synced<'a> {
    /// The world it is proof of.
    pub fn world(self) -> &'a World {
        self.world
    }
}
