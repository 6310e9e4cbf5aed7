use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    process::Command,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tests::{
    client,
    sandbox::{
        plan::{HOST, Role},
        programs, shared,
    },
    server::Server,
};

use crate::{SYSTEM, answers_everywhere, cluster, curl, echo, node_ports, nodes};

/// Where it answers queries.
const JAEGER_QUERY: u16 = 16_686;

/// What Jaeger has of the agents since a moment: its answer to a query for traces.
async fn traces(since: Timestamp) -> Value {
    let path = format!(
        "/api/v3/traces?query.service_name=portico-agent&query.start_time_min={since}&query.start_time_max={}\
         &query.num_traces=1000",
        Timestamp::now() + Duration::from_secs(60)
    );
    let answer = client::get(HOST[0], SocketAddr::new(HOST[0], JAEGER_QUERY), "jaeger", &path).await;
    // It has not heard of the service before the first span.
    if answer.status == 200 { answer.json() } else { Value::Null }
}

/// An attribute of a span or of a resource, as text.
fn attribute(of: &Value, name: &str) -> String {
    let all = of["attributes"].as_array().into_iter().flatten();
    let value = all.filter(|attribute| attribute["key"] == name).map(|attribute| &attribute["value"]["stringValue"]);
    value.filter_map(Value::as_str).next().unwrap_or_default().to_owned()
}

/// The spans of a kind (OTLP: 2 is SERVER, 3 is CLIENT) about a Service, with the node whose agent made each.
fn spans<'a>(traces: &'a Value, kind: u64, service: &str) -> Vec<(String, &'a Value)> {
    let list = |value: &'a Value, name: &str| value[name].as_array().map_or(&[][..], Vec::as_slice);
    let mut found = Vec::new();
    for resource in list(&traces["result"], "resourceSpans") {
        let node = attribute(&resource["resource"], "k8s.node.name");
        let spans = list(resource, "scopeSpans").iter().flat_map(|scope| list(scope, "spans"));
        let wanted = |span: &&Value| span["kind"] == kind && span["name"] == format!("GET {service}.default");
        found.extend(spans.filter(wanted).map(|span| (node.clone(), span)));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn jaeger_tells_who_asked_where_and_which_pod_answered() {
    const EACH: usize = 10;
    let (sandbox, kubectl, _turn) = cluster().await;
    let mut jaeger = Command::new(programs::find("jaeger").expect("jaeger"));
    jaeger.env("JAEGER_LISTEN_HOST", HOST[0].to_string());
    let _jaeger = Server::start(&mut jaeger, "Everything is ready", "-TERM");
    let variables = format!(
        r#"{{"data":{{"OTEL_EXPORTER_OTLP_ENDPOINT":"http://{}:4317","OTEL_TRACES_SAMPLER":"always_on"}}}}"#,
        HOST[0]
    );
    let patch = ["-n", SYSTEM, "patch", "configmap", "portico-telemetry", "--type=merge", "-p", &variables];
    kubectl.words(&patch).await;
    kubectl.run("-n portico-system rollout restart daemonset/portico-agent").await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    kubectl.apply(&echo("traced", 3, 30_105, false)).await;
    kubectl.rolled_out("default", "deployment/traced").await;
    answers_everywhere(sandbox, 30_105).await;

    let since = Timestamp::now();
    let mut answered = BTreeSet::new();
    for to in node_ports(30_105) {
        for _ in 0..EACH {
            let body = curl(sandbox, to).await.unwrap_or_else(|error| panic!("{to}: {error}"));
            let seen: Value = serde_json::from_str(&body).expect("JSON");
            answered.insert(seen["pod"].as_str().expect("a Pod").to_owned());
        }
    }
    let expected = EACH * usize::from(shared::NODES);
    let complete = async {
        loop {
            let traces = traces(since).await;
            if spans(&traces, 2, "traced").len() >= expected && spans(&traces, 3, "traced").len() >= expected {
                return traces;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let traces = tokio::time::timeout(Duration::from_secs(60), complete).await.expect("Jaeger has all spans");
    let client = Role::Client.addresses()[0].to_string();
    let mut by_node = BTreeMap::<String, usize>::new();
    for (node, span) in spans(&traces, 2, "traced") {
        assert_eq!(attribute(span, "client.address"), client, "{span}");
        *by_node.entry(node).or_default() += 1;
    }
    let everywhere = nodes().map(|node| (node.name(), EACH)).collect();
    assert_eq!(by_node, everywhere);
    let pods = spans(&traces, 3, "traced");
    let pods: BTreeSet<String> = pods.iter().map(|(_, span)| attribute(span, "portico.backend.pod.name")).collect();
    assert_eq!(pods, answered);
    kubectl.run("delete service,deployment traced --wait=false").await;
}
