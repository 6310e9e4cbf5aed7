//! Processes of nodes. Each kubelet is one, so that a node can be stopped alone; a further process, the keeper, does what
//! a cluster has once: it schedules, routes, holds the lock of the sandbox, and ends the sandbox with its owner.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::ListParams};
use tokio_util::sync::CancellationToken;

use crate::kubelet;

use super::{
    cleanup,
    cluster::config,
    netns,
    pki::CA,
    plan::{POD_CIDRS, Plan, Role, node_name, zone},
    process::{self, Owner},
    programs, routes,
    state::{Lock, State, make_directory},
};

/// Name of the keeper's record and log.
pub const KEEPER: &str = "keeper";

/// How long a kubelet may take to remove what it made.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether the owner still runs.
const OWNER_CHECK: Duration = Duration::from_millis(200);

/// Name of the record and log of a node's kubelet.
pub fn kubelet_process(node: u8) -> String {
    format!("kubelet-{}", node_name(node))
}

fn kube_proxy_process(node: u8) -> String {
    format!("kube-proxy-{}", node_name(node))
}

/// Starts the keeper, which has the lock from then on.
///
/// # Errors
/// When it does not start.
pub fn start_keeper(state: &State, plan: &Plan, lock: &Lock, owner: Owner) -> Result<()> {
    let mut command = Command::new(&plan.program);
    command.arg("keep");
    if let Owner::Process(process) = owner {
        command.arg(format!("--owner={process}"));
    }
    process::start(state, KEEPER, &command, lock.share()?)
}

/// Starts the kubelet of a node.
///
/// # Errors
/// When it does not start.
pub fn start_kubelet(state: &State, plan: &Plan, node: u8) -> Result<()> {
    let mut command = Command::new(&plan.program);
    command.arg("kubelet").arg(node.to_string());
    process::start(state, &kubelet_process(node), &command, Stdio::null())
}

/// Ends the kubelet of a node, and with it the processes of the node's Pods.
///
/// # Errors
/// When it does not end.
pub fn stop_kubelet(state: &State, node: u8) -> Result<()> {
    let running: Vec<_> = state.process(&kubelet_process(node)).into_iter().collect();
    process::end(&running, GRACE).with_context(|| format!("cannot stop {}", kubelet_process(node)))
}

/// Starts the real kube-proxy in the namespace of a node.
///
/// # Errors
/// When it is not installed or does not start.
pub fn start_kube_proxy(state: &State, node: u8) -> Result<()> {
    let program = programs::find("kube-proxy")?;
    let mut command = netns::command(&Role::Node(node).namespace(), &program.to_string_lossy());
    command.args([
        "--proxy-mode=nftables".to_owned(),
        format!("--kubeconfig={}", state.pki("kube-proxy.kubeconfig").display()),
        format!("--hostname-override={}", node_name(node)),
        format!("--cluster-cidr={}", POD_CIDRS.join(",")),
        // These settings belong to the machine; a namespace cannot change them.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
    ]);
    process::start(state, &kube_proxy_process(node), &command, Stdio::null())
}

/// Ends kube-proxy on a node, and removes its packet rules and the connections that they were applied to.
///
/// # Errors
/// When it does not end, or the rules stay.
pub fn stop_kube_proxy(state: &State, node: u8) -> Result<()> {
    let running: Vec<_> = state.process(&kube_proxy_process(node)).into_iter().collect();
    process::end(&running, GRACE).with_context(|| format!("cannot stop {}", kube_proxy_process(node)))?;
    for family in ["ip", "ip6"] {
        let mut command = netns::command(&Role::Node(node).namespace(), "nft");
        let status = command.args(["delete", "table", family, "kube-proxy"]).status().context("cannot run nft")?;
        ensure!(status.success(), "the {family} rules of kube-proxy stay on {}", node_name(node));
    }
    // Else packets with the ports of an old connection would go where it went.
    netns::forget_connections(&Role::Node(node).namespace())
}

/// The keeper: runs until it is stopped, or until the owner has ended and the sandbox is removed.
///
/// # Errors
/// When the scheduler or the routes fail.
pub async fn keep(state: State, owner: Owner, stop: CancellationToken) -> Result<()> {
    let scheduler = kubelet::schedule::run(config(&state.pki("scheduler.kubeconfig")).await?, stop.clone());
    // What a cloud's route controller may do, which is to write the status of Nodes.
    let routes = routes::run(Client::try_from(config(&state.kubeconfig()).await?)?, state.plan()?);
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = scheduler => ended.context("the scheduler ended"),
        ended = routes => ended.context("routes are not made any more"),
        () = ended(owner) => tokio::task::spawn_blocking(cleanup::remove_all).await?,
    }
}

/// The kubelet of one node, until it is stopped.
///
/// # Errors
/// Those of the kubelet.
pub async fn run_kubelet(state: State, node: u8, stop: CancellationToken) -> Result<()> {
    let plan = state.plan()?;
    let (role, name) = (Role::Node(node), node_name(node));
    let directory = state.node(&name);
    make_directory(&directory)?;
    let [certificate, key] = ["crt", "key"].map(|kind| state.pki(&format!("{name}.{kind}")));
    let config = kubelet::Config {
        api: config(&state.pki(&format!("{name}.kubeconfig"))).await?,
        node: name,
        namespace: Some(role.namespace()),
        zone: zone(node).to_owned(),
        addresses: role.addresses().to_vec(),
        state: directory,
        serving: kubelet::server::Serving { certificate, key, authority: state.pki(CA) },
        portico: plan.portico,
        cluster_dns: plan.cluster_dns,
    };
    kubelet::run(config, stop).await
}

/// Which nodes are not ready, and what each waits for.
///
/// # Errors
/// When the API server does not answer.
pub async fn not_ready(client: &Client, plan: &Plan) -> Result<Vec<String>> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| anyhow!("cannot list Nodes: {error}"))?;
    let waiting = (1..=plan.nodes).map(node_name).filter_map(|name| {
        let node = nodes.items.iter().find(|node| node.metadata.name.as_ref() == Some(&name));
        let what = node.map_or(Some("registration"), waits_for)?;
        Some(format!("{name} waits for {what}"))
    });
    Ok(waiting.collect())
}

fn waits_for(node: &Node) -> Option<&'static str> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is = |type_: &str, status: &str| {
        conditions.iter().any(|condition| condition.type_ == type_ && condition.status == status)
    };
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    if !is("Ready", "True") {
        Some("its kubelet")
    } else if !is("NetworkUnavailable", "False") {
        Some("its routes")
    } else if taints.iter().any(|taint| taint.key == "node.kubernetes.io/not-ready") {
        Some("the node lifecycle controller")
    } else {
        None
    }
}

async fn ended(owner: Owner) {
    let Owner::Process(process) = owner else { return std::future::pending().await };
    while process.is_running() {
        tokio::time::sleep(OWNER_CHECK).await;
    }
}
