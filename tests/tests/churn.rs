//! Manifests change while traffic runs: no request fails that a live endpoint could have answered, every change shows soon,
//! and `portico get` says the same.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use api::proto::inspect::{Object, ObjectKind};
use tests::{
    client::Client,
    deployment::Deployment,
    get,
    load::Load,
    manifests::{Pod, node, node_port},
    stack::Stack,
};
use tokio::net::TcpStream;

/// Nobody waits longer than this for a change; what is usual is printed.
const LIMIT: Duration = Duration::from_secs(5);

/// Requests without an answer of a Pod that show it is gone: one of four Pods is missed by chance with 0.75 to this power.
const QUIET: usize = 80;

struct Churn {
    stack: Stack,
    load: Load,
    pods: Vec<Pod>,
    took: Vec<(&'static str, Duration)>,
}

impl Churn {
    /// Writes Pods and their Service as one file, which is one change.
    fn write(&self, port: &str) -> Instant {
        let pods: String = self.pods.iter().map(|pod| pod.text()).collect();
        let at = Instant::now();
        self.stack.write("app.yaml", &(pods + &node_port("web", port, 30_080)));
        at
    }

    /// Notes how long after the write a change showed.
    fn note(&mut self, what: &'static str, written: Instant, shown: Instant) {
        let took = shown.duration_since(written);
        assert!(took < LIMIT, "{what}: seen {took:?} after the write");
        self.took.push((what, took));
    }

