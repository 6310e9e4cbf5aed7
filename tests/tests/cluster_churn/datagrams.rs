use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    kubectl::Kubectl,
    probe::{self, Transport},
    sandbox::{Sandbox, plan::Role},
};
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::{PATIENCE, answers, cluster, cluster_ips, echo, nodes, pods, serving};

/// Between one datagram and the next.
const PERIOD: Duration = Duration::from_millis(5);
/// After this time nothing is sent to an endpoint any more that is gone from its slice.
const STOPS: Duration = Duration::from_secs(1);
/// The table that counts what leaves a node.
const COUNTER: &str = "churn";
/// How often all endpoints go and come back.
const ROUNDS: usize = 2;
/// The UDP port of the Service, with a node port.
const NODE_PORT: &str = "port: 80, targetPort: 8080, nodePort: 30471, protocol: UDP";

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

/// Counts on a node which packets leave it, by name: of each of these, those that match.
pub fn count(sandbox: &Sandbox, node: Role, matches: &[(String, String)]) {
    let rules: Vec<String> =
        matches.iter().map(|(name, matches)| format!("{matches} counter comment \"{name}\"")).collect();
    let script = format!(
        "add table inet {COUNTER}\ndelete table inet {COUNTER}\ntable inet {COUNTER} {{ chain out {{ type filter hook \
         postrouting priority 300;\n{}\n}}\n}}",
        rules.join("\n")
    );
    let status = sandbox.command(node, "nft").arg(&script).status().expect("nft runs");
    assert!(status.success(), "nft takes {script}");
}

/// Removes what counts on a node.
pub fn stop_counting(sandbox: &Sandbox, node: Role) {
    let status = sandbox.command(node, "nft").args(["delete", "table", "inet", COUNTER]).status().expect("nft runs");
    assert!(status.success(), "the counters can be removed");
}

/// How many packets were counted by name so far.
pub fn counted(sandbox: &Sandbox, node: Role) -> BTreeMap<String, u64> {
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

/// Names and addresses of the Pods of a Deployment.
async fn names_and_addresses(sandbox: &Sandbox, name: &str) -> (Vec<String>, BTreeSet<IpAddr>) {
    let (mut names, mut addresses) = (Vec::new(), BTreeSet::new());
    for pod in pods(sandbox, &format!("app={name}")).await {
        names.extend(pod.metadata.name);
        let of_pod = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
        addresses.extend(of_pod.iter().map(|pod| pod.ip.parse::<IpAddr>().expect("an address")));
    }
    (names, addresses)
}

/// How many datagrams to each of these addresses left the nodes so far.
fn sent_to(sandbox: &Sandbox) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (name, packets) in nodes().flat_map(|node| counted(sandbox, node)) {
        *all.entry(name).or_default() += packets;
    }
    all
}

/// Has all Pods go while datagrams are sent, and gives how long after they had left the slices the last datagram was sent
/// to one of them; `None` if none was.
async fn all_go(sandbox: &Sandbox, kubectl: &Kubectl, addresses: &BTreeSet<IpAddr>) -> Option<Duration> {
    let family = |address: &IpAddr| if address.is_ipv4() { "ip" } else { "ip6" };
    let rule = |address: &IpAddr| (address.to_string(), format!("{} daddr {address} udp dport 8080", family(address)));
    let rules: Vec<_> = addresses.iter().map(rule).collect();
    nodes().for_each(|node| count(sandbox, node, &rules));
    kubectl.run("scale deployment datagrams --replicas=0").await;
    let began = Instant::now();
    while !serving(sandbox, "datagrams").await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "endpoints serve although there are to be none");
        tokio::time::sleep(PERIOD).await;
    }
    let gone = Instant::now();
    let (mut before, mut last) = (sent_to(sandbox), None);
    assert_eq!(before.len(), addresses.len(), "every address is counted");
    assert!(before.values().sum::<u64>() > 0, "Pods got datagrams while they were there");
    while gone.elapsed() < 3 * STOPS {
        tokio::time::sleep(10 * PERIOD).await;
        let now = sent_to(sandbox);
        if now != before {
            (before, last) = (now, Some(gone.elapsed()));
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_follow_endpoints_that_go_and_come_back() {
    let (sandbox, kubectl, _turn) = cluster().await;
    let workload =
        echo("datagrams", 3, "type: NodePort").replace("port: 80, targetPort: 8080, protocol: UDP", NODE_PORT);
    kubectl.apply(&workload).await;
    kubectl.rolled_out("default", "deployment/datagrams").await;
    // From a node to the ClusterIPs, and from outside by way of a node that hands over to others.
    let inside = cluster_ips(sandbox, "datagrams").await.into_iter().map(|to| (Role::Node(1), to));
    let outside = Role::Node(2).addresses().map(|node| (Role::Client, SocketAddr::new(node, 30_471)));
    let ways: Vec<(Role, SocketAddr)> = inside.chain(outside).collect();
    for (from, to) in &ways {
        answers(*from, *to, Transport::Udp).await;
    }
    let senders: Vec<Sender> = ways.iter().map(|(from, to)| Sender::start(*from, *to)).collect();
    for round in 0..ROUNDS {
        let (names, addresses) = names_and_addresses(sandbox, "datagrams").await;
        let began = Instant::now();
        for (sender, (_, to)) in senders.iter().zip(&ways) {
            while !sender.reached_since(began, &names) {
                assert!(began.elapsed() < PATIENCE, "round {round}: none of {names:?} is reached by {to}");
                tokio::time::sleep(PERIOD).await;
            }
        }
        println!(
            "round {round}: datagrams of all {} senders arrive {:?} after the rollout",
            ways.len(),
            began.elapsed()
        );
        let last = all_go(sandbox, &kubectl, &addresses).await;
        println!("round {round}: the last datagram to a Pod after it had left its slice: {last:?}");
        assert!(last.is_none_or(|last| last < STOPS), "round {round}: datagrams go to Pods that are gone");
        kubectl.run("scale deployment datagrams --replicas=3").await;
        kubectl.rolled_out("default", "deployment/datagrams").await;
    }
    for (sender, (from, to)) in senders.iter().zip(&ways) {
        let Traffic { sent, answered, .. } = &*lock(&sender.traffic);
        println!("{} to {to}: {sent} datagrams were sent and {answered} answered; there was nobody twice", from.name());
    }
    drop(senders);
    nodes().for_each(|node| stop_counting(sandbox, node));
    kubectl.run("delete service,deployment datagrams --wait=false").await;
}
