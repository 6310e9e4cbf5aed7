//! Load balancers learn what becomes of nodes: a Python client and grpcurl, which nobody here wrote, watch while agents are
//! killed, drained and started again.

use std::{net::SocketAddr, time::Instant};

use portico_cli::echo::{self, EchoConfig};
use runtime::drain;
use serde_json::Value;
use tests::{
    binary::{self, Portico},
    client::Client,
    deployment::Deployment,
    manifests::{Pod, node, node_port},
    tools::{self, Talker},
};

/// The lease in seconds, as given to the gateway.
const LEASE: f64 = 2.0;

/// A machine of two cores that runs other tests as well is late by this many seconds at most.
const SLACK: f64 = 3.0;

/// Follows what the Python client says of nodes.
struct Watch(Talker);

impl Watch {
    fn start(address: SocketAddr) -> Self {
        let proto = tools::root().join("proto");
        Self(Talker::start(tools::python("node_health.py").arg(address.to_string()).arg(proto)))
    }

    /// The next event that gives the node this state.
    async fn state(&mut self, node: &str, state: &str) -> Value {
        let name = format!("nodes/{node}");
        self.0
            .until(&format!("{node} is {state}"), |event| event["node"] == name.as_str() && event["state"] == state)
            .await
    }

    /// Every state the node was said to be in, in order, without repetitions.
    fn states(&self, node: &str) -> Vec<String> {
        let name = format!("nodes/{node}");
        let events = self.0.said().iter().map(|line| serde_json::from_str::<Value>(line).expect("it was JSON before"));
        let mut states: Vec<String> = events
            .filter(|event| event["node"] == name.as_str())
            .map(|event| event["state"].as_str().expect("a state").to_owned())
            .collect();
        states.dedup();
        states
    }
}

fn seconds(event: &Value, field: &str) -> f64 {
    event[field].as_f64().unwrap_or_else(|| panic!("no {field} in {event}"))
}

/// What grpcurl prints, which knows nothing but what reflection tells it.
async fn grpcurl(address: SocketAddr, data: Option<&str>, symbol: &str) -> Value {
    let mut command = tools::command("grpcurl");
    command.arg("-plaintext");
    if let Some(data) = data {
        command.args(["-d", data]);
    }
    let (status, out, err) = tools::run(command.arg(address.to_string()).arg(symbol)).await;
    assert_eq!(status, Some(0), "grpcurl {symbol}: {err}");
    serde_json::from_str(&out).unwrap_or(Value::String(out))
}

