use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    probe::{self, Transport},
    sandbox::{Sandbox, plan::Role},
};
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::{PATIENCE, answers, cluster, cluster_ips, echo, pods};

/// Between one datagram and the next.
const PERIOD: Duration = Duration::from_millis(5);
/// After this time nothing is sent to an endpoint any more that is gone from its slice.
const STOPS: Duration = Duration::from_secs(1);
/// What counts datagrams to Pods on their way out of a node.
const COUNTER: &str = "conformance";

/// Somebody who sends datagrams from one socket and does not wait for answers, as senders of logs and metrics do.
struct Sender {
    traffic: Arc<Mutex<Traffic>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Traffic {
    sent: usize,
    answered: usize,
    /// When each Pod answered last.
    last: BTreeMap<String, Instant>,
}

// === impl Sender ===

impl Sender {
    fn start(from: Role, to: SocketAddr) -> Self {
        let socket = probe::datagrams(&from.namespace(), to).expect("a socket");
        let socket = UdpSocket::from_std(socket).expect("it does not block");
        let traffic = Arc::new(Mutex::new(Traffic::default()));
        let task = tokio::spawn({
            let traffic = traffic.clone();
            async move {
                let mut ticks = tokio::time::interval(PERIOD);
                loop {
                    ticks.tick().await;
                    // Refused while there are no endpoints, which does not keep such senders from going on.
                    let sent = socket.try_send(b"#").is_ok();
                    lock(&traffic).sent += usize::from(sent);
                    receive(&socket, &traffic);
                }
            }
        });
        Self { traffic, task }
    }

    /// Whether one of these Pods answered after that moment.
    fn reached_since(&self, since: Instant, pods: &[String]) -> bool {
        let traffic = lock(&self.traffic);
        pods.iter().any(|pod| traffic.last.get(pod).is_some_and(|last| *last > since))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn receive(socket: &UdpSocket, traffic: &Mutex<Traffic>) {
    let mut buffer = [0; 2048];
    while let Ok(length) = socket.try_recv(&mut buffer) {
        let answer: Value = serde_json::from_slice(&buffer[..length]).expect("an answer of an echo Pod");
        let pod = answer["pod"].as_str().expect("a Pod").to_owned();
        let mut traffic = lock(traffic);
        traffic.answered += 1;
        traffic.last.insert(pod, Instant::now());
    }
}

/// A task that panicked leaves what it wrote before, which is whole.
fn lock(traffic: &Mutex<Traffic>) -> MutexGuard<'_, Traffic> {
    traffic.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts on a node what goes to each of these addresses.
fn count(sandbox: &Sandbox, node: Role, addresses: &[String]) {
    let rules: Vec<String> = addresses
        .iter()
        .map(|address| format!("ip daddr {address} udp dport 8080 counter comment \"{address}\""))
        .collect();
    let script = format!(
        "add table inet {COUNTER}\ndelete table inet {COUNTER}\ntable inet {COUNTER} {{ chain out {{ type filter hook \
         postrouting priority 300;\n{}\n}}\n}}",
        rules.join("\n")
    );
    let status = sandbox.command(node, "nft").arg(&script).status().expect("nft runs");
    assert!(status.success(), "nft takes {script}");
}

/// How many datagrams went out by address so far.
fn counted(sandbox: &Sandbox, node: Role) -> BTreeMap<String, u64> {
    let output = sandbox.command(node, "nft").args(["-j", "list", "table", "inet", COUNTER]).output();
    let table: Value = serde_json::from_slice(&output.expect("nft runs").stdout).expect("nft prints JSON");
    let rules = table["nftables"].as_array().into_iter().flatten().filter_map(|part| part.get("rule"));
    let counter = |rule: &Value| {
        let counters = rule["expr"].as_array().into_iter().flatten();
        let packets = counters.filter_map(|part| part["counter"]["packets"].as_u64()).next()?;
        Some((rule["comment"].as_str()?.to_owned(), packets))
    };
    rules.filter_map(counter).collect()
}

/// Names and IPv4 addresses of the Pods of a Deployment.
async fn names_and_addresses(sandbox: &Sandbox, name: &str) -> (Vec<String>, Vec<String>) {
    let pods = pods(sandbox, &format!("app={name}")).await.into_iter();
    let address = |pod: k8s_openapi::api::core::v1::Pod| Some((pod.metadata.name?, pod.status?.pod_ip?));
    pods.filter_map(address).unzip()
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_follow_endpoints_that_go_and_come_back() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("datagrams", 3, "")).await;
    kubectl.rolled_out("default", "deployment/datagrams").await;
    let to = cluster_ips(sandbox, "datagrams").await[0];
    let node = Role::Node(1);
    answers(node, to, Transport::Udp).await;
    let sender = Sender::start(node, to);
    for round in 0..3 {
        let (names, addresses) = names_and_addresses(sandbox, "datagrams").await;
        let began = Instant::now();
        while !sender.reached_since(began, &names) {
            assert!(began.elapsed() < PATIENCE, "round {round}: none of {names:?} is reached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("round {round}: datagrams arrive {:?} after the rollout", began.elapsed());
        count(sandbox, node, &addresses);
        kubectl.run("scale deployment datagrams --replicas=0").await;
        let listed = "get endpointslices -l kubernetes.io/service-name=datagrams \
                      -o jsonpath={.items[*].endpoints[?(@.conditions.serving==true)].addresses[0]}";
        kubectl.until(listed, "no endpoint serves", str::is_empty).await;
        tokio::time::sleep(STOPS).await;
        let before = counted(sandbox, node);
        assert_eq!(before.len(), addresses.len(), "every address is counted");
        tokio::time::sleep(2 * STOPS).await;
        assert_eq!(counted(sandbox, node), before, "round {round}: datagrams go to Pods that are gone");
        kubectl.run("scale deployment datagrams --replicas=3").await;
        kubectl.rolled_out("default", "deployment/datagrams").await;
    }
    {
        let Traffic { sent, answered, .. } = &*lock(&sender.traffic);
        println!("{sent} datagrams were sent and {answered} answered; there was nobody three times");
    }
    drop(sender);
    kubectl.run("delete service,deployment datagrams --wait=false").await;
}
