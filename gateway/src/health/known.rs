//! What the objects of the cluster say about health: the nodes, the Services that are reached through nodes, and where
//! their endpoints are. Follows the store by what each commit touched.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use api::{
    delta::frame::View as _,
    resource::{
        Key, Kind, Resource,
        endpoint::Endpoint,
        name::NamespacedName,
        node::Node,
        service::{Service, ServiceType, TrafficPolicy},
    },
};
use bytes::Bytes;

use super::verdict::Local;
use crate::snapshot::store::{State, Store};

/// The facts of one revision.
#[derive(Debug, Default)]
pub struct Known {
    /// Revision of the store; 0 before the first commit.
    pub revision: u64,
    /// All nodes.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// The Services that are reached through nodes.
    pub services: BTreeMap<NamespacedName, Arc<Target>>,
    definitions: HashMap<NamespacedName, Arc<Service>>,
    endpoints: HashMap<NamespacedName, BTreeMap<Box<str>, Place>>,
}

/// A Service that is reached through nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its definition.
    pub service: Arc<Service>,
    /// Endpoints that answer, on whatever node, by distinct address.
    pub serving: u32,
    /// Endpoints by node. Nodes that had some and have none now stay for the time of the change.
    pub local: BTreeMap<Arc<str>, Presence>,
    /// When it was first seen.
    pub since: SystemTime,
}

/// Endpoints of one Service on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// How many.
    pub local: Local,
    /// Since when there are ready ones, or only serving ones, or none.
    pub since: SystemTime,
}

/// What changed with a revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes.
    pub nodes: BTreeSet<Arc<str>>,
    /// Services.
    pub services: BTreeSet<NamespacedName>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    node: Arc<str>,
    address: IpAddr,
    ready: bool,
    serving: bool,
}

// === impl Known ===

impl Known {
    /// Catches up with the store. `now` is when what is new began.
    pub fn update(&mut self, store: &Store, now: SystemTime) -> Touched {
        let (revision, nodes, services, endpoints) = {
            // Only copies are made under the lock; a body is a shared slice.
            let state = store.read();
            let [nodes, services, endpoints] =
                [Kind::Node, Kind::Service, Kind::Endpoint].map(|kind| self.fetch(&state, kind));
            (state.revision(), nodes, services, endpoints)
        };
        self.revision = revision;
        let mut touched = Touched::default();
        for (key, body) in nodes {
            self.set_node(&key, body, &mut touched);
        }
        let mut dirty = HashSet::new();
        for (key, body) in services {
            dirty.extend(self.set_definition(&key, body));
        }
        for (key, body) in endpoints {
            dirty.extend(self.set_endpoint(key, body));
        }
        for name in dirty {
            if self.derive(&name, now) {
                touched.services.insert(name);
            }
        }
        touched
    }

    /// What may differ from what is known: by the change log, or all of it if that does not reach back so far.
    fn fetch(&self, state: &State, kind: Kind) -> Vec<(Key, Option<Bytes>)> {
        if !state.is_committed() {
            return Vec::new();
        }
        let body = |key: Key| {
            let body = state.get(&key).map(|encoded| encoded.body.clone());
            (key, body)
        };
        let logged = (self.revision > 0).then(|| state.touched(kind, self.revision)).flatten();
        if let Some(touched) = logged {
            return touched.into_iter().map(body).collect();
        }
        let mut keys: BTreeSet<Key> = state.all(kind).into_iter().map(|encoded| encoded.key.clone()).collect();
        keys.extend(self.names(kind).into_iter().map(|name| Key::new(kind, name)));
        keys.into_iter().map(body).collect()
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        match kind {
            Kind::Node => self.nodes.keys().map(ToString::to_string).collect(),
            Kind::Service => self.definitions.keys().map(ToString::to_string).collect(),
            Kind::Endpoint => {
                self.endpoints.values().flat_map(|places| places.keys().map(ToString::to_string)).collect()
            }
            Kind::Settings
            | Kind::Certificate
            | Kind::Workload
            | Kind::Namespace
            | Kind::ForeignService
            | Kind::Slice
            | Kind::HopKeys => Vec::new(),
        }
    }

    fn set_node(&mut self, key: &Key, body: Option<Bytes>, touched: &mut Touched) {
        let name: Arc<str> = (&*key.name).into();
        match body.and_then(|body| decode(key, body)) {
            Some(Resource::Node(node)) if self.nodes.get(&name).is_some_and(|old| **old == node) => return,
            Some(Resource::Node(node)) => self.nodes.insert(name.clone(), Arc::new(node)),
            _ => self.nodes.remove(&name),
        };
        touched.nodes.insert(name);
    }