async fn verdict(address: SocketAddr, node: &str) -> Value {
    let data = format!("{{\"name\": \"nodes/{node}\"}}");
    let answer = grpcurl(address, Some(&data), "portico.health.v1.NodeHealthService/GetNodeHealth").await;
    answer["node"]["health"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_hear_what_becomes_of_a_node() {
    let pods = Pod::new(1, "node-a").text() + &Pod::new(2, "node-b").text();
    let text = node("node-a", 1) + &node("node-b", 2) + &pods + &node_port("web", "http", 30_080);
    let deployment = Deployment::start(&[("all.yaml", &text)], &["--node-lease=2s"]);
    let net = &deployment.net;
    let (backends, watch) = drain::channel();
    for (last, node) in [(1, "node-a"), (2, "node-b")] {
        let listen = vec![net.at(&format!("2.{last}"), 8080)];
        let pod = format!("web-{last}");
        let config = EchoConfig { listen, pod, namespace: "default".to_owned(), node: node.to_owned() };
        tokio::spawn(echo::bind(config).expect("a free address").serve(watch.clone()));
    }
    let agent = |node: &str| deployment.agent(node, &["--drain-timeout=20s"]);
    let (first, second): (Portico, Portico) = (agent("node-a"), agent("node-b"));
    deployment.inspector.serving().await;

    let health = net.at("0.1", 18_001);
    let mut watch = Watch::start(health);
    for service in ["", "portico.health.v1.NodeHealthService"] {
        let said = watch.0.json().await;
        assert_eq!((said["service"].as_str(), said["serving"].as_str()), (Some(service), Some("SERVING")));
    }
    assert_eq!(watch.0.json().await["serving"], "SERVICE_UNKNOWN");
    assert_eq!(watch.0.json().await["missing"], "NOT_FOUND");
    for (node, last) in [("node-a", 1), ("node-b", 2)] {
        let healthy = watch.state(node, "HEALTHY").await;
        assert_eq!(healthy["addresses"][0], net.ip(&format!("1.{last}")).to_string());
        assert!(seconds(&healthy, "weight") > 0.0, "{healthy}");
        assert_eq!(verdict(health, node).await["state"], "HEALTH_STATE_HEALTHY");
    }
    let services = grpcurl(health, None, "list").await;
    assert!(services.to_string().contains("portico.health.v1.NodeHealthService"), "{services}");

    // Killed: nobody says goodbye, so the lease has to run out, and then another one.
    let killed = Instant::now();
    drop(first);
    let unknown = watch.state("node-a", "UNKNOWN").await;
    let took = killed.elapsed().as_secs_f64();
    eprintln!("UNKNOWN {took:.2} s after the kill, with a lease of {LEASE} s");
    assert!(took < LEASE + SLACK, "{unknown}");
    assert_eq!(unknown["reason"], "LEASE_EXPIRED");
    assert_eq!(verdict(health, "node-a").await["state"], "HEALTH_STATE_UNKNOWN");
    let unhealthy = watch.state("node-a", "UNHEALTHY").await;
    let term = seconds(&unhealthy, "since") - seconds(&unknown, "since");
    eprintln!("UNHEALTHY {term:.2} s after that");
    assert!((LEASE - 0.1..LEASE + SLACK).contains(&term), "one more lease, not {term} s");
    assert_eq!(seconds(&unhealthy, "weight"), 0.0, "no new connections: {unhealthy}");
    let again = agent("node-a");
    let healthy = watch.state("node-a", "HEALTHY").await;
    assert!(seconds(&healthy, "since") > seconds(&unhealthy, "since"));
    assert_eq!(watch.states("node-b"), ["HEALTHY"], "its neighbour was never in doubt");

    // Drained, with a request in flight that it finishes.
    let mut client = Client::connect(net.ip("9.1"), net.at("1.2", 30_080)).await.expect("the node port is open");
    assert_eq!(client.get("web", "/").await.expect("an answer").status, 200);
    let slow = tokio::spawn(async move { client.get("web", "/delay/2000").await });
    until_in_flight(net.at("1.2", 18_081)).await;
    let asked = Instant::now();
    second.signal_term();
    let draining = watch.state("node-b", "DRAINING").await;
    let took = asked.elapsed().as_secs_f64();
    eprintln!("DRAINING {took:.2} s after SIGTERM");
    assert!(took < LEASE, "at once, and not when the lease is over: {took} s");
    assert_eq!(seconds(&draining, "weight"), 0.0, "no new connections: {draining}");
    let shown = get_health(health, "node-b").await;
    assert_eq!(shown["health"]["state"], "Draining", "{shown}");
    assert_eq!(slow.await.expect("no panic").expect("the request is finished").status, 200);
    assert_eq!(second.wait(), Some(0), "a drained agent ends with 0");
    let second = agent("node-b");
    watch.state("node-b", "HEALTHY").await;
    assert_eq!(watch.states("node-a").last().map(String::as_str), Some("HEALTHY"), "its neighbour was not drained");
    assert_eq!(verdict(health, "node-b").await["state"], "HEALTH_STATE_HEALTHY");

    assert_eq!(again.terminate(), Some(0));
    assert_eq!(second.terminate(), Some(0));
    assert_eq!(deployment.gateway.terminate(), Some(0));
    backends.drained().await;
}

/// Waits until an agent says that it has a request in hand.
async fn until_in_flight(admin: SocketAddr) {
    let wait = async {
        while tests::metrics::of(admin).await.sum("http_server_active_requests", &[]) < 1.0 {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), wait).await;
    waited.expect("the request reaches the agent");
}

/// What `portico get health NAME` says.
async fn get_health(address: SocketAddr, node: &str) -> Value {
    let gateway = format!("http://{address}");
    let mut command = tokio::process::Command::new(binary::path());
    let (status, out, err) =
        tools::run(command.args(["get", "health", node, "-o", "json", "--gateway", &gateway])).await;
    assert_eq!(status, Some(0), "{err}");
    serde_json::from_str(&out).expect("JSON")
}
