//! Portico on a real cluster, deployed from the manifests that people apply, used with the commands that people type.
//! These tests need root; `scripts/test cluster` runs them. They share one cluster, and one at a time has it.

/// Every address of a Service.
mod addresses;
/// Gateways that come, go and lead.
mod gateways;
/// Who may do what.
mod identity;
/// What operators see in Jaeger.
mod jaeger;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tests::{
    kubectl::Kubectl,
    load::Load,
    sandbox::{
        Sandbox,
        plan::{HOST, Role},
        portico::{self, SYSTEM},
        shared,
    },
};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// Restarts of a Deployment under load. More by environment variable.
const RESTARTS: usize = 5;
const RESTARTS_VARIABLE: &str = "PORTICO_TEST_RESTARTS";
/// Seconds without an API server under load. More by environment variable.
const OUTAGE: u64 = 5;
const OUTAGE_VARIABLE: &str = "PORTICO_TEST_OUTAGE";
/// Requests a second through all nodes meanwhile.
const RATE: u32 = 300;
/// Within this time requests on kept connections to Pods whose node has lost its power are given up
/// (`--upstream-user-timeout`, 20 s), also on a busy machine. Without the option it would be minutes.
const GIVEN_UP: Duration = Duration::from_secs(90);

static CLUSTER: OnceCell<Kubectl> = OnceCell::const_new();
static TURN: Mutex<()> = Mutex::const_new(());

/// The cluster with Portico on it, to one test at a time.
async fn cluster() -> (&'static Sandbox, Kubectl, MutexGuard<'static, ()>) {
    let turn = TURN.lock().await;
    let sandbox = shared::get().await;
    let kubectl = CLUSTER.get_or_init(|| portico::deploy(sandbox, &[])).await;
    (sandbox, kubectl.clone(), turn)
}

/// A Deployment of sample backends behind a node port that is HTTP.
fn echo(name: &str, replicas: usize, node_port: u16, pre_stop: bool) -> String {
    let hook = if pre_stop { "lifecycle: {preStop: {sleep: {seconds: 2}}}" } else { "" };
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
          args: [echo]
          ports: [{{containerPort: 8080}}]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
          {hook}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {node_port}, appProtocol: http}}]
"
    )
}

fn nodes() -> impl Iterator<Item = Role> {
    (1..=shared::NODES).map(Role::Node)
}

/// Where a node port answers, on each node.
fn node_ports(port: u16) -> Vec<SocketAddr> {
    nodes().map(|node| SocketAddr::new(node.addresses()[0], port)).collect()
}

