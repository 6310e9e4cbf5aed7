//! The Kubernetes API as a source: one watch for each kind, and a relist becomes one Reset of its kind.
//!
//! What is seen is never older than what was seen: a watch continues from the version of the last event, bookmarks keep that
//! version young, and a version the API server has forgotten (410) leads to a new list. Between its first and last page a list
//! is collected apart, so that objects which are gone are seen to be deleted, and others are not.
//!
//! A list that is silent for a while is asked for again, each failure is followed by a longer pause than the last one, and what
//! cannot be watched is reported for as long as it lasts. Projected tokens are read again from their file each minute, by the
//! client.
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
    networking::v1::ServiceCIDR,
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
    address_pool::AddressPool,
    object::{Event, Kind, Object},
};
use crate::problem::Problem;

/// Seconds after which the API server ends a watch, and we begin it anew. A dead connection is noticed five seconds later.
const WATCH_SECONDS: u32 = 240;
/// Silence after which the API server is taken for dead. It ends a watch before, and sends bookmarks meanwhile.
const READ_LIMIT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);
/// Silence within a list after which it is asked for again. The longest pause between two attempts is half of it.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// Silence after a failure that means success: every further attempt would have failed by then, pause and connect included.
const RECOVERED_AFTER: Duration = Duration::from_secs(75);
/// Namespace whose UID stands for the cluster's: it exists in each, and is never deleted.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// A cluster to read from.
#[derive(Clone)]
pub struct Source {
    client: Client,
    /// Without the limit on silence, which is one for watches.
    writing: Client,
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
        let mut config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| failed(error.into()))?;
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| failed(error.into()))?
            }
            None => kube::Config::infer().await.map_err(|error| failed(error.into()))?,
        };
        // Whoever asks tries again by itself, and says so: a retry inside of the client would be a silence without reason.
        config.default_retry = false;
        let writing = Client::try_from(config.clone()).map_err(|error| failed(error.into()))?;
        config.read_timeout = Some(READ_LIMIT);
        let client = Client::try_from(config).map_err(|error| failed(error.into()))?;
        Ok(Self { client, writing })
    }

    /// Reads and writes through this client.
    pub fn new(client: Client) -> Self {
        Self { writing: client.clone(), client }
    }

    /// A client for writing. It neither retries nor gives up by itself.
    pub fn writing(&self) -> Client {
        self.writing.clone()
    }

    /// What it reads through.
    pub fn client(&self) -> Client {
        self.client.clone()
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
        watches.spawn(watch::<Namespace>(
            client.clone(),
            Kind::Namespace,
            all.clone(),
            sender.clone(),
            failures.clone(),
        ));
        watches.spawn(watch::<AddressPool>(
            client.clone(),
            Kind::AddressPool,
            all.clone(),
            sender.clone(),
            failures.clone(),
        ));
        watches.spawn(watch::<ServiceCIDR>(client.clone(), Kind::ServiceCIDR, all, sender.clone(), failures));
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
    let begin = || watcher(Api::<K>::all(client.clone()), config.clone()).default_backoff().boxed();
    let mut events = begin();
    let mut listing = Listing::default();
    loop {
        let limit = match listing.complete {
            false => Some(LIST_LIMIT),
            true => failures.contain(kind).then_some(RECOVERED_AFTER),
        };
        let next = match limit {
            Some(limit) => tokio::time::timeout(limit, events.next()).await,
            None => Ok(events.next().await),
        };
        let (event, reports) = match next {
            Ok(None) => return,
            Ok(Some(Ok(event))) => match listing.take(kind, event) {
                Some(event) => (Some(event), failures.solved(kind)),
                None => continue,
            },
            Ok(Some(Err(error))) => match listing.without_kind(kind, &error) {
                Some(event) => (Some(event), failures.solved(kind)),
                None => (None, failures.failed(kind, &error)),
            },
            // A watch says nothing of having begun, and of a quiet kind it says nothing for hours.
            Err(_) if listing.complete => (None, failures.solved(kind)),
            Err(_) => {
                events = begin();
                (None, failures.note(kind, &format!("the API server did not answer within {LIST_LIMIT:?}")))
            }
        };
        if event.is_none() && reports.is_none() {
            continue;
        }
        if batches.send(Batch { events: event.into_iter().collect(), reports }).await.is_err() {
            return;
        }
    }
}

/// The list that a watch begins with, while it arrives.
#[derive(Debug, Default)]
struct Listing {
    objects: Vec<Object>,
    /// Whether no list is awaited.
    complete: bool,
    /// Whether there ever was one.
    ever: bool,
}

// === impl Listing ===

impl Listing {
    /// Takes in what the watch says; what follows from it, if it is not a part of a list.
    fn take<K: Into<Object>>(&mut self, kind: Kind, event: watcher::Event<K>) -> Option<Event> {
        match event {
            watcher::Event::Init => {
                self.objects.clear();
                self.complete = false;
                None
            }
            watcher::Event::InitApply(object) => {
                self.objects.push(object.into().trimmed());
                None
            }
            watcher::Event::InitDone => {
                (self.complete, self.ever) = (true, true);
                Some(Event::Reset(kind, std::mem::take(&mut self.objects)))
            }
            watcher::Event::Apply(object) => Some(Event::Apply(object.into().trimmed())),
            watcher::Event::Delete(object) => Some(Event::Delete(object.into().key())),
        }
    }

    /// An empty list, the first time that a cluster says it does not know the kind, for kinds of which that is no mistake. A
    /// kind that was known before keeps its last state.
    fn without_kind(&mut self, kind: Kind, error: &watcher::Error) -> Option<Event> {
        if !kind.may_be_unknown() || !is_unknown_kind(error) || self.ever {
            return None;
        }
        self.ever = true;
        let remedy = match kind {
            Kind::AddressPool => "install deploy/base/crds.yaml to use it",
            _ => "it takes a newer Kubernetes",
        };
        tracing::info!(%kind, remedy, "the cluster does not know this kind");
        Some(Event::Reset(kind, vec![]))
    }
}

/// Whether a list failed because the API server does not know the kind. It then answers in plain text, with a status of
/// HTTP and without a reason that `Status::is_not_found` would look at.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

// === impl Failures ===

impl Failures {
    /// Whether a kind cannot be watched at present.
    fn contain(&self, kind: Kind) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&kind)
    }

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
        // Known already, and said when it was found out. It is an answer, so what kept us from getting one is over.
        if kind.may_be_unknown() && is_unknown_kind(error) {
            return self.solved(kind);
        }
        self.note(kind, &error.to_string())
    }

    /// Notes that a kind cannot be watched; all reports if that is news.
    fn note(&self, kind: Kind, reason: &str) -> Option<Arc<Reports>> {
        let message = format!("cannot watch objects of kind {kind}, so the last state seen stays in force: {reason}");
        let problem = Problem::new("WATCH_FAILED", message);
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failures.insert(kind, problem.clone());
        (before.as_ref() != Some(&problem)).then(|| Self::reports(&failures))
    }

    fn reports(failures: &BTreeMap<Kind, Problem>) -> Arc<Reports> {
        let (source, unwatched) = (failures.values().cloned().collect(), failures.keys().copied().collect());
        Arc::new(Reports { source, unwatched, ..Reports::default() })
    }
}

#[cfg(test)]
mod tests;
