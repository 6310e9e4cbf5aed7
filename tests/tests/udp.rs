//! UDP: a flow per client and destination, with replies from the address that was dialled.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use api::proto::inspect::{ObjectKind, object::Kind as Content};
use serde_json::Value;
use tests::{
    manifests::node,
    services::{echo_pod, service},
    stack::Stack,
};
use tokio::{net::UdpSocket, time::timeout};

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

const PORT: &str = "{name: dgram, port: 90, targetPort: 8080, nodePort: 30090, protocol: UDP}";

fn manifests(pods: &[(&str, &str)]) -> String {
    let pods: String = pods.iter().map(|(name, ip)| echo_pod(name, "dgram", ip)).collect();
    let nodes = node("node-a", 1) + &node("node-b", 2);
    let load_balancer = service("dgram", "", PORT).replace("type: NodePort", "type: LoadBalancer");
    [nodes, pods, load_balancer].concat()
}

async fn client(stack: &Stack, ip: &str) -> UdpSocket {
    UdpSocket::bind(stack.at(ip, 0)).await.expect("a free address")
}

/// Sends a datagram and waits for the answer of a sample backend: who sent it, and what it says.
async fn ask(client: &UdpSocket, to: SocketAddr, datagram: &[u8]) -> (SocketAddr, Value) {
    client.send_to(datagram, to).await.expect("a datagram can be sent");
    let mut buffer = vec![0; 65_536];
    let received = timeout(PATIENCE, client.recv_from(&mut buffer)).await;
    let (length, from) = received.unwrap_or_else(|_| panic!("no reply from {to}")).expect("a reply");
    (from, serde_json::from_slice(&buffer[..length]).expect("JSON"))
}

/// Cluster and load-balancer addresses of the Service.
async fn addresses(stack: &Stack) -> Vec<SocketAddr> {
    let services = stack.list(ObjectKind::Service).await.objects;
    let found = services.into_iter().find_map(|object| match object.kind {
        Some(Content::Service(service)) if service.name == "dgram" => {
            Some([service.cluster_ips, service.load_balancer_ips].concat())
        }
        _ => None,
    });
    let ips = found.expect("the Service is listed");
    ips.iter().map(|ip| SocketAddr::new(ip.parse().expect("an address"), 90)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_come_from_the_address_that_was_dialled() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("dgram-1", "2.1"), ("dgram-2", "2.2")]))]).await;
    let client = client(&stack, "9.1").await;
    let mut destinations = addresses(&stack).await;
    assert_eq!(destinations.len(), 2, "{destinations:?}");
    destinations.extend([stack.at("1.1", 30_090), stack.at("1.2", 30_090)]);
    // One socket to all of them, so that a reply by the wrong way cannot be hidden by the kernel.
    let mut flows = BTreeSet::new();
    for _ in 0..3 {
        for destination in &destinations {
            let (from, seen) = ask(&client, *destination, b"hello").await;
            assert_eq!(from, *destination);
            assert_eq!(seen["payload"], "hello", "{seen}");
            flows.insert((*destination, seen["peer"].to_string(), seen["pod"].to_string()));
        }
    }
    assert_eq!(flows.len(), destinations.len(), "one flow per destination: {flows:?}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_keeps_its_endpoint_and_flows_are_spread() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("dgram-1", "2.1"), ("dgram-2", "2.2")]))]).await;
    let to = stack.at("1.1", 30_090);
    let (mut pods, mut peers) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..40 {
        let client = client(&stack, "9.1").await;
        let mut flow = BTreeSet::new();
        for _ in 0..5 {
            let (_, seen) = ask(&client, to, b"hello").await;
            flow.insert((seen["pod"].to_string(), seen["peer"].to_string()));
        }
        assert_eq!(flow.len(), 1, "the same endpoint by the same socket: {flow:?}");
        let (pod, peer) = flow.pop_first().expect("one");
        pods.insert(pod);
        peers.insert(peer);
    }
    assert_eq!(pods.len(), 2, "{pods:?}");
    assert_eq!(peers.len(), 40, "no two clients share a socket");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_every_size_arrive_whole() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("dgram-1", "2.1")]))]).await;
    let client = client(&stack, "9.1").await;
    for length in [0, 1, 512, 1_472, 1_473, 9_000, 65_507] {
        let (_, seen) = ask(&client, stack.at("1.1", 30_090), &vec![b'x'; length]).await;
        assert_eq!(seen["bodyBytes"], length, "{seen}");
    }
    stack.stop().await;
}

/// A client that sends all the time is served again as soon as its endpoint has left the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_moves_when_its_endpoint_leaves() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("dgram-1", "2.1")]))]).await;
    let (client, to) = (client(&stack, "9.1").await, stack.at("1.1", 30_090));
    assert_eq!(ask(&client, to, b"hello").await.1["pod"], "dgram-1");
    stack.write("all.yaml", &manifests(&[("dgram-1", "2.1"), ("dgram-2", "2.2")]));
    stack.until_ready("dgram", &[stack.ip("2.1"), stack.ip("2.2")]).await;
    assert_eq!(ask(&client, to, b"hello").await.1["pod"], "dgram-1", "a new endpoint moves no flow");
    stack.write("all.yaml", &manifests(&[("dgram-2", "2.2")]));
    stack.until_ready("dgram", &[stack.ip("2.2")]).await;
    let (from, seen) = ask(&client, to, b"hello").await;
    assert_eq!((from, seen["pod"].as_str()), (to, Some("dgram-2")), "{seen}");
    stack.stop().await;
}

/// A client that was never answered, and went away, does not hold a socket for ever.
#[tokio::test(flavor = "multi_thread")]
async fn flows_end_when_nothing_is_sent() {
    let silent = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
        metadata: {name: silent-1, labels: {kubernetes.io/service-name: silent}}\n\
        endpoints: [{addresses: [127.N.2.9], conditions: {ready: true}}]\nports: [{port: 9000, protocol: UDP}]\n---\n\
        apiVersion: v1\nkind: Service\nmetadata: {name: silent}\n\
        spec: {type: NodePort, ports: [{port: 90, nodePort: 30090, protocol: UDP}]}\n";
    let stack = Stack::start(&[("all.yaml", &(node("node-a", 1) + silent))]).await;
    let endpoint = UdpSocket::bind(stack.at("2.9", 9000)).await.expect("a free address");
    let (client, to) = (client(&stack, "9.1").await, stack.at("1.1", 30_090));
    let mut buffer = [0; 16];
    client.send_to(b"first", to).await.expect("a datagram can be sent");
    let (_, first) = timeout(PATIENCE, endpoint.recv_from(&mut buffer)).await.expect("in time").expect("a datagram");

    // Its socket is closed once its port is free again: 30 s after the last datagram of a flow without replies (S16.5).
    let begin = std::time::Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    while UdpSocket::bind(first).await.is_err() {
        ticks.tick().await;
        assert!(begin.elapsed() < Duration::from_secs(40), "the flow is still there");
    }
    assert!(begin.elapsed() > Duration::from_secs(25), "it ended early");
    client.send_to(b"second", to).await.expect("a datagram can be sent");
    let (_, second) = timeout(PATIENCE, endpoint.recv_from(&mut buffer)).await.expect("in time").expect("a datagram");
    assert_ne!(first, second, "a new flow has a new socket");
    stack.stop().await;
}
