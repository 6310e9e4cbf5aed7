//! The Pods of a node: one worker for each, fed by a watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use tokio::{sync::watch, task::JoinSet};

use super::{Config, network, pod, running::Running};

/// What all Pods of a node share.
pub struct Kubelet {
    /// To the API server.
    pub client: Client,
    /// The node.
    pub config: Config,
    /// Addresses for Pods.
    pub pool: Arc<network::Pool>,
    /// All Services, for the variables that name them.
    pub services: reflector::Store<Service>,
    /// The containers that run, by name.
    pub running: Running,
}

/// What the API server wants of a Pod.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The Pod as it is there, or last was.
    pub pod: Arc<Pod>,
    /// Whether it is there no longer.
    pub gone: bool,
}

/// By UID of the Pod.
type Workers = BTreeMap<String, watch::Sender<Wish>>;

// === impl Kubelet ===

impl Kubelet {
    /// Directory of a Pod, by its UID.
    pub fn directory(&self, uid: &str) -> PathBuf {
        self.config.state.join("pods").join(uid)
    }

    /// Directory of the logs of a container, which stays when the Pod is gone.
    pub fn logs(&self, namespace: &str, pod: &str, uid: &str, container: &str) -> PathBuf {
        self.config.state.join("logs").join(format!("{namespace}_{pod}_{uid}")).join(container)
    }
}

/// Runs the Pods that are bound to the node, for ever.
///
/// # Errors
/// When a worker panics.
pub async fn run(kubelet: Arc<Kubelet>) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::all(kubelet.client.clone());
    let ours = watcher::Config::default().fields(&format!("spec.nodeName={}", kubelet.config.node));
    let mut events = watcher(pods, ours).default_backoff().boxed();
    let mut workers = Workers::new();
    let mut tasks = JoinSet::new();
    let mut listed = BTreeSet::new();
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(watcher::Event::Apply(pod)) => apply(&kubelet, &mut workers, &mut tasks, pod),
                Ok(watcher::Event::Delete(pod)) => gone(&mut workers, &pod.uid().unwrap_or_default()),
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.insert(pod.uid().unwrap_or_default());
                    apply(&kubelet, &mut workers, &mut tasks, pod);
                }
                Ok(watcher::Event::InitDone) => {
                    let missing: Vec<String> = workers.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                    missing.iter().for_each(|uid| gone(&mut workers, uid));
                }
                Err(error) => tracing::warn!(node = kubelet.config.node, %error, "the kubelet cannot watch its Pods"),
            },
            Some(ended) = tasks.join_next() => ended?,
        }
    }
}

fn apply(kubelet: &Arc<Kubelet>, workers: &mut Workers, tasks: &mut JoinSet<()>, pod: Pod) {
    let uid = pod.uid().unwrap_or_default();
    let wish = Wish { pod: Arc::new(pod), gone: false };
    match workers.get(&uid) {
        // A worker that has ended wants to know no more.
        Some(worker) => drop(worker.send_replace(wish)),
        None => {
            let worker = watch::Sender::new(wish);
            let live = pod::live(kubelet.clone(), worker.subscribe());
            tasks.spawn(live);
            workers.insert(uid, worker);
        }
    }
}

/// Tells a worker that its Pod is gone, and forgets it: the worker ends by itself.
fn gone(workers: &mut Workers, uid: &str) {
    if let Some(worker) = workers.remove(uid) {
        worker.send_modify(|wish| wish.gone = true);
    }
}

/// Removes what the Pods of a node have left: by a kubelet that was killed, or by the one that ends now.
pub async fn clean(config: &Config) {
    let Ok(entries) = std::fs::read_dir(config.state.join("pods")) else { return };
    for entry in entries.flatten() {
        network::remove(&entry.file_name().to_string_lossy()).await;
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove what a Pod has left");
        }
    }
}
