//! The Kubernetes API as a source: one watch for each kind, and a relist becomes one Reset of its kind.
//!
//! What is not here: Endpoints, which slices have replaced (S1.1). When the API server is unreachable nothing is sent, so
//! the last state seen stays in force (S1.6).

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use runtime::backoff::Backoff;
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Batch, Error, Reports,
    object::{Event, Kind, Object},
};
use crate::problem::Problem;

/// Seconds after which the API server ends a watch, and we begin it anew. A dead connection is noticed five seconds later.
const WATCH_SECONDS: u32 = 240;
/// Namespace whose UID stands for the cluster's: it exists in each, and is never deleted.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// A cluster to read from.
#[derive(Clone)]
pub struct Source {
    client: Client,
}

/// What keeps each kind from being watched at present.
#[derive(Debug, Default)]
struct Failures(Mutex<BTreeMap<Kind, Problem>>);

// === impl Source ===

impl Source {
    /// Reads credentials; nothing is dialled yet. Without a file those of the Pod or of the user are taken.
    ///
    /// # Errors
    /// [`Error::Credentials`] when there are none, or they cannot be used.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Credentials { source };
        let config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| failed(error.into()))?;
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| failed(error.into()))?
            }
            None => kube::Config::infer().await.map_err(|error| failed(error.into()))?,
        };
        Ok(Self::new(Client::try_from(config).map_err(|error| failed(error.into()))?))
    }

    /// Reads through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// UID of the cluster. Asks until there is an answer.
    pub async fn cluster_uid(&self) -> String {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10), Duration::from_secs(60));
        loop {
            let reason = match namespaces.get(CLUSTER_NAMESPACE).await {
                Ok(namespace) => match namespace.metadata.uid {
                    Some(uid) => return uid,
                    None => "it has no UID".to_owned(),
                },
                Err(error) => error.to_string(),
            };
            let wait = backoff.next();
            tracing::warn!(namespace = CLUSTER_NAMESPACE, reason, ?wait, "cannot tell the cluster; asking again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends everything there is, and then every change, until nobody listens any more.
    ///
    /// # Errors
    /// None at present: what fails is reported and tried again.
    pub async fn run(self, batches: mpsc::Sender<Batch>) -> Result<(), Error> {
        let failures = Arc::new(Failures::default());
        let mut watches = JoinSet::new();
        let all = watcher::Config::default().timeout(WATCH_SECONDS);
        // Pods that have run to their end own no address any more.
        let living = all.clone().fields("status.phase!=Succeeded,status.phase!=Failed");
        let tls = all.clone().fields("type=kubernetes.io/tls");
        let (client, sender) = (&self.client, &batches);
        watches.spawn(watch::<Service>(client.clone(), Kind::Service, all.clone(), sender.clone(), failures.clone()));
        watches.spawn(watch::<EndpointSlice>(
            client.clone(),
            Kind::EndpointSlice,
            all.clone(),
            sender.clone(),
            failures.clone(),
        ));
        watches.spawn(watch::<Pod>(client.clone(), Kind::Pod, living, sender.clone(), failures.clone()));
        watches.spawn(watch::<Node>(client.clone(), Kind::Node, all.clone(), sender.clone(), failures.clone()));
        watches.spawn(watch::<Secret>(client.clone(), Kind::Secret, tls, sender.clone(), failures.clone()));
        watches.spawn(watch::<Namespace>(client.clone(), Kind::Namespace, all, sender.clone(), failures));
        // A watch ends when nobody listens; then they all do.
        while let Some(ended) = watches.join_next().await {
            if let Err(failed) = ended
                && failed.is_panic()
            {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
        Ok(())
    }
}

impl Debug for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Source(Kubernetes API)")
    }
}

async fn watch<K>(
    client: Client,
    kind: Kind,
    config: watcher::Config,
    batches: mpsc::Sender<Batch>,
    failures: Arc<Failures>,
) where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Into<Object> + 'static,
{
    let mut events = watcher(Api::<K>::all(client), config).default_backoff().boxed();
    let mut relisted = Vec::new();
    while let Some(event) = events.next().await {
        let (event, reports) = match event {
            Ok(watcher::Event::Init) => {
                relisted.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                relisted.push(object.into().trimmed());
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                (Some(Event::Reset(kind, std::mem::take(&mut relisted))), failures.solved(kind))
            }
            Ok(watcher::Event::Apply(object)) => (Some(Event::Apply(object.into().trimmed())), failures.solved(kind)),
            Ok(watcher::Event::Delete(object)) => (Some(Event::Delete(object.into().key())), failures.solved(kind)),
            Err(error) => (None, failures.failed(kind, &error)),
        };
        if event.is_none() && reports.is_none() {
            continue;
        }
        if batches.send(Batch { events: event.into_iter().collect(), reports }).await.is_err() {
            return;
        }
    }
}

// === impl Failures ===

impl Failures {
    /// Notes that a kind can be watched; all reports if that is news.
    fn solved(&self, kind: Kind) -> Option<Arc<Reports>> {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&kind).map(|_| Self::reports(&failures))
    }

    /// Notes why a kind cannot be watched; all reports if that is news.
    fn failed(&self, kind: Kind, error: &watcher::Error) -> Option<Arc<Reports>> {
        // The end of a resource version is a normal part of watching, and is followed by a relist.
        if let watcher::Error::WatchError(status) = error
            && status.code == 410
        {
            return None;
        }
        let message = format!("cannot watch objects of kind {kind}, so the last state seen stays in force: {error}");
        let problem = Problem::new("WATCH_FAILED", message);
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failures.insert(kind, problem.clone());
        (before.as_ref() != Some(&problem)).then(|| Self::reports(&failures))
    }

    fn reports(failures: &BTreeMap<Kind, Problem>) -> Arc<Reports> {
        Arc::new(Reports { source: failures.values().cloned().collect(), ..Reports::default() })
    }
}

#[cfg(test)]
mod tests;