/// What `curl` in the outside client's namespace prints.
async fn curl(sandbox: &Sandbox, to: SocketAddr) -> Result<String, String> {
    let mut command = sandbox.command(Role::Client, "curl");
    command.args(["-sS", "--fail", "--max-time", "10", "--retry", "0", &format!("http://{to}/")]);
    let output = tokio::process::Command::from(command).output().await.expect("curl runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// Asks until every node answers at a port.
async fn answers_everywhere(sandbox: &Sandbox, port: u16) {
    answers_at(sandbox, &node_ports(port)).await;
}

async fn answers_at(sandbox: &Sandbox, addresses: &[SocketAddr]) {
    for &to in addresses {
        let asking = async {
            while curl(sandbox, to).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(60), asking).await;
        answered.unwrap_or_else(|_| panic!("no answer at {to}"));
    }
}

/// Load from outside through every node, and which Pods answered.
fn load(port: u16) -> Load {
    load_at(&node_ports(port))
}

fn load_at(addresses: &[SocketAddr]) -> Load {
    let from = HOST[0];
    let clients: Vec<(IpAddr, SocketAddr)> = addresses.iter().map(|&to| (from, to)).collect();
    Load::start(RATE, "sandbox", &clients)
}

fn none_failed(load: &Load) {
    let failures = load.failures();
    assert!(failures.is_empty(), "{} of {} requests failed: {failures:#?}", failures.len(), load.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_works_as_typed() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.run("create deployment nginx --image=nginx").await;
    kubectl.run("expose deployment nginx --type=NodePort --port=80").await;
    kubectl.rolled_out("default", "deployment/nginx").await;
    let port = kubectl.words(&["get", "service", "nginx", "-o", "jsonpath={.spec.ports[0].nodePort}"]).await;
    let port: u16 = port.parse().expect("a node port");
    answers_everywhere(sandbox, port).await;
    for to in node_ports(port) {
        let page = curl(sandbox, to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
        assert!(page.contains("nginx"), "{to}: {page}");
    }

    kubectl.run("scale deployment nginx --replicas=10").await;
    kubectl.rolled_out("default", "deployment/nginx").await;
    let endpoints = "get endpointslices -l kubernetes.io/service-name=nginx -o jsonpath={..addresses[0]}";
    kubectl.until(endpoints, "ten endpoints are listed", |ips| ips.split_whitespace().count() == 10).await;
    answers_everywhere(sandbox, port).await;

    kubectl.run("rollout restart deployment nginx").await;
    kubectl.rolled_out("default", "deployment/nginx").await;
    kubectl.run("delete pods -l app=nginx --wait=false").await;
    kubectl.rolled_out("default", "deployment/nginx").await;
    answers_everywhere(sandbox, port).await;

    // A node is emptied, and answers on for the Pods of others.
    kubectl.run("cordon node-3").await;
    kubectl.run("drain node-3 --ignore-daemonsets --delete-emptydir-data --timeout=120s").await;
    let on_node = "get pods -l app=nginx --field-selector=spec.nodeName=node-3 -o name";
    kubectl.until(on_node, "the node is empty", str::is_empty).await;
    kubectl.rolled_out("default", "deployment/nginx").await;
    answers_everywhere(sandbox, port).await;
    kubectl.run("uncordon node-3").await;
    kubectl.run("delete service,deployment nginx --wait").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_lose_no_request() {
    let (sandbox, kubectl, _turn) = cluster().await;
    let restarts = std::env::var(RESTARTS_VARIABLE).ok();
    let restarts = restarts.map_or(RESTARTS, |value| value.parse().expect("a number of restarts"));
    for (name, port, pre_stop) in [("rolling", 30_101, false), ("hooked", 30_102, true)] {
        kubectl.apply(&echo(name, 4, port, pre_stop)).await;
        kubectl.rolled_out("default", &format!("deployment/{name}")).await;
        answers_everywhere(sandbox, port).await;
        let mut load = load(port);
        for _ in 0..restarts {
            kubectl.run(&format!("rollout restart deployment {name}")).await;
            kubectl.rolled_out("default", &format!("deployment/{name}")).await;
        }
        load.more(RATE as usize).await;
        none_failed(&load);
        println!("{name}: {} requests over {restarts} restarts, none failed", load.requests());
        drop(load);
        kubectl.run(&format!("delete service,deployment {name} --wait=false")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_on_without_api_server_and_gateways() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("steady", 3, 30_103, false)).await;
    kubectl.rolled_out("default", "deployment/steady").await;
    answers_everywhere(sandbox, 30_103).await;
    let mut load = load(30_103);

    // The API server is away, and what happened meanwhile is forgotten when it comes back.
    let api = sandbox.cluster();
    api.stop_apiserver().expect("the API server ends");
    let outage = std::env::var(OUTAGE_VARIABLE).ok();
    let outage = outage.map_or(OUTAGE, |value| value.parse().expect("a number of seconds"));
    for _ in 0..outage {
        load.more(RATE as usize).await;
    }
    none_failed(&load);
    api.compact().await.expect("etcd forgets");
    api.start_apiserver().await.expect("the API server starts");
    kubectl.until("get nodes -o name", "the API server answers", |nodes| nodes.lines().count() == 3).await;
    kubectl.run("scale deployment steady --replicas=6").await;
    kubectl.rolled_out("default", "deployment/steady").await;
    everyone_answers(&mut load, &pods_of(&kubectl, "steady").await).await;
    none_failed(&load);

    // Both gateways are killed, and the cluster makes new ones.
    kubectl.run("-n portico-system delete pods -l app.kubernetes.io/component=gateway --force --grace-period=0").await;
    kubectl.rolled_out(SYSTEM, "deployment/portico-gateway").await;
    kubectl.run("rollout restart deployment steady").await;
    kubectl.rolled_out("default", "deployment/steady").await;
    everyone_answers(&mut load, &pods_of(&kubectl, "steady").await).await;
    none_failed(&load);
    drop(load);
    kubectl.run("delete service,deployment steady --wait=false").await;
}

/// The Pods of a Deployment that are not about to end.
async fn pods_of(kubectl: &Kubectl, app: &str) -> BTreeSet<String> {
    let line = "{range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let pods = kubectl.words(&["get", "pods", "-l", &format!("app={app}"), "-o", &format!("jsonpath={line}")]).await;
    let staying = pods.lines().filter_map(|line| line.strip_suffix(' '));
    staying.map(str::to_owned).collect()
}

/// Waits until each of these Pods has answered once more.
async fn everyone_answers(load: &mut Load, pods: &BTreeSet<String>) {
    let since = std::time::Instant::now();
    for pod in pods {
        load.first_answer(pod, since).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_takes_only_itself() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("survivor", 6, 30_104, false)).await;
    kubectl.rolled_out("default", "deployment/survivor").await;
    answers_everywhere(sandbox, 30_104).await;
    let listed = "get endpointslices -l kubernetes.io/service-name=survivor \
                  -o jsonpath={.items[*].endpoints[?(@.nodeName=='node-3')].conditions.ready}";
    kubectl.until(listed, "the node has endpoints", |ready| ready.contains("true")).await;
    let alive = &node_ports(30_104)[..2];
    // Its connections to all Pods are kept, also to those that are about to go without a word.
    let mut load = load_at(alive);
    load.more(RATE as usize).await;
    sandbox.stop_node(3).expect("the node dies");
    // What waits for a Pod there is given up and repeated elsewhere, before the cluster knows or not.
    let asked = load.requests();
    let served = async {
        while load.requests() < asked + 3 * RATE as usize {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let in_time = tokio::time::timeout(GIVEN_UP, served).await;
    assert!(in_time.is_ok(), "{} requests were answered within {GIVEN_UP:?}", load.requests() - asked);
    none_failed(&load);
    drop(load);
    let ready = "get node node-3 -o jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    kubectl.until(ready, "the cluster has noticed", |status| status != "True").await;
    kubectl.until(listed, "its endpoints are not ready", |ready| !ready.contains("true")).await;
    answers_at(sandbox, alive).await;
    for to in alive {
        for _ in 0..20 {
            curl(sandbox, *to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
        }
    }
    sandbox.start_node(3).expect("the node comes back");
    kubectl.until(ready, "the node is ready", |status| status == "True").await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    answers_everywhere(sandbox, 30_104).await;
    kubectl.run("delete service,deployment survivor --wait=false").await;
}
