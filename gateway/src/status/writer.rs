//! The addresses of load balancers into the status of their Services: what is wanted minus what is there, while leader.
//!
//! An address reaches agents only as it is seen in the status, so nothing is served that is not written, and a replica that
//! does not lead serves the same.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use runtime::backoff::Backoff;
use serde_json::json;
use tokio::sync::watch;

use super::election::{Leadership, NotLeader};
use crate::{
    ipam::load_balancer::{
        memory::{in_status, ingress},
        request::Classes,
    },
    watch::object::{LOAD_BALANCER_CLEANUP, ObjectKey},
};

/// Writes at one time.
const AT_ONCE: usize = 8;
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How often a write is tried on a Service that others write at the same time.
const ATTEMPTS: usize = 4;
/// How long after its write a status is expected to be seen.
const SEEN_AFTER: Duration = Duration::from_secs(10);

/// The Services whose status is not what it should be, by name. A Service that is as it should be is not in it.
pub type Desired = BTreeMap<ObjectKey, Change>;

/// What is to be written to one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The load-balancer addresses, IPv4 first; none clears them.
    pub addresses: Vec<IpAddr>,
    /// The Service is being deleted, and its finalizer is to be taken away: nothing of its address is left to clean up.
    pub release: bool,
}

/// Why a Service could not be written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server refused or failed: {0}")]
    Api(#[from] kube::Error),
    #[error("no answer within {REQUEST_LIMIT:?}")]
    Slow,
    #[error("others write it all the time")]
    Busy,
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
}

/// Writes what is wanted.
pub struct Writer {
    services: Services,
    desired: watch::Receiver<Arc<Desired>>,
}

/// The Services in the cluster, as far as they are ours to write. Cloning is cheap.
#[derive(Clone)]
struct Services {
    client: Client,
    classes: Classes,
    leadership: Leadership,
}

// === impl Writer ===

impl Writer {
    /// A writer of what `desired` says, whenever `leadership` holds.
    pub fn new(
        client: Client,
        classes: Classes,
        leadership: Leadership,
        desired: watch::Receiver<Arc<Desired>>,
    ) -> Self {
        Self { services: Services { client, classes, leadership }, desired }
    }

    /// Runs until nothing can be wanted any more.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), Duration::from_secs(60));
        loop {
            self.services.leadership.gained().await;
            let desired = self.desired.borrow_and_update().clone();
            let pause = match self.services.write_all(&desired).await {
                Ok(()) if desired.is_empty() => None,
                Ok(()) => Some(SEEN_AFTER),
                Err(_) => Some(backoff.next()),
            };
            let mut leadership = self.services.leadership.clone();
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() {
                    return;
                },
                () = leadership.lost() => {}
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
        }
    }
}

// === impl Services ===

impl Services {
    /// Writes everything once. One that fails does not keep the others from being written.
    async fn write_all(&self, desired: &Desired) -> Result<(), Error> {
        let this = self.clone();
        let changes: Vec<_> = desired.iter().map(|(key, change)| (key.clone(), change.clone())).collect();
        let writes =
            futures::stream::iter(changes).map(move |(key, change)| this.clone().write_while_leader(key, change));
        let results: Vec<_> = writes.buffer_unordered(AT_ONCE).collect().await;
        results.into_iter().collect()
    }

    async fn write_while_leader(self, key: ObjectKey, change: Change) -> Result<(), Error> {
        let written = self.leadership.guard(self.write(&key, &change)).await;
        let result = written.map_err(Error::from).and_then(|result| result);
        if let Err(error) = &result {
            tracing::warn!(service = %key, %error, "the status cannot be written; trying again");
        }
        result
    }

    async fn write(&self, key: &ObjectKey, change: &Change) -> Result<(), Error> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        for _ in 0..ATTEMPTS {
            // What was seen may be old. The version makes sure that what is judged here is what is replaced.
            let Some(service) = limited(services.get_opt(&key.name)).await? else { return Ok(()) };
            match self.write_once(&services, &service, change).await {
                Err(Error::Api(kube::Error::Api(status))) if status.is_not_found() => return Ok(()),
                Err(Error::Api(kube::Error::Api(status))) if status.is_conflict() => {}
                other => return other,
            }
        }
        Err(Error::Busy)
    }

    async fn write_once(&self, services: &Api<Service>, service: &Service, change: &Change) -> Result<(), Error> {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        // It is not ours any more, which was not seen when the address was granted.
        let is_load_balancer = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        if !self.classes.take(service) && (is_load_balancer || !change.addresses.is_empty()) {
            return Ok(());
        }
        let parameters = PatchParams::default();
        let mut version = service.metadata.resource_version.clone();
        if !is_written(service, &change.addresses) {
            let list = (!change.addresses.is_empty()).then(|| ingress(&change.addresses));
            // The list is replaced as a whole, and nothing beside it is touched (S11.11).
            let patch = json!({
                "metadata": { "resourceVersion": version },
                "status": { "loadBalancer": { "ingress": list } },
            });
            let patched = limited(services.patch_status(name, &parameters, &Patch::Merge(&patch))).await?;
            tracing::info!(service = %name, namespace = service.metadata.namespace, addresses = ?change.addresses, "wrote the status");
            version = patched.metadata.resource_version;
        }
        let finalizers = service.metadata.finalizers.as_deref().unwrap_or_default();
        if change.release && finalizers.iter().any(|finalizer| finalizer == LOAD_BALANCER_CLEANUP) {
            let kept: Vec<_> = finalizers.iter().filter(|finalizer| *finalizer != LOAD_BALANCER_CLEANUP).collect();
            let patch = json!({ "metadata": { "resourceVersion": version, "finalizers": kept } });
            limited(services.patch(name, &parameters, &Patch::Merge(&patch))).await?;
        }
        Ok(())
    }
}

/// Whether the status says these addresses, and that nodes answer them.
pub fn is_written(service: &Service, addresses: &[IpAddr]) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    // The API server fills the mode in; one that lacks it means the same (S2.5).
    let ours = |entry: &k8s_openapi::api::core::v1::LoadBalancerIngress| {
        entry.hostname.is_none() && entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP")
    };
    entries.len() == addresses.len() && entries.iter().all(ours) && in_status(service) == addresses
}

async fn limited<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Slow),
    }
}

#[cfg(test)]
mod tests;
