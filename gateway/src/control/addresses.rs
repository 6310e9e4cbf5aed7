//! Who is to have which load-balancer address in a cluster, and which Services do not say so in their status yet.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Service;
use tokio::sync::watch;

use crate::{
    ipam::load_balancer::{
        memory::{Memory, Wanted, is_concerned},
        pool::Pool,
        request::Classes,
    },
    model::world::World,
    problem::ByObject,
    status::{
        election::Leadership,
        writer::{Change, Desired, is_written},
    },
    watch::object::{Kind, LOAD_BALANCER_CLEANUP, ObjectKey},
};

/// Assigns addresses in a cluster.
#[derive(Debug)]
pub struct Addresses {
    classes: Classes,
    /// The pool that an option makes, beside those of the cluster.
    own_pool: Option<Pool>,
    leadership: Leadership,
    /// What we granted while we lead. Whoever does not lead takes what the leader wrote, and decides nothing.
    memory: Option<Memory>,
    desired: watch::Sender<Arc<Desired>>,
}

// === impl Addresses ===

impl Addresses {
    /// Assigns nothing yet. The receiver gets what is to be written, whoever leads.
    pub fn new(
        classes: Classes,
        own_pool: Option<Pool>,
        leadership: Leadership,
    ) -> (Self, watch::Receiver<Arc<Desired>>) {
        let (desired, receiver) = watch::channel(Arc::default());
        (Self { classes, own_pool, leadership, memory: None, desired }, receiver)
    }

    /// Completes when this replica began or ceased to lead since the last assignment.
    pub async fn turned(&mut self) {
        match self.memory {
            Some(_) => self.leadership.lost().await,
            None => self.leadership.gained().await,
        }
    }

    /// Assigns anew, tells what is to be written, and returns what cannot be granted.
    pub fn assign(&mut self, world: &World) -> ByObject {
        let leads = self.leadership.holds();
        // With the first look as leader, what the status says is what everybody holds (S11.10).
        let mut memory = self.memory.take().filter(|_| leads).unwrap_or_default();
        let keyed = |(name, service)| {
            let (name, service): (&api::resource::name::NamespacedName, &Arc<Service>) = (name, service);
            (ObjectKey::new(Kind::Service, name.namespace.clone(), name.name.clone()), service)
        };
        let mut services: Vec<_> = world.services().filter(|(_, service)| is_concerned(service)).map(keyed).collect();
        // The oldest of those that wait is served first; those without a time, last.
        services.sort_by_cached_key(|(key, service)| {
            let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created.is_none(), created, key.clone())
        });
        let pools: Vec<Pool> = self.own_pool.iter().chain(world.pools()).cloned().collect();
        let ordered = services.iter().map(|(key, service)| (key, &***service));
        let wanted = memory.assign(&self.classes, &pools, world.namespaces(), ordered);
        self.memory = leads.then_some(memory);
        let by_key: BTreeMap<_, _> = services.iter().map(|(key, service)| (key, &***service)).collect();
        let desired = self.differences(&wanted, &by_key);
        self.desired.send_if_modified(|before| {
            let differs = **before != desired;
            if differs {
                *before = Arc::new(desired);
            }
            differs
        });
        let problem = |(key, wanted): (ObjectKey, Wanted)| Some((key, vec![wanted.refusal?.problem()]));
        wanted.into_iter().filter_map(problem).collect()
    }

    fn differences(&self, wanted: &BTreeMap<ObjectKey, Wanted>, services: &BTreeMap<&ObjectKey, &Service>) -> Desired {
        let mut desired = Desired::new();
        for (key, service) in services {
            let wanted = wanted.get(*key);
            let is_written = wanted.is_none_or(|wanted| is_written(service, &wanted.addresses));
            let release = self.is_to_be_released(service);
            if is_written && !release {
                continue;
            }
            // What is being deleted keeps its address until it is gone.
            let addresses = wanted.map(|wanted| wanted.addresses.clone()).unwrap_or_default();
            desired.insert((*key).clone(), Change { addresses, release });
        }
        desired
    }

    /// Whether the finalizer of load balancers keeps a Service of our class from going (S11.2). We make nothing outside
    /// the cluster that would have to be cleaned up, and nobody else may take it away.
    fn is_to_be_released(&self, service: &Service) -> bool {
        let metadata = &service.metadata;
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        finalizers.iter().any(|finalizer| finalizer == LOAD_BALANCER_CLEANUP)
            && metadata.deletion_timestamp.is_some()
            && self.classes.take(service)
    }
}

#[cfg(test)]
mod tests;
