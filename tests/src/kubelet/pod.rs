//! The life of one Pod on its node: network, volumes, initial containers, containers, and its end.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, ContainerStateTerminated, Pod},
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use self::supervise::{Ending, Job, Restarts};
use super::{
    env::Addresses,
    network::{self, PodNetwork},
    pods::{Kubelet, Wish},
    status::{Observed, Seen, State, is_sidecar},
    volume::Volumes,
};

/// From a container's description to what it takes to start it.
pub mod launch;
/// Telling the API server what a Pod does.
pub mod report;
/// One container: start, probes, restarts and end.
pub mod supervise;

/// How soon a network that could not be made is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Grace of a Pod that does not say, in seconds. The API server's default.
const GRACE: i64 = 30;

/// What the containers of a Pod share.
pub struct Context {
    /// The node.
    pub kubelet: Arc<Kubelet>,
    /// The Pod as it was when it came to the node.
    pub pod: Arc<Pod>,
    /// What is seen of it.
    pub observed: watch::Sender<Observed>,
    /// A directory for this Pod alone.
    pub directory: PathBuf,
    /// Network namespace; `None` is the node's.
    pub network: Option<String>,
    /// Its addresses and the node's.
    pub addresses: Addresses,
    /// Its volumes.
    pub volumes: Arc<Volumes>,
}

/// What ends with a Pod.
#[derive(Default)]
struct Body {
    network: Option<PodNetwork>,
    keeper: JoinSet<()>,
    containers: JoinSet<i32>,
    sidecars: JoinSet<i32>,
}

/// Lives the life of a Pod. Ends when the Pod is gone from the API server, and everything of it from the node.
pub async fn live(kubelet: Arc<Kubelet>, mut wishes: watch::Receiver<Wish>) {
    let pod = wishes.borrow().pod.clone();
    let uid = pod.uid().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if !matches!(phase, Some("Succeeded" | "Failed")) {
        let observed = watch::Sender::new(restored(&pod));
        // Ends after it has reported the end.
        let reports = report::run(kubelet.clone(), wishes.clone(), observed.subscribe());
        let life = async {
            let body = run(&kubelet, &wishes, &observed).await;
            network::remove(&uid).await;
            // Its addresses are free only now.
            drop(body);
            observed.send_modify(|observed| (observed.finished, observed.prepared) = (true, false));
        };
        tokio::join!(life, reports);
        let _ = tokio::fs::remove_dir_all(kubelet.directory(&uid)).await;
    }
    deleted(&mut wishes).await;
    if !wishes.borrow().gone {
        report::delete(&kubelet.client, &pod).await;
    }
}

