//! What changed in the world, as changes of resources and of problems. The only caller of the other files here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use api::resource::{Key, Kind, Resource, name::NamespacedName, namespace::Namespace, service::ServiceType};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{
    endpoint, node, service, slice, workload,
    world::{Dirty, Synced, World, is_foreign},
};
use crate::{
    emulate::slices::HEADLESS,
    problem::Problem,
    snapshot::store::Change,
    watch::object::{self, ObjectKey},
};

/// Remembers which endpoints were published for each Service, so that those that are gone can be taken back.
#[derive(Debug, Default)]
pub struct Derive {
    endpoints: HashMap<NamespacedName, BTreeSet<Box<str>>>,
    /// The slices that were published for each Service, as they were.
    slices: HashMap<NamespacedName, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    started: bool,
}

/// What follows from a change of the world.
#[derive(Debug, Default)]
pub struct Derived {
    /// Resources that are new, changed or gone. Some may be equal to what they were.
    pub changes: Vec<Change>,
    /// The problems of objects that were looked at; an empty list where there are none any more.
    pub problems: Vec<(ObjectKey, Vec<Problem>)>,
}

// === impl Derive ===

impl Derive {
    /// Derives what is dirty; everything at the first call.
    pub fn derive(&mut self, synced: Synced<'_>, dirty: &Dirty) -> Derived {
        let world = synced.world;
        let mut derived = Derived::default();
        let everything;
        let dirty = if self.started {
            dirty
        } else {
            self.started = true;
            everything = world.everything();
            &everything
        };
        if dirty.settings {
            derived.changes.push(Change::Set(Resource::Settings(world.settings())));
        }
        for name in &dirty.nodes {
            let resource = world.nodes.get(name).map(|object| Resource::Node(node::derive(name, object)));
            derived.change(Key::new(Kind::Node, &**name), resource);
        }
        for name in &dirty.namespaces {
            let resource = world.namespaces.contains_key(name).then(|| Namespace { name: name.to_string() });
            derived.change(Key::new(Kind::Namespace, &**name), resource.map(Resource::Namespace));
        }
        for name in &dirty.services {
            service_changes(world, name, &mut derived);
            let foreign =
                world.services.get(name).filter(|object| !world.config.ownership.takes(&object.metadata.labels));
            let foreign = foreign.map(|object| Resource::ForeignService(Box::new(service::derive_names(name, object))));
            derived.change(Key::new(Kind::ForeignService, name.to_string()), foreign);
        }
        for name in &dirty.endpoints {
            self.endpoint_changes(world, name, &mut derived);
            self.slice_changes(world, name, &mut derived);
        }
        for name in &dirty.certificates {
            let used = world.secret_users.contains_key(name);
            let certificate = world.secrets.get(name).filter(|_| used).and_then(|secret| secret.certificate.clone());
            derived.change(Key::new(Kind::Certificate, name.to_string()), certificate.map(Resource::Certificate));
        }
        for address in &dirty.addresses {
            let pods = world.pods_at.get(address).into_iter().flatten();
            let claimants = pods.filter_map(|name| Some((name, world.pods.get(name)?)));
            let resource = workload::derive(*address, claimants).map(Resource::Workload);
            derived.change(Key::new(Kind::Workload, address.to_string()), resource);
        }
        for key in &dirty.misplaced {
            derived.problems.push((key.clone(), world.misplaced.get(key).cloned().unwrap_or_default()));
        }
        derived
    }

    fn endpoint_changes(&mut self, world: &World, name: &NamespacedName, derived: &mut Derived) {
        let before = self.endpoints.remove(name).unwrap_or_default();
        let mut now = BTreeSet::new();
        for endpoint in endpoints(world, name) {
            let resource = Resource::Endpoint(Box::new(endpoint));
            now.insert(resource.key().name);
            derived.changes.push(Change::Set(resource));
        }
        for gone in before.difference(&now) {
            derived.changes.push(Change::Remove(Key::new(Kind::Endpoint, gone.clone())));
        }
        if !now.is_empty() {
            self.endpoints.insert(name.clone(), now);
        }
    }

    fn slice_changes(&mut self, world: &World, name: &NamespacedName, derived: &mut Derived) {
        let mut before = self.slices.remove(name).unwrap_or_default();
        let now: BTreeMap<_, _> =
            usable_slices(world, name).map(|(slice, object)| (slice.clone(), object.clone())).collect();
        for (slice, object) in &now {
            let known = before.remove(slice);
            // Hashing a slice of a hundred endpoints costs more than to see that it is the same object.
            if !known.is_some_and(|known| Arc::ptr_eq(&known, object)) {
                derived.changes.push(Change::Set(Resource::Slice(slice::derive(name, slice, object))));
            }
        }
        for gone in before.keys() {
            derived.changes.push(Change::Remove(Key::new(Kind::Slice, format!("{name}/{gone}"))));
        }
        if !now.is_empty() {
            self.slices.insert(name.clone(), now);
        }
    }
}

impl Derived {
    fn change(&mut self, key: Key, resource: Option<Resource>) {
        self.changes.push(resource.map_or(Change::Remove(key), Change::Set));
    }
}

fn service_changes(world: &World, name: &NamespacedName, derived: &mut Derived) {
    let mut problems = Vec::new();
    let ours = world.services.get(name).filter(|object| world.config.ownership.takes(&object.metadata.labels));
    let resource = ours.map(|object| {
        let service = service::derive(name, object, &world.config.policy, &mut |problem| problems.push(problem));
        if let Some(secret) = &service.tls_secret {
            let message = match world.secrets.get(secret) {
                None => Some(format!("portico.dev/tls-secret: there is no Secret {secret} of type kubernetes.io/tls")),
                Some(parsed) => parsed.problem.as_ref().map(|problem| {
                    let kept =
                        if parsed.certificate.is_some() { "; its last good content is still served" } else { "" };
                    format!("portico.dev/tls-secret: Secret {secret}: {problem}{kept}")
                }),
            };
            problems.extend(message.map(|message| Problem::new("INVALID_TLS_SECRET", message)));
        }
        Resource::Service(Box::new(service))
    });
    derived.change(Key::new(Kind::Service, name.to_string()), resource);
    let key = ObjectKey::new(object::Kind::Service, name.namespace.clone(), name.name.clone());
    derived.problems.push((key, problems));
}

/// The endpoints of a Service that is ours, and of any headless one: no proxy serves those, and DNS answers for all.
fn endpoints(world: &World, name: &NamespacedName) -> Vec<api::resource::endpoint::Endpoint> {
    endpoint::derive(name, usable_slices(world, name).map(|(_, slice)| slice), world.config.reach)
}

/// The slices that a Service is served from, by name.
fn usable_slices<'a>(
    world: &'a World,
    name: &NamespacedName,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<EndpointSlice>)> {
    let served = world.services.get(name).and_then(|object| {
        let kind = service::kind(object);
        let ours = world.config.ownership.takes(&object.metadata.labels);
        (kind == ServiceType::Headless || (ours && kind != ServiceType::ExternalName)).then_some(kind)
    });
    let slices = served.and_then(|_| world.slices.get(name)).into_iter().flatten();
    // Slices of a headless Service are for DNS only (S1.3), and must not serve it once it has a ClusterIP.
    let for_dns =
        |slice: &EndpointSlice| slice.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(HEADLESS));
    slices.filter(move |(_, slice)| served == Some(ServiceType::Headless) || !(for_dns(slice) || is_foreign(slice)))
}

#[cfg(test)]
mod tests;
