//! Every type of Service answers at its addresses, by name, and with a reason where it cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::proto::inspect::{Object, ObjectKind, object::Kind as Content};
use tests::{
    client::{self, Client},
    manifests::node,
    net::Net,
    stack::Stack,
};

const NODES: &str = include_str!("../../deploy/examples/quickstart/nodes.yaml");
const PODS: &str = include_str!("../../deploy/examples/quickstart/pods.yaml");
const SERVICES: &str = include_str!("../../deploy/examples/quickstart/services.yaml");

/// The quickstart, at the addresses of a stack.
async fn quickstart() -> Stack {
    let moved = |text: &str| text.replace("127.0.1.", "127.N.1.").replace("127.1.", "127.N.2");
    // 127.1.3.10 becomes 127.N.23.10, 127.1.3.0/24 becomes 127.N.23.0/24.
    Stack::start(&[("nodes.yaml", &moved(NODES)), ("pods.yaml", &moved(PODS)), ("services.yaml", &moved(SERVICES))])
        .await
}

async fn cluster_ip(stack: &Stack, name: &str) -> IpAddr {
    let services = stack.list(ObjectKind::Service).await.objects;
    let find = |object: &Object| match &object.kind {
        Some(Content::Service(service)) if service.name == name => {
            let ips =
                if service.load_balancer_ips.is_empty() { &service.cluster_ips } else { &service.load_balancer_ips };
            ips.first().map(|ip| ip.parse().expect("an address"))
        }
        _ => None,
    };
    services.iter().find_map(find).unwrap_or_else(|| panic!("no address for {name}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_service_answers() {
    let stack = quickstart().await;
    let client = stack.ip("9.1");
    for name in ["web", "web-load-balancer", "web-manual", "web-multi"] {
        let ip = cluster_ip(&stack, name).await;
        let answer = client::get(client, (ip, 80).into(), name, "/").await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        assert_eq!(answer.field("client"), client.to_string(), "{name}");
    }
    for node in ["1.1", "1.2", "1.3"] {
        for port in [30_080, 30_081] {
            let answer = client::get(client, stack.at(node, port), "any", "/").await;
            assert_eq!(answer.status, 200, "{node}:{port}: {answer:?}");
        }
        for name in ["web", "web-headless.default", "web-alias.default.svc", "web.default.svc.cluster.local."] {
            let answer = client::get(client, stack.at(node, 8080), name, "/").await;
            assert_eq!(answer.status, 200, "{name} by {node}: {answer:?}");
        }
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_keeps_its_pod_through_every_node() {
    let stack = quickstart().await;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for last in 1..=50 {
        let client = stack.ip(&format!("9.{last}"));
        let mut pods = BTreeSet::new();
        for node in ["1.1", "1.2", "1.3"] {
            let mut connection = Client::connect(client, stack.at(node, 30_080)).await.expect("a node port");
            for _ in 0..10 {
                let answer = connection.get("web", "/").await.expect("an answer");
                assert_eq!(answer.field("client"), client.to_string());
                pods.insert(answer.field("pod"));
            }
        }
        assert_eq!(pods.len(), 1, "{client} was served by {pods:?}");
        *counts.entry(pods.pop_first().expect("one")).or_default() += 1;
    }
    assert_eq!(counts.len(), 3, "all pods take part: {counts:?}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_says_why() {
    let stack = quickstart().await;
    let shared = stack.at("1.1", 8080);
    let unknown = client::get(stack.ip("9.1"), shared, "nobody.default.svc.cluster.local", "/").await;
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.header("proxy-status").starts_with("portico; error=destination_not_found; details=\"UNKNOWN_NAME\"")
    );
    assert_eq!(unknown.body.iter().filter(|byte| **byte == b'\n').count(), 1, "one line: {:?}", unknown.body);

    stack.write(
        "empty.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec:\n  selector: {app: nobody}\n  \
         ports: [{port: 80, appProtocol: http}]\n",
    );
    let known =
        |objects: &[Object]| objects.iter().any(|object| object.key.as_ref().is_some_and(|key| key.name == "empty"));
    stack.until(ObjectKind::Service, "the Service is known", known).await;
    let empty = client::get(stack.ip("9.1"), shared, "empty", "/").await;
    assert_eq!(empty.status, 503);
    assert!(empty.header("proxy-status").contains("details=\"NO_ENDPOINTS\""), "{:?}", empty.headers);
    let ip = cluster_ip(&stack, "empty").await;
    assert_eq!(client::get(stack.ip("9.1"), (ip, 80).into(), "x", "/").await.status, 503);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_one_can_start_where_one_has_just_ended() {
    let manifests = [("all.yaml", &*node("node-a", 1))];
    let mut net = Net::claim();
    for _ in 0..10 {
        net = Stack::start_in(net, &manifests, &[]).await.stop().await;
    }
}