    /// `portico get endpoints` lists these as ready.
    async fn agrees(&self) {
        let ready = self.pods.iter().filter(|pod| pod.ready);
        let mut wanted: Vec<String> = ready.map(|pod| self.stack.ip(&format!("2.{}", pod.last)).to_string()).collect();
        wanted.sort();
        let shown = get::json(self.stack.at("0.1", 18_001), &["endpoints", "web"]).await;
        let endpoints = shown["endpoints"].as_array().expect("a list");
        let ready = endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let mut listed: Vec<&str> = ready.map(|endpoint| endpoint["addresses"][0].as_str().expect("text")).collect();
        listed.sort_unstable();
        assert_eq!(listed, wanted, "{shown}");
    }
}

/// When an address first takes connections, or first refuses them.
async fn reachable(address: SocketAddr, wanted: bool) -> Instant {
    let wait = async {
        while TcpStream::connect(address).await.is_ok() != wanted {
            tokio::task::yield_now().await;
        }
        Instant::now()
    };
    let waited = tokio::time::timeout(LIMIT * 2, wait).await;
    waited.unwrap_or_else(|_| panic!("{address} should take connections: {wanted}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_manifests_change() {
    let nodes = node("node-a", 1) + &node("node-b", 2) + &node("node-c", 3);
    let pods = vec![Pod::new(1, "node-a"), Pod::new(2, "node-b"), Pod::new(3, "node-c")];
    let app: String = pods.iter().map(|pod| pod.text()).collect();
    let app = app + &node_port("web", "http", 30_080);
    let stack = Stack::start(&[("nodes.yaml", &nodes), ("app.yaml", &app)]).await;
    let addresses: Vec<_> = (1..=3).map(|last| stack.ip(&format!("2.{last}"))).collect();
    stack.until_ready("web", &addresses).await;
    let clients: Vec<_> = (1..=12)
        .map(|last| (stack.ip(&format!("9.{last}")), stack.at(&format!("1.{}", last % 3 + 1), 30_080)))
        .collect();
    let load = Load::start(200, "web", &clients);
    let mut churn = Churn { stack, load, pods, took: Vec::new() };
    churn.load.more(100).await;

    churn.pods.retain(|pod| pod.last != 3);
    let written = churn.write("http");
    let last = churn.load.last_answer("web-3", written, QUIET).await;
    churn.note("Pod deleted", written, last);
    churn.agrees().await;

    churn.pods.extend([Pod::new(4, "node-c"), Pod::new(5, "node-a")]);
    let written = churn.write("http");
    for name in ["web-4", "web-5"] {
        let first = churn.load.first_answer(name, written).await;
        churn.note("Pod added", written, first);
    }
    churn.agrees().await;

    churn.pods[0].ready = false;
    let written = churn.write("http");
    let last = churn.load.last_answer("web-1", written, QUIET).await;
    churn.note("readiness lost", written, last);
    churn.agrees().await;
    churn.pods[0].ready = true;
    let written = churn.write("http");
    let first = churn.load.first_answer("web-1", written).await;
    churn.note("readiness gained", written, first);
    churn.agrees().await;

    // The Service names the port, so that its Pods and it have to change together.
    churn.pods.iter_mut().for_each(|pod| pod.port = "renamed");
    churn.write("renamed");
    churn.load.more(100).await;
    churn.pods.push(Pod { port: "renamed", ..Pod::new(6, "node-b") });
    let written = churn.write("renamed");
    let first = churn.load.first_answer("web-6", written).await;
    churn.note("Pod with a renamed port added", written, first);
    churn.agrees().await;

    // Deleted, and brought back while its last connections may still be open, as by an undo in an editor.
    let back = churn.pods.pop().expect("there are Pods");
    let written = churn.write("renamed");
    let left: Vec<_> = churn.pods.iter().map(|pod| churn.stack.ip(&format!("2.{}", pod.last))).collect();
    churn.stack.until_ready("web", &left).await;
    churn.load.last_answer(&back.name(), written, QUIET / 4).await;
    churn.pods.push(back);
    let written = churn.write("renamed");
    let first = churn.load.first_answer(&back.name(), written).await;
    churn.note("Pod brought back", written, first);
    churn.agrees().await;

    let own = churn.stack.at("1.2", 30_099);
    assert!(TcpStream::connect(own).await.is_err(), "{own} is not open yet");
    let written = Instant::now();
    churn.stack.write("second.yaml", &node_port("second", "renamed", 30_099));
    let opened = reachable(own, true).await;
    churn.note("NodePort Service added", written, opened);
    let mut client = Client::connect(churn.stack.ip("9.77"), own).await.expect("it is open");
    assert_eq!(client.get("second", "/").await.expect("an answer").status, 200);
    let services = get::json(churn.stack.at("0.1", 18_001), &["services", "second"]).await;
    assert_eq!(services["spec"]["ports"][0]["nodePort"], 30_099);
    let written = Instant::now();
    churn.stack.remove("second.yaml");
    let closed = reachable(own, false).await;
    churn.note("NodePort Service removed", written, closed);
    let services = get::json(churn.stack.at("0.1", 18_001), &["services"]).await;
    let names: Vec<&str> = services["items"].as_array().expect("a list").iter().map(name).collect();
    assert_eq!(names, ["web"]);

    // A file that broke keeps its last good content, and says where it is broken.
    let written = Instant::now();
    churn.stack.write("app.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web\nspec: [\u{0}\n");
    let problems = async |broken: bool| {
        while churn.stack.list(ObjectKind::Service).await.problems.is_empty() == broken {
            tokio::task::yield_now().await;
        }
        Instant::now()
    };
    let reported = tokio::time::timeout(LIMIT * 2, problems(true)).await.expect("the broken file is reported");
    let (_, warnings) = get::text(churn.stack.at("0.1", 18_001), &["services"]).await;
    assert!(warnings.contains("app.yaml") && warnings.contains("line "), "{warnings}");
    churn.note("garbage reported", written, reported);
    churn.agrees().await;
    churn.load.more(100).await;
    churn.pods.retain(|pod| pod.last != 2);
    let written = churn.write("renamed");
    let last = churn.load.last_answer("web-2", written, QUIET).await;
    churn.note("garbage mended, Pod deleted", written, last);
    let (_, warnings) = get::text(churn.stack.at("0.1", 18_001), &["services"]).await;
    assert_eq!(warnings, "");
    churn.agrees().await;

    let failures = churn.load.failures();
    assert!(failures.is_empty(), "of {} requests failed: {failures:#?}", churn.load.requests());
    eprintln!("{} requests, none failed; from the write to what clients see:", churn.load.requests());
    for (what, took) in &churn.took {
        eprintln!("  {:>5} ms  {what}", took.as_millis());
    }
    drop(churn.load);
    churn.stack.stop().await;
}

/// Endpoints of the Service whose endpoints all change in each round.
const ENDPOINTS: usize = 500;

/// Endpoint changes, unless `PORTICO_TEST_ENDPOINT_CHANGES` asks for more.
const CHANGES: usize = 20_000;

/// What may be held more after many changes than after some: what the allocators of all threads and caches round up to.
/// A loss of a kibibyte for each change would be more.
const GROWTH: u64 = 12 << 20;

/// What the gateway may hold in addition for each change since. It keeps the names of what the commits of the last ten
/// minutes touched, up to a limit, so that agents that come back need not be sent everything.
const LOGGED: u64 = 256;

/// A Service whose endpoints are others in every round, and one that tells the round.
fn many(round: usize) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: many}}\nspec: {{ports: [{{port: 80, appProtocol: http}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: round-{round}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: many-1, labels: {{kubernetes.io/service-name: many}}}}\nports: [{{port: 8080}}]\nendpoints:\n"
    );
    for at in 0..ENDPOINTS {
        let (third, fourth) = (32 + round % 2 * 16 + at / 250, at % 250 + 1);
        text.push_str(&format!(
            "- {{addresses: [127.N.{third}.{fourth}], conditions: {{ready: true}}, nodeName: node-a}}\n"
        ));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_returns_to_where_it_was() {
    let changes = std::env::var("PORTICO_TEST_ENDPOINT_CHANGES").map_or(CHANGES, |raw| raw.parse().expect("a number"));
    let rounds = changes / ENDPOINTS;
    let deployment = Deployment::start(&[("nodes.yaml", &node("node-a", 1)), ("many.yaml", &many(0))], &[]);
    let agent = deployment.agent("node-a", &[]);
    deployment.inspector.serving().await;
    let mut before = None;
    for round in 1..=rounds {
        deployment.write("many.yaml", &many(round));
        let marker = format!("round-{round}");
        let is_there =
            |objects: &[Object]| objects.iter().any(|object| object.key.as_ref().is_some_and(|key| key.name == marker));
        deployment.inspector.until(ObjectKind::Service, &marker, is_there).await;
        // The first rounds fill logs, pools and caches to the size that they keep.
        if round == rounds / 4 {
            before = Some((deployment.gateway.memory().0, agent.memory().0));
        }
    }
    let (gateway, of_agent) = before.expect("there are at least four rounds");
    let logged = LOGGED * (changes - changes / 4) as u64;
    for (what, before, after, bound) in [
        ("gateway", gateway, deployment.gateway.memory().0, GROWTH + logged),
        ("agent", of_agent, agent.memory().0, GROWTH),
    ] {
        eprintln!("{what}: {} KiB after {} changes, {} KiB after {changes}", before >> 10, changes / 4, after >> 10);
        assert!(after < before + bound, "the {what} grew from {before} to {after} bytes, by more than {bound}");
    }
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(deployment.gateway.terminate(), Some(0));
}

fn name(item: &serde_json::Value) -> &str {
    item["metadata"]["name"].as_str().expect("a name")
}
