//! The sandbox itself: it comes up, its parts can be stopped and started, and it goes without leaving anything behind.
//! These tests need root; `scripts/test cluster` runs them.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::Context as _;
use http::Request;
use tests::{
    binary,
    sandbox::{
        Sandbox, netns,
        plan::{API_PORT, BRIDGE, HOST, Role},
        shared,
        state::ROOT,
    },
};
use tokio::{sync::Mutex, time::Instant};

const KUBE_PROXY: u8 = 2;
/// The first address of the range of Services: the API server, for who has kube-proxy.
const API_SERVICE: &str = "10.96.0.1:443";
/// A dial to where nobody answers takes this long.
const NO_ANSWER: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

/// Held by the test that runs. The lock of the machine's sandbox is not enough: one test kills the process that holds it
/// and cleans up afterwards, and who waited for that lock would be bringing the next sandbox up meanwhile.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn a_cluster_comes_up_and_goes_without_leaving_anything() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let sandbox = shared::up(vec![KUBE_PROXY]).await.expect("a sandbox");

    let nodes = text(sandbox.kubectl().expect("kubectl").args(["get", "nodes", "--no-headers"]));
    let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
    assert_eq!(ready, usize::from(shared::NODES), "{nodes}");

    let v6 = TcpListener::bind((HOST[1], 0)).expect("the machine has an IPv6 address on the bridge");
    let to = [SocketAddr::new(HOST[0], API_PORT), v6.local_addr().expect("an address")];
    for role in sandbox.plan().roles() {
        for to in to {
            connects(role, to).unwrap_or_else(|error| panic!("{} to {to}: {error:#}", role.name()));
        }
    }
    every_node_routes_to_every_other(&sandbox);
    eventually("kube-proxy serves", || connects(Role::Node(KUBE_PROXY), API_SERVICE.parse().expect("an address")))
        .await;
    assert!(
        connects(Role::Node(1), API_SERVICE.parse().expect("an address")).is_err(),
        "nobody serves Services on a node without kube-proxy"
    );

    sandbox.down().expect("everything can be removed");
    nothing_is_left();
}

#[tokio::test]
async fn the_api_server_stops_starts_and_forgets() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let sandbox = shared::up(Vec::new()).await.expect("a sandbox");
    let cluster = sandbox.cluster();
    let client = sandbox.client().await.expect("a client");

    cluster.stop_apiserver().expect("the API server ends");
    assert!(client.apiserver_version().await.is_err(), "it answers although it has ended");
    let revision = cluster.compact().await.expect("etcd forgets");
    assert!(revision > 1, "{revision}");
    cluster.start_apiserver().await.expect("the API server starts");

    let watch = "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=2&timeoutSeconds=10";
    let request = Request::get(watch).body(Vec::new()).expect("a request");
    let answer = match client.request_text(request).await {
        Ok(event) => event,
        Err(error) => error.to_string(),
    };
    assert!(answer.contains("too old resource version") || answer.contains("Expired"), "{answer}");

    // The nodes are still there: what etcd held was kept.
    let nodes = text(sandbox.kubectl().expect("kubectl").args(["get", "nodes", "--output=name"]));
    assert_eq!(nodes.lines().count(), usize::from(shared::NODES), "{nodes}");
    sandbox.down().expect("everything can be removed");
}

#[tokio::test]
async fn what_a_crash_leaves_is_removed() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let sandbox = shared::up(Vec::new()).await.expect("a sandbox");
    // Nobody but the keeper has the lock from here on.
    sandbox.leave_running();
    text(&mut program(&["status"]));
    let keeper = std::fs::read_to_string(Path::new(ROOT).join("pids/keeper")).expect("a record of the keeper");
    let pid = keeper.split(':').next().expect("a number");
    text(Command::new("kill").args(["-KILL", pid]));
    let status = output(&mut program(&["status"]));
    assert!(!status.status.success(), "{status:?}");
    assert!(String::from_utf8_lossy(&status.stderr).contains("keeper"), "{status:?}");

    text(&mut program(&["down"]));
    nothing_is_left();
}

/// Looks up the way to an address of each node's Pods on each other node.
fn every_node_routes_to_every_other(sandbox: &Sandbox) {
    let cidrs = "--output=jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDRs[*]}{\"\\n\"}{end}";
    let nodes = text(sandbox.kubectl().expect("kubectl").args(["get", "nodes", cidrs]));
    for line in nodes.lines() {
        let (name, cidrs) = line.split_once(' ').expect("a name and ranges");
        let to = Role::parse(name).expect("a node");
        assert_eq!(cidrs.split(' ').count(), 2, "both families: {line}");
        for (cidr, hop) in cidrs.split(' ').zip(to.addresses()) {
            let address = cidr.split('/').next().expect("an address");
            for from in (1..=shared::NODES).map(Role::Node).filter(|from| *from != to) {
                let way = text(sandbox.command(from, "ip").args(["route", "get", address]));
                assert!(way.contains(&format!("via {hop} ")), "{} to {cidr}: {way}", from.name());
            }
        }
    }
}

fn connects(from: Role, to: SocketAddr) -> anyhow::Result<()> {
    netns::within(&from.namespace(), || {
        TcpStream::connect_timeout(&to, NO_ANSWER).with_context(|| format!("cannot connect to {to}"))?;
        Ok(())
    })
}

async fn eventually(what: &str, mut check: impl FnMut() -> anyhow::Result<()>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = check() {
        assert!(Instant::now() < deadline, "waited in vain until {what}: {error:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn nothing_is_left() {
    assert!(!Path::new(ROOT).exists(), "{ROOT} is left");
    assert_eq!(netns::all(), [""; 0], "network namespaces are left");
    assert!(!Path::new("/sys/class/net").join(BRIDGE).exists(), "the bridge is left");
    let processes = tests::sandbox::cleanup::processes();
    assert!(processes.is_empty(), "processes are left: {processes:?}");
}

fn program(arguments: &[&str]) -> Command {
    let path: PathBuf = binary::path().with_file_name("sandbox");
    let mut command = Command::new(path);
    command.args(arguments);
    command
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Standard output of a command that must succeed.
fn text(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