/// Runs the containers of a Pod until all have ended, by themselves or because the Pod is deleted.
async fn run(kubelet: &Arc<Kubelet>, wishes: &watch::Receiver<Wish>, observed: &watch::Sender<Observed>) -> Body {
    let ending = watch::Sender::new(Ending::default());
    let mut body = Body::default();
    let mut orders = wishes.clone();
    tokio::select! {
        () = deleted(&mut orders) => {}
        () = body.start(kubelet, wishes, observed, &ending) => {}
    }
    let begun = Instant::now();
    // A second deletion may shorten the grace of the first.
    let hurry = async {
        loop {
            let latest = begun + grace(&orders.borrow_and_update());
            ending.send_modify(|ending| ending.deadline = Some(ending.deadline.map_or(latest, |old| old.min(latest))));
            if orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let end = async {
        while body.containers.join_next().await.is_some() {}
        ending.send_modify(|ending| ending.sidecars = true);
        while body.sidecars.join_next().await.is_some() {}
    };
    tokio::select! {
        () = end => {}
        () = hurry => {}
    }
    body
}

// === impl Body ===

impl Body {
    /// Brings up everything in its order, and waits until the containers have ended by themselves.
    async fn start(
        &mut self,
        kubelet: &Arc<Kubelet>,
        wishes: &watch::Receiver<Wish>,
        observed: &watch::Sender<Observed>,
        ending: &watch::Sender<Ending>,
    ) {
        let pod = wishes.borrow().pod.clone();
        let spec = pod.spec.clone().unwrap_or_default();
        let directory = kubelet.directory(&pod.uid().unwrap_or_default());
        observed.send_modify(|observed| observed.start = observed.start.or(Some(Timestamp::now())));
        if spec.host_network != Some(true) {
            self.network = Some(network(kubelet, &pod, &directory, observed).await);
        }
        let host = kubelet.config.addresses.clone();
        let own = self.network.as_ref().map_or_else(|| host.clone(), |network| network.addresses.clone());
        let addresses = Addresses { pod: own, host };
        let volumes = Arc::new(Volumes {
            client: kubelet.client.clone(),
            directory: directory.join("volumes"),
            host: kubelet.config.state.join("host"),
            addresses: addresses.clone(),
        });
        let (tell, mut told) = watch::channel(Some("the volumes are not filled yet".to_owned()));
        self.keeper.spawn(volumes.clone().keep(wishes.clone(), tell));
        loop {
            let obstacle = told.borrow_and_update().clone();
            let filled = obstacle.is_none();
            observed.send_modify(|observed| observed.obstacle = obstacle);
            if filled || told.changed().await.is_err() {
                break;
            }
        }
        observed.send_modify(|observed| (observed.prepared, observed.pod_ips) = (true, addresses.pod.clone()));
        let network = self.network.as_ref().map(|network| network.namespace.clone());
        let observed = observed.clone();
        let context = Context { kubelet: kubelet.clone(), pod, observed, directory, network, addresses, volumes };
        let context = Arc::new(context);
        let policy = spec.restart_policy.as_deref().unwrap_or("Always");
        if self.initialise(&context, spec.init_containers.as_deref().unwrap_or_default(), policy, ending).await {
            for container in spec.containers {
                let restarts = Restarts::new(policy);
                self.containers.spawn(Job::new(&context, container, restarts, false, ending.subscribe()).supervise());
            }
            while self.containers.join_next().await.is_some() {}
        }
    }

    /// Runs the initial containers one after the other. False when one has failed for good.
    async fn initialise(
        &mut self,
        context: &Arc<Context>,
        containers: &[Container],
        policy: &str,
        ending: &watch::Sender<Ending>,
    ) -> bool {
        for container in containers {
            let sidecar = is_sidecar(container);
            let restarts = match (sidecar, policy) {
                (true, _) => Restarts::Always,
                (false, "Never") => Restarts::Never,
                (false, _) => Restarts::OnFailure,
            };
            let name = container.name.clone();
            let job = Job::new(context, container.clone(), restarts, sidecar, ending.subscribe()).supervise();
            if sidecar {
                self.sidecars.spawn(job);
                let started = |observed: &Observed| observed.containers.get(&name).is_some_and(|seen| seen.started);
                // The sender is in the context, which outlives this.
                let _ = context.observed.subscribe().wait_for(started).await;
            } else {
                self.containers.spawn(job);
                if !matches!(self.containers.join_next().await, Some(Ok(0))) {
                    return false;
                }
            }
        }
        true
    }
}

/// Makes the network of a Pod, and tries until it succeeds.
async fn network(kubelet: &Kubelet, pod: &Pod, directory: &PathBuf, observed: &watch::Sender<Observed>) -> PodNetwork {
    let uid = pod.uid().unwrap_or_default();
    loop {
        // First of all the directory: by it a later kubelet finds what this one has left.
        let made = match std::fs::create_dir_all(directory) {
            Ok(()) => PodNetwork::create(&uid, &kubelet.pool, &kubelet.config.addresses).await,
            Err(error) => Err(error.into()),
        };
        match made {
            Ok(network) => return network,
            Err(error) => {
                tracing::warn!(pod = pod.name_any(), error = format!("{error:#}"), "cannot make the network of a Pod");
                observed.send_modify(|observed| observed.obstacle = Some(format!("no network: {error:#}")));
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Waits until a Pod is to end.
async fn deleted(wishes: &mut watch::Receiver<Wish>) {
    // Without a sender there is no kubelet, and this task is about to be dropped.
    let _ = wishes.wait_for(|wish| wish.gone || wish.pod.metadata.deletion_timestamp.is_some()).await;
}

/// How long containers may take to end.
fn grace(wish: &Wish) -> Duration {
    let metadata = &wish.pod.metadata;
    let asked = metadata.deletion_timestamp.as_ref().and(metadata.deletion_grace_period_seconds);
    let own = wish.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = if wish.gone { 0 } else { asked.or(own).unwrap_or(GRACE) };
    Duration::from_secs(seconds.max(0).unsigned_abs())
}

/// What is known of a Pod from an earlier kubelet: its containers have ended with it, and start again.
fn restored(pod: &Pod) -> Observed {
    let status = pod.status.clone().unwrap_or_default();
    let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
    let containers = all.filter_map(|old| {
        let running = old.state.and_then(|state| state.running);
        let lost = running.map(|running| ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some("the node was restarted".to_owned()),
            started_at: running.started_at,
            ..Default::default()
        });
        let last = lost.or(old.last_state.and_then(|state| state.terminated));
        let seen = Seen { last, restarts: old.restart_count, id: Some(old.container_id?), ..Default::default() };
        Some((old.name, Seen { state: State::waiting("ContainerCreating", None), ..seen }))
    });
    Observed { containers: containers.collect(), start: status.start_time.map(|time| time.0), ..Default::default() }
}

// === impl Context ===

impl Context {
    /// Address that probes and hooks are sent to.
    pub fn address(&self) -> IpAddr {
        self.addresses.pod.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }

    /// Where the log of a run of a container is.
    pub fn log(&self, container: &str, run: i32) -> PathBuf {
        let namespace = self.pod.namespace().unwrap_or_default();
        self.kubelet
            .logs(&namespace, &self.pod.name_any(), &self.pod.uid().unwrap_or_default(), container)
            .join(format!("{run}.log"))
    }

    /// Takes what is seen of a container.
    pub fn see(&self, container: &str, change: impl FnOnce(&mut Seen)) {
        self.observed.send_modify(|observed| change(observed.containers.entry(container.to_owned()).or_default()));
    }

    /// What was seen of a container last.
    pub fn seen(&self, container: &str) -> Seen {
        self.observed.borrow().containers.get(container).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wish(pod: Value, gone: bool) -> Wish {
        Wish { pod: Arc::new(serde_json::from_value(pod).unwrap()), gone }
    }

    #[test]
    fn the_grace_is_that_of_the_deletion_then_that_of_the_pod() {
        let own = json!({ "spec": { "containers": [], "terminationGracePeriodSeconds": 7 } });
        let mut asked = own.clone();
        asked["metadata"] = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 2 });
        let seconds = |wish: &Wish| grace(wish).as_secs();
        assert_eq!(seconds(&wish(json!({ "spec": { "containers": [] } }), false)), 30);
        assert_eq!(seconds(&wish(own, false)), 7);
        assert_eq!(seconds(&wish(asked.clone(), false)), 2);
        assert_eq!(seconds(&wish(asked, true)), 0);
    }

    #[test]
    fn containers_of_an_earlier_kubelet_have_ended_and_keep_their_count() {
        let pod = json!({ "spec": { "containers": [] }, "status": { "containerStatuses": [{ "name": "main", "image": "", "imageID": "",
            "ready": true, "restartCount": 2, "containerID": "processes://1", "state": { "running": { "startedAt": null } } }] } });
        let observed = restored(&serde_json::from_value(pod).unwrap());
        let seen = &observed.containers["main"];
        assert_eq!((seen.restarts, seen.last.as_ref().unwrap().exit_code, seen.ready), (2, 137, false));
    }
}
