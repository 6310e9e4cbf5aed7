//! DNS of agents on a real cluster: beside CoreDNS, which reads the same API server, and as Pods use it. These tests need
//! root; `scripts/test cluster` runs them. They share one cluster, and one at a time has it.

/// Asking servers.
mod ask;
/// What is asked.
mod questions;
/// Where the answers differ, and why.
mod differences;
/// Both servers, the same questions.
mod beside;
/// Many questions at once.
mod burst;
/// What Pods make of it.
mod pods;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tests::{
    kubectl::Kubectl,
    sandbox::{Sandbox, plan::HOST, programs, shared},
    tools, upstream,
};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

const SYSTEM: &str = "portico-system";
/// Where agents answer by default, each for its node. Kubelets tell Pods to ask there.
const AGENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 20, 53)), 53);
/// The server for names of the world.
const UPSTREAM: SocketAddr = SocketAddr::new(HOST[0], 1_153);

static CLUSTER: OnceCell<(Sandbox, Kubectl)> = OnceCell::const_new();
static TURN: Mutex<()> = Mutex::const_new(());

/// The cluster with Portico and the objects on it, to one test at a time.
async fn cluster() -> (&'static Sandbox, Kubectl, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    let (sandbox, kubectl) = CLUSTER.get_or_init(deploy).await;
    (sandbox, kubectl.clone(), turn)
}

/// Portico beside kube-proxy, as the installation guide says, where kubelets tell Pods to ask the agent of their node.
async fn deploy() -> (Sandbox, Kubectl) {
    let sandbox = shared::up_with_dns((1..=shared::NODES).collect(), vec![AGENT.ip()]).await.expect("a sandbox");
    upstream::start(UPSTREAM);
    let kubectl = Kubectl::new(programs::find("kubectl").expect("kubectl"), sandbox.kubeconfig());
    let overlay = tools::root().join("deploy/overlays/sandbox");
    kubectl.words(&["apply", "-k", &overlay.display().to_string()]).await;
    kubectl.apply(include_str!("objects.yaml")).await;
    kubectl.rolled_out(SYSTEM, "deployment/portico-gateway").await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    kubectl.rolled_out("shop", "statefulset/web").await;
    let early = "-n shop get pods -l app=early -o jsonpath={.items[*].status.podIPs}";
    kubectl.until(early, "the Pods that never get ready have addresses", |ips| ips.matches("fd44").count() == 2).await;
    (sandbox, kubectl)
}

/// Sets environment variables of the agents, such as `PORTICO_DNS_PODS=verified`; `NAME-` removes one.
async fn set_options(kubectl: &Kubectl, variables: &[&str]) {
    kubectl.words(&[&["-n", SYSTEM, "set", "env", "daemonset/portico-agent"], variables].concat()).await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
}

/// The agents' option that says whom to ask for names of the world.
fn upstream_option() -> String {
    format!("PORTICO_DNS_UPSTREAM={UPSTREAM}")
}
