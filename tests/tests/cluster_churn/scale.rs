use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tests::{
    kubectl::Kubectl,
    probe::{self, Seen, Transport},
    sandbox::{Sandbox, netns, plan::Role},
};

use crate::{ANSWER, answers_everywhere, cluster, cluster_ips, echo, elements, installed, nodes, pods, spent};

/// Services that come and go; more by environment variable. For each the API server writes three objects, so that the
/// 3,000 of a large cluster are a minute of its work.
const SERVICES: usize = 600;
const SERVICES_VARIABLE: &str = "PORTICO_TEST_SERVICES";
/// Requests to the API server at a time.
const AT_A_TIME: usize = 16;
/// How long a node may take to follow, on a machine that runs the whole cluster.
const FOLLOWS: Duration = Duration::from_secs(120);

/// How long after it was made a Service of Pods that are there answers on all nodes, whatever else there is.
const ANSWERS: Duration = Duration::from_secs(3);

/// How long each try to reach it takes.
const AGAIN: Duration = Duration::from_millis(200);

/// Processor time of all gateways and of all agents.
struct Meter {
    gateways: Duration,
    agents: Duration,
}

// === impl Meter ===

impl Meter {
    async fn start(sandbox: &Sandbox) -> Self {
        Self { gateways: spent(sandbox, "gateway").await, agents: spent(sandbox, "agent").await }
    }

    /// What was used since the start or the last call.
    async fn read(&mut self, sandbox: &Sandbox) -> String {
        let now = Self::start(sandbox).await;
        let gateways = now.gateways.saturating_sub(self.gateways);
        let agents = now.agents.saturating_sub(self.agents);
        *self = now;
        format!("the gateways {gateways:?} and the agents, with nft, {agents:?} of processor time")
    }
}

/// One more Service, of Pods that are there, beside thousands.
async fn one_more(sandbox: &Sandbox, kubectl: &Kubectl) {
    let services: Api<Service> = Api::default_namespaced(sandbox.client().await.expect("a client"));
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "one-more"},
        "spec": {"selector": {"app": "steady"}, "ports": [{"port": crate::PORT, "targetPort": 8080}]},
    }))
    .expect("a Service");
    let began = Instant::now();
    services.create(&PostParams::default(), &service).await.expect("the API server takes the Service");
    let to = cluster_ips(sandbox, "one-more").await[0];
    for from in nodes() {
        // Asked often: what is not known yet is dropped, and the kernel would try again after a second only.
        while !matches!(probe::ask(&from.namespace(), to, Transport::Tcp, AGAIN).await, Seen::Answer { .. }) {
            assert!(began.elapsed() < ANSWERS, "one more Service does not answer {} within {ANSWERS:?}", from.name());
            tokio::time::sleep(ANSWERS / 300).await;
        }
    }
    println!("one more Service answered on all nodes after {:?}", began.elapsed());
    kubectl.run("delete service one-more").await;
}

async fn count(sandbox: &Sandbox, node: Role) -> usize {
    installed(sandbox, node).await.as_ref().map_or(0, elements)
}

/// Waits until each node's rules have that many elements.
async fn until(sandbox: &Sandbox, what: &str, done: impl Fn(Role, usize) -> bool) {
    for node in nodes() {
        let deadline = Instant::now() + FOLLOWS;
        loop {
            let count = count(sandbox, node).await;
            if done(node, count) {
                break;
            }
            assert!(Instant::now() < deadline, "{} has {count} elements: {what}", node.name());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_services_come_and_go_without_a_trace() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("steady", 2, "")).await;
    kubectl.rolled_out("default", "deployment/steady").await;
    let steady = cluster_ips(sandbox, "steady").await;
    answers_everywhere(&steady).await;
    let mut before = Vec::new();
    for node in nodes() {
        before.push(count(sandbox, node).await);
    }
    let services: Api<Service> = Api::default_namespaced(sandbox.client().await.expect("a client"));
    let wanted = std::env::var(SERVICES_VARIABLE).ok();
    let wanted = wanted.map_or(SERVICES, |value| value.parse().expect("a number of Services"));
    let names: Vec<String> = (0..wanted).map(|number| format!("many-{number}")).collect();
    let mut meter = Meter::start(sandbox).await;
    let began = Instant::now();
    let made = stream::iter(&names).map(async |name| {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]},
        }))?;
        services.create(&PostParams::default(), &service).await?;
        anyhow::Ok(())
    });
    made.buffer_unordered(AT_A_TIME).try_collect::<()>().await.expect("the API server takes the Services");
    let created = began.elapsed();
    let all_there = |node: Role, count: usize| {
        let Role::Node(number) = node else { return false };
        count >= before[usize::from(number) - 1] + 2 * names.len()
    };
    until(sandbox, "all Services are there", all_there).await;
    println!("{} Services were made in {created:?} and installed after {:?}", names.len(), began.elapsed());
    println!("that took {}", meter.read(sandbox).await);
    // Nobody is behind them, which clients are told at once.
    let last = cluster_ips(sandbox, names.last().expect("Services")).await;
    for to in last {
        for node in nodes() {
            let seen = probe::ask(&node.namespace(), to, Transport::Tcp, 5 * ANSWER).await;
            assert_eq!(seen, Seen::Refused, "{} to {to}", node.name());
        }
    }
    answers_everywhere(&steady).await;
    one_more(sandbox, &kubectl).await;

    meter.read(sandbox).await;
    let began = Instant::now();
    let gone = stream::iter(&names).map(async |name| services.delete(name, &DeleteParams::default()).await.map(drop));
    gone.buffer_unordered(AT_A_TIME).try_collect::<()>().await.expect("the API server deletes the Services");
    let deleted = began.elapsed();
    let as_before = |node: Role, count: usize| {
        let Role::Node(number) = node else { return false };
        count == before[usize::from(number) - 1]
    };
    until(sandbox, "nothing of them is left", as_before).await;
    println!("they were deleted in {deleted:?} and gone after {:?}", began.elapsed());
    println!("that took {}", meter.read(sandbox).await);
    answers_everywhere(&steady).await;
    kubectl.run("delete service,deployment steady --wait=false").await;
}

