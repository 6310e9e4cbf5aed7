//! The sandbox's kubelet: what makes a network namespace a Node. Pods are network namespaces, containers are processes
//! of this machine in namespaces of their own, and images are entries of a table.
//!
//! It keeps the promises that the controllers of Kubernetes, rollouts and Portico rely on: probes, restarts, termination,
//! projected tokens, conditions. It does not limit resources, and it pulls nothing.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Commands of the system that the kubelet runs.
pub mod command;
/// How long a container that ended waits.
pub mod backoff;
/// The images that there are.
pub mod image;
/// Environment variables and command lines.
pub mod env;
/// Networks of Pods.
pub mod network;
/// Containers as processes.
pub mod process;
/// Probes and hooks.
pub mod probe;
/// The status of a Pod, from what is seen of it.
pub mod status;
/// Volumes of Pods.
pub mod volume;
/// The containers that run now.
pub mod running;
/// The life of one Pod.
pub mod pod;
/// The Pods of a node.
pub mod pods;
/// The kubelet's own server: logs, and commands in containers.
pub mod server;
/// The Node object: registration, Lease and conditions.
pub mod node;
/// Which Node a Pod goes to.
pub mod schedule;

/// What one node is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node: String,
    /// Name of the network namespace that is the node's, as `ip netns` lists it. `None` is the namespace of the caller.
    pub namespace: Option<String>,
    /// Value of the label `topology.kubernetes.io/zone`.
    pub zone: String,
    /// Addresses of the node in that namespace, at most one of each family; the first is the primary one.
    pub addresses: Vec<IpAddr>,
    /// How the kubelet reaches the API server, from within the namespace.
    pub api: kube::Config,
    /// Directory of this node alone: volumes, roots of containers and logs. Everything mounted by the kubelet is below it.
    pub state: PathBuf,
    /// How the kubelet's own server shows itself.
    pub serving: server::Serving,
    /// The program that the image `portico` holds.
    pub portico: PathBuf,
    /// Name servers for Pods; if there are none, the ClusterIPs of the Service `kube-dns`.
    pub cluster_dns: Vec<IpAddr>,
}

/// Runs the kubelet of one node until it is stopped. Then every process of its Pods is killed and what it mounted and
/// created is removed, as if the machine had lost its power: the Node and its Pods stay in the API server.
///
/// It runs in a thread of its own that is inside the node's network namespace, so that a node that is cut off from the
/// API server has a kubelet that is cut off too.
///
/// # Errors
/// When the namespace cannot be entered, or the API server refuses the Node.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let (done, ended) = oneshot::channel();
    std::thread::Builder::new().name(format!("kubelet-{}", config.node)).spawn(move || {
        // Whoever waited for the end may have gone.
        let _ = done.send(run_here(&config, stop));
    })?;
    ended.await.context("the kubelet's thread panicked")?
}

fn run_here(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    if let Some(name) = &config.namespace {
        let file =
            std::fs::File::open(format!("/run/netns/{name}")).with_context(|| format!("network namespace {name}"))?;
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter network namespace {name}; this needs root"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, stop))
}

async fn serve(config: &Config, stop: CancellationToken) -> anyhow::Result<()> {
    pods::clean(config).await;
    let client = Client::try_from(config.api.clone())?;
    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        outcome = live(client, config) => outcome,
    };
    // All tasks are gone, and with them their processes.
    pods::clean(config).await;
    outcome
}

/// Lives until something fails that cannot fail.
async fn live(client: Client, config: &Config) -> anyhow::Result<()> {
    let registered = node::register(&client, config).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(node::renew(client.clone(), config.node.clone(), registered.metadata.uid.clone()));
    tasks.spawn(node::report(client.clone(), config.clone()));
    let running = running::Running::default();
    tasks.spawn(server::run(config.clone(), running.clone()));
    let (services, writer) = reflector::store();
    let all =
        reflector(writer, watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff());
    tasks.spawn(async move {
        all.for_each(async |_| {}).await;
        Ok(())
    });
    let ranges = node::pod_ranges(&client, &config.node).await;
    let pool = Arc::new(network::Pool::new(&ranges)?);
    let kubelet = pods::Kubelet { client, config: config.clone(), pool, services, running };
    tasks.spawn(pods::run(Arc::new(kubelet)));
    match tasks.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}