    /// Returns the Service if it differs.
    fn set_definition(&mut self, key: &Key, body: Option<Bytes>) -> Option<NamespacedName> {
        let name: NamespacedName = key.name.parse().ok()?;
        match body.and_then(|body| decode(key, body)) {
            Some(Resource::Service(service)) => self.definitions.insert(name.clone(), Arc::from(service)),
            _ => self.definitions.remove(&name),
        };
        Some(name)
    }

    /// Returns the Service whose endpoints differ.
    fn set_endpoint(&mut self, key: Key, body: Option<Bytes>) -> Option<NamespacedName> {
        let mut parts = key.name.split('/');
        let service = NamespacedName::new(parts.next()?, parts.next()?);
        let place = match body.and_then(|body| decode(&key, body)) {
            Some(Resource::Endpoint(endpoint)) => Some(Place::of(&endpoint)),
            _ => None,
        };
        let places = self.endpoints.entry(service.clone()).or_default();
        let differs = match place {
            Some(place) => places.insert(key.name, place.clone()) != Some(place),
            None => places.remove(&key.name).is_some(),
        };
        if places.is_empty() {
            self.endpoints.remove(&service);
        }
        differs.then_some(service)
    }

    /// Brings one Service up to date. Returns whether it differs.
    fn derive(&mut self, name: &NamespacedName, now: SystemTime) -> bool {
        let before = self.services.get(name);
        let definition = self.definitions.get(name).filter(|service| is_reached_through_nodes(service));
        let Some(service) = definition else {
            return self.services.remove(name).is_some();
        };
        let none = BTreeMap::new();
        let places = self.endpoints.get(name).unwrap_or(&none);
        let target = Target {
            service: service.clone(),
            serving: distinct(places.values().filter(|place| place.serving)),
            local: local(places, before.map(|before| &before.local), &self.nodes, now),
            since: before.map_or(now, |before| before.since),
        };
        if before.is_some_and(|before| **before == target) {
            return false;
        }
        self.services.insert(name.clone(), Arc::new(target));
        true
    }
}

fn decode(key: &Key, body: Bytes) -> Option<Resource> {
    Resource::decode(key.kind, body)
        .inspect_err(|error| tracing::error!(resource = %key, %error, "a resource of our own does not decode"))
        .ok()
}

/// Whether traffic from outside of the cluster comes in at the addresses of nodes, or at addresses that lead to them.
pub fn is_reached_through_nodes(service: &Service) -> bool {
    match service.kind {
        ServiceType::NodePort | ServiceType::LoadBalancer => true,
        ServiceType::ClusterIp => !service.external_ips.is_empty(),
        ServiceType::ExternalName | ServiceType::Headless => false,
    }
}

fn distinct<'a>(places: impl Iterator<Item = &'a Place>) -> u32 {
    places.map(|place| place.address).collect::<HashSet<_>>().len() as u32
}

fn local(
    places: &BTreeMap<Box<str>, Place>,
    before: Option<&BTreeMap<Arc<str>, Presence>>,
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
    now: SystemTime,
) -> BTreeMap<Arc<str>, Presence> {
    let mut by_node: BTreeMap<Arc<str>, Vec<&Place>> = BTreeMap::new();
    for place in places.values().filter(|place| !place.node.is_empty()) {
        by_node.entry(place.node.clone()).or_default().push(place);
    }
    for node in before.into_iter().flatten().map(|(node, _)| node).filter(|node| nodes.contains_key(*node)) {
        by_node.entry(node.clone()).or_default();
    }
    let presence = |(node, places): (Arc<str>, Vec<&Place>)| {
        let of = |wanted: fn(&Place) -> bool| distinct(places.iter().copied().filter(|place| wanted(place)));
        let local = Local { ready: of(|place| place.ready), serving: of(|place| place.ready || place.serving) };
        let old = before.and_then(|before| before.get(&node)).filter(|old| old.local.phase() == local.phase());
        (node, Presence { local, since: old.map_or(now, |old| old.since) })
    };
    by_node.into_iter().map(presence).collect()
}

// === impl Local ===

impl Local {
    /// What of it a verdict depends on.
    fn phase(self) -> (bool, bool) {
        (self.ready > 0, self.serving > 0)
    }
}

// === impl Target ===

impl Target {
    /// Whether only local endpoints serve what comes from outside.
    pub fn is_local_only(&self) -> bool {
        self.service.external_policy == TrafficPolicy::Local
    }

    /// The endpoints on a node, and since when it is so.
    pub fn on(&self, node: &str) -> Presence {
        let none = Presence { local: Local::default(), since: self.since };
        self.local.get(node).copied().unwrap_or(none)
    }
}

// === impl Place ===

impl Place {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            node: endpoint.node.as_str().into(),
            address: endpoint.address,
            ready: endpoint.ready,
            serving: endpoint.serving,
        }
    }
}

#[cfg(test)]
mod tests;