const ENDPOINTS: u8 = 250;
/// Whoever picks one of 250 at random misses one of them in this many connections once in ten thousand times.
const CONNECTIONS: usize = 3_700;

#[tokio::test(flavor = "multi_thread")]
async fn all_of_250_endpoints_get_connections() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("crowd", 1, "")).await;
    kubectl.rolled_out("default", "deployment/crowd").await;
    // One Pod has all the addresses: a process for each would be the machine's test.
    let pod = pods(sandbox, "app=crowd").await.pop().expect("a Pod");
    let node = Role::parse(pod.spec.and_then(|spec| spec.node_name).as_deref().expect("a node")).expect("a node");
    let first = pod.status.and_then(|status| status.pod_ip).expect("an address");
    let uid = pod.metadata.uid.expect("a uid");
    let addresses: Vec<IpAddr> = (1..=ENDPOINTS).map(|last| IpAddr::from([10, 244, 200, last])).collect();
    let inside = addresses.iter().map(|address| format!("address add {address}/32 dev eth0"));
    netns::ip(Some(&format!("portico-pod-{}", &uid[..8])), &inside.collect::<Vec<_>>()).expect("addresses");
    let way = |from: Role| {
        let via = if from == node { first.clone() } else { node.addresses()[0].to_string() };
        let onlink = if from == node { format!(" dev pod{} onlink", &uid[..8]) } else { String::new() };
        netns::ip(Some(&from.namespace()), &[format!("route add 10.244.200.0/24 via {via}{onlink}")])
    };
    nodes().try_for_each(way).expect("routes");

    let client = sandbox.client().await.expect("a client");
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: many}\nspec: {ports: [{port: 80, name: tcp}]}\n";
    kubectl.apply(service).await;
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    // As many in each as the controller of Kubernetes writes.
    for (number, part) in addresses.chunks(100).enumerate() {
        let endpoints = part.iter().map(|address| json!({"addresses": [address], "nodeName": node.name()}));
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": format!("many-{number}"), "labels": {"kubernetes.io/service-name": "many"}},
            "addressType": "IPv4",
            "ports": [{"name": "tcp", "port": 8080}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        }))
        .expect("a slice");
        slices.create(&PostParams::default(), &slice).await.expect("the API server takes the slice");
    }
    let to = cluster_ips(sandbox, "many").await[0];
    let deadline = Instant::now() + FOLLOWS;
    let mut reached: BTreeSet<IpAddr> = BTreeSet::new();
    // Slices may arrive one by one, so it takes a while until all are among those that are picked.
    while reached.len() < addresses.len() {
        assert!(Instant::now() < deadline, "{} of {ENDPOINTS} endpoints were reached", reached.len());
        let asked = stream::iter(0..CONNECTIONS).map(async |turn| {
            let from = Role::Node(1 + u8::try_from(turn % 3).unwrap_or_default());
            probe::ask(&from.namespace(), to, Transport::Tcp, 5 * ANSWER).await
        });
        let seen: Vec<Seen> = asked.buffer_unordered(AT_A_TIME).collect().await;
        reached.extend(seen.iter().filter_map(|seen| match seen {
            Seen::Answer { local, .. } => Some(*local),
            _ => None,
        }));
    }
    assert_eq!(reached, addresses.iter().copied().collect());
    kubectl.run("delete service many crowd --wait=false").await;
    kubectl.run("delete deployment crowd --wait=false").await;
    kubectl.run("delete endpointslices many-0 many-1 many-2 --ignore-not-found --wait=false").await;
}
