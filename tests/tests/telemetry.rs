//! Each request is told once and in full: a collector that nobody here wrote receives its spans, the access log has its line,
//! and the metrics count it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tests::{
    client::{Answer, Client},
    manifests::{Pod, node, node_port},
    metrics,
    net::Net,
    standalone::Standalone,
    tools::{self, Talker},
};

/// Requests of clients that say nothing of others or of a trace.
const PLAIN: usize = 800;
/// Requests of a trusted proxy, for clients behind it and within their traces.
const TRUSTED: usize = 100;
/// Requests of a stranger who claims the same.
const FORGED: usize = 100;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e";
const PARENT: &str = "00f067aa0ba9";

fn manifests() -> String {
    let nodes = node("node-a", 1) + &node("node-b", 2) + &node("node-c", 3);
    let pods = [Pod::new(1, "node-a"), Pod::new(2, "node-b"), Pod::new(3, "node-c")];
    nodes + &pods.map(Pod::text).concat() + &node_port("web", "http", 30_080)
}

/// One request that was sent, and what has to be told of it.
#[derive(Debug)]
struct Sent {
    client: IpAddr,
    answer: Answer,
    /// Trace and parent as sent.
    context: Option<(String, String)>,
    trusted: bool,
}

fn request(path: &str, headers: &[(&str, String)]) -> Request<Full<Bytes>> {
    let builder = Request::get(path).header("host", "web").header("user-agent", "telemetry-test");
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, value));
    builder.body(Full::default()).expect("the parts are valid")
}

/// Sends all requests through all nodes; by path.
async fn send(net: &Net) -> HashMap<String, Sent> {
    let mut sent = HashMap::new();
    let node = |at: usize| net.at(&format!("1.{}", at % 3 + 1), 30_080);
    for client in 0..40 {
        let from = net.ip(&format!("9.{}", client + 1));
        let mut connection = Client::connect(from, node(client)).await.expect("the node port is open");
        for turn in 0..PLAIN / 40 {
            let path = format!("/plain/{client}/{turn}");
            let answer = connection.send(request(&path, &[])).await.expect("an answer");
            sent.insert(path, Sent { client: from, answer, context: None, trusted: false });
        }
    }
    for (kind, count, from) in [("trusted", TRUSTED, "9.200"), ("forged", FORGED, "9.201")] {
        let from = net.ip(from);
        let mut connection = Client::connect(from, node(count)).await.expect("the node port is open");
        for turn in 0..count {
            let path = format!("/{kind}/{turn}");
            let origin: IpAddr = format!("203.0.113.{}", turn + 1).parse().expect("an address");
            let (trace, parent) = (format!("{TRACE}{turn:04x}"), format!("{PARENT}{turn:04x}"));
            let headers = [("traceparent", format!("00-{trace}-{parent}-01")), ("x-forwarded-for", origin.to_string())];
            let answer = connection.send(request(&path, &headers)).await.expect("an answer");
            let trusted = kind == "trusted";
            let client = if trusted { origin } else { from };
            sent.insert(path, Sent { client, answer, context: Some((trace, parent)), trusted });
        }
    }
    assert_eq!(sent.len(), PLAIN + TRUSTED + FORGED);
    sent
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {path} of {value}"))
}

