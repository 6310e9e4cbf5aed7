//! What becomes of traffic while things change on a real cluster: packet rules that somebody removes, agents that are
//! killed, thousands of Services that come and go, endpoints that all go away, rollouts under every kind of load. These
//! tests need root; `scripts/test cluster` runs them. They share one cluster, and one at a time has it.

/// Datagrams to endpoints that come and go.
mod datagrams;
/// A node that gets another address.
mod node_address;
/// Packet rules, and who removes them.
mod packet_rules;
/// What DNS behind a Service asks of an agent.
mod questions;
/// Restarts under every kind of load.
mod rollout;
/// As many as a large cluster has.
mod scale;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, api::ListParams};
use serde_json::Value;
use tests::{
    kubectl::Kubectl,
    probe::{self, Seen, Transport},
    sandbox::{Sandbox, exec, plan::Role, portico, process::Process, shared},
};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer may take while nothing is wrong.
const ANSWER: Duration = Duration::from_secs(1);
/// Port of every Service here.
const PORT: u16 = 80;

static CLUSTER: OnceCell<Kubectl> = OnceCell::const_new();
static TURN: Mutex<()> = Mutex::const_new(());

/// The cluster with Portico in place of kube-proxy, to one test at a time.
async fn cluster() -> (&'static Sandbox, Kubectl, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    let sandbox = shared::get().await;
    let kubectl = CLUSTER.get_or_init(|| portico::deploy(sandbox, &[])).await;
    (sandbox, kubectl.clone(), turn)
}

/// A Deployment of echo Pods and a Service of both families with TCP and UDP, which gets this in its `spec`.
fn echo(name: &str, replicas: usize, spec: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: echo
          image: portico
          args: [echo, '--listen=0.0.0.0:8080,[::]:8080']
          env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
          readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  {spec}
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {name}}}
  ports:
    - {{name: tcp, port: {PORT}, targetPort: 8080}}
    - {{name: udp, port: {PORT}, targetPort: 8080, protocol: UDP}}
"
    )
}

fn nodes() -> impl Iterator<Item = Role> {
    (1..=shared::NODES).map(Role::Node)
}

/// The ClusterIPs of a Service with its port, IPv4 first.
async fn cluster_ips(sandbox: &Sandbox, name: &str) -> Vec<SocketAddr> {
    let services: Api<Service> = Api::default_namespaced(sandbox.client().await.expect("a client"));
    let service = services.get(name).await.expect("the Service is there");
    let addresses = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    let mut addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.into_iter().map(|address| SocketAddr::new(address, PORT)).collect()
}

/// The Pods with a label `app`, of any namespace.
async fn pods(sandbox: &Sandbox, selector: &str) -> Vec<Pod> {
    let pods: Api<Pod> = Api::all(sandbox.client().await.expect("a client"));
    pods.list(&ListParams::default().labels(selector)).await.expect("a list of Pods").items
}

/// The addresses of a Service's endpoints that serve, as the API server has them.
async fn serving(sandbox: &Sandbox, service: &str) -> BTreeSet<IpAddr> {
    let slices: Api<EndpointSlice> = Api::default_namespaced(sandbox.client().await.expect("a client"));
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = slices.list(&of_service).await.expect("a list of slices").items;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let serving = endpoints.filter(|endpoint| {
        // What is not said is true (S3.7).
        endpoint.conditions.as_ref().and_then(|conditions| conditions.serving).unwrap_or(true)
    });
    serving.flat_map(|endpoint| endpoint.addresses).map(|address| address.parse().expect("an address")).collect()
}

/// The processes of a part of Portico, `agent` or `gateway`.
async fn processes(sandbox: &Sandbox, component: &str) -> Vec<Process> {
    let pods = pods(sandbox, &format!("app.kubernetes.io/component={component}")).await;
    pods.iter().flat_map(|pod| exec::containers(pod.metadata.uid.as_deref().expect("a uid"))).collect()
}

/// Processor time of a part of Portico on all nodes, with that of the programs it has run, such as `nft`.
async fn spent(sandbox: &Sandbox, component: &str) -> Duration {
    let processes = processes(sandbox, component).await;
    processes.into_iter().filter_map(Process::spent).sum()
}

/// Asks from a node until a Pod answers. Gives how long that took.
async fn answers(from: Role, to: SocketAddr, transport: Transport) -> Duration {
    let began = Instant::now();
    loop {
        let seen = probe::ask(&from.namespace(), to, transport, ANSWER).await;
        if matches!(seen, Seen::Answer { .. }) {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "{to} does not answer {}: {seen:?}", from.name());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn answers_everywhere(addresses: &[SocketAddr]) {
    for from in nodes() {
        for to in addresses {
            for transport in [Transport::Tcp, Transport::Udp] {
                answers(from, *to, transport).await;
            }
        }
    }
}

/// What Portico has installed on a node, as `nft` tells it, if it is there.
async fn installed(sandbox: &Sandbox, node: Role) -> Option<Value> {
    let mut nft = sandbox.command(node, "nft");
    nft.args(["-j", "list", "table", "inet", "portico"]);
    let output = tokio::process::Command::from(nft).output().await.expect("nft runs");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("nft prints JSON"))
}

/// How many elements all sets and maps of a table have.
fn elements(table: &Value) -> usize {
    let parts = table["nftables"].as_array().into_iter().flatten();
    let sets = parts.filter_map(|part| part.get("set").or_else(|| part.get("map")));
    sets.map(|set| set["elem"].as_array().map_or(0, Vec::len)).sum()
}