/// Reads spans until there are this many of servers for our paths. Gives them, and those of clients by parent.
async fn collect(collector: &mut Talker, wanted: usize) -> (Vec<Value>, BTreeMap<String, Vec<Value>>) {
    let (mut servers, mut clients) = (Vec::new(), BTreeMap::<String, Vec<Value>>::new());
    // The spans of one record are exported one after the other, but maybe not in the same batch.
    while servers.len() < wanted || clients.len() < wanted {
        let row = collector.json().await;
        let Some(span) = row.get("span") else { continue };
        assert_eq!(text(&row, "/resource/service.name"), "portico-agent");
        assert!(text(&row, "/resource/k8s.node.name").starts_with("node-"));
        match text(span, "/kind") {
            "SERVER" => servers.push(span.clone()),
            "CLIENT" => clients.entry(text(span, "/parent").to_owned()).or_default().push(span.clone()),
            other => panic!("a span of kind {other}"),
        }
    }
    (servers, clients)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_the_spans_of_every_request() {
    let net = Net::claim();
    let listen = net.at("3.1", 4317).to_string();
    let mut collector = Talker::start(tools::python("collector.py").arg(&listen));
    assert_eq!(collector.json().await["listening"], listen.as_str());
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.N.3.1:4317"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let options = ["--access-log=all", "--trusted-proxies=127.N.9.200/32"];
    let portico = Standalone::start(net, &[("all.yaml", &manifests())], &options, &variables).await;
    let sent = send(&portico.net).await;
    let (servers, clients) = collect(&mut collector, sent.len()).await;

    let mut paths = BTreeSet::new();
    for server in &servers {
        let path = text(server, "/attributes/url.path");
        assert!(paths.insert(path.to_owned()), "two SERVER spans for {path}");
        let sent = sent.get(path).unwrap_or_else(|| panic!("a span of a request that was not sent: {server}"));
        check_server(server, sent);
        let attempts = clients.get(text(server, "/id")).unwrap_or_else(|| panic!("no CLIENT span under {server}"));
        assert_eq!(attempts.len(), 1, "one attempt for {path}: {attempts:#?}");
        check_client(&attempts[0], server, sent);
    }
    assert_eq!(paths.len(), sent.len());
    check_metrics(&portico, &sent).await;
    let (status, log) = portico.terminate();
    assert_eq!(status, Some(0));
    check_log(&log, &servers, &sent);
}

fn check_server(server: &Value, sent: &Sent) {
    let client = sent.client.to_string();
    assert_eq!(text(server, "/attributes/client.address"), client, "{server}");
    assert_eq!(server["name"], "GET web.default");
    assert_eq!(server["status"], "UNSET");
    assert_eq!(server["attributes"]["http.response.status_code"], 200);
    assert_eq!(server["attributes"]["http.request.method"], "GET");
    assert_eq!(server["attributes"]["user_agent.original"], "telemetry-test");
    assert!(server["end"].as_u64() >= server["start"].as_u64());
    let links = server["links"].as_array().expect("a list");
    match &sent.context {
        None => assert_eq!((text(server, "/parent"), links.len()), ("", 0)),
        Some((trace, parent)) if sent.trusted => {
            assert_eq!((text(server, "/trace"), text(server, "/parent")), (trace.as_str(), parent.as_str()));
            assert_eq!(links.len(), 0);
        }
        Some((trace, parent)) => {
            assert_ne!(text(server, "/trace"), trace, "a stranger decides nothing");
            assert_eq!(text(server, "/parent"), "");
            assert_eq!((text(&links[0], "/trace"), text(&links[0], "/id")), (trace.as_str(), parent.as_str()));
            assert_eq!(links[0]["attributes"]["portico.link.reason"], "untrusted");
            assert_eq!(server["attributes"]["portico.client.untrusted_chain"], true);
        }
    }
}

fn check_client(client: &Value, server: &Value, sent: &Sent) {
    assert_eq!(client["trace"], server["trace"]);
    let seen = sent.answer.json();
    let header = |name: &str| seen["headers"][name][0].as_str().unwrap_or_else(|| panic!("no {name} in {seen}"));
    let received = format!("00-{}-{}", text(client, "/trace"), text(client, "/id"));
    assert!(header("traceparent").starts_with(&received), "the Pod continues the CLIENT span: {seen}");
    let first = header("x-forwarded-for").split(',').next().expect("split gives one").trim();
    assert_eq!(first, sent.client.to_string(), "the Pod sees the same client");
    assert_eq!(text(client, "/attributes/portico.backend.pod.name"), text(&seen, "/pod"));
    let local = text(&seen, "/local");
    let peer = &client["attributes"];
    assert_eq!(format!("{}:{}", text(peer, "/network.peer.address"), peer["network.peer.port"]), local);
}

/// The counters of all agents together have every request, once.
async fn check_metrics(portico: &Standalone, sent: &HashMap<String, Sent>) {
    let mut counted = 0.0;
    for node in 1..=3 {
        let metrics = metrics::of(portico.net.at(&format!("1.{node}"), 18_081)).await;
        let labels = [("http_response_status_code", "200"), ("portico_backend_service_name", "web")];
        counted += metrics.sum("http_server_request_duration_seconds_count", &labels);
    }
    assert_eq!(counted, sent.len() as f64);
}

/// The log has a line for each request that names its span.
fn check_log(log: &str, servers: &[Value], sent: &HashMap<String, Sent>) {
    let spans: HashMap<&str, &Value> =
        servers.iter().map(|server| (text(server, "/attributes/url.path"), server)).collect();
    let mut lines = 0;
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        if line["event"] != "portico.access.http" {
            continue;
        }
        lines += 1;
        let path = text(&line, "/url.path");
        let server = spans[path];
        assert_eq!((&line["trace_id"], &line["span_id"]), (&server["trace"], &server["id"]), "{line}");
        assert_eq!(text(&line, "/client.address"), sent[path].client.to_string());
        assert_eq!(line["http.response.status_code"], 200);
    }
    assert_eq!(lines, sent.len(), "a line for each request");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_nothing_is_lost_but_counted_records() {
    let variables = [
        // Nobody listens there.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.N.3.1:4317"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let net = Net::claim();
    let portico = Standalone::start(net, &[("all.yaml", &manifests())], &["--access-log=all"], &variables).await;
    let mut client = Client::connect(portico.net.ip("9.1"), portico.net.at("1.1", 30_080)).await.expect("it is open");
    for turn in 0..300 {
        let answer = client.send(request(&format!("/{turn}"), &[])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let admin = portico.net.at("1.1", 18_081);
    let lost = async {
        loop {
            let metrics = metrics::of(admin).await;
            let all = metrics.series("otel_sdk_exporter_span_exported_total", &[]);
            let lost: f64 = all.filter(|(labels, _)| labels.contains("error_type")).map(|(_, value)| value).sum();
            if lost >= 600.0 {
                return (lost, metrics);
            }
            tokio::task::yield_now().await;
        }
    };
    let (lost, metrics) =
        tokio::time::timeout(std::time::Duration::from_secs(30), lost).await.expect("lost spans are counted");
    assert_eq!(lost, 600.0, "a SERVER and a CLIENT span for each request: {}", metrics.text());
    assert_eq!(metrics.sum("http_server_request_duration_seconds_count", &[]), 300.0);
    let dropped =
        metrics.series("portico_telemetry_records_total", &[]).filter(|(labels, _)| labels.contains("dropped"));
    assert_eq!(dropped.map(|(_, value)| value).sum::<f64>(), 0.0, "the records themselves were all worked through");
    let (status, log) = portico.terminate();
    assert_eq!(status, Some(0), "an end without a collector is an end all the same");
    assert_eq!(log.lines().filter(|line| line.contains("\"portico.access.http\"")).count(), 300);
}
