//! `portico get` shows what is there, in every format, once and as it changes; jq and scripts can read it.

use std::net::SocketAddr;

use serde_json::Value;
use tests::{
    binary, get,
    manifests::{Pod, node, node_port},
    stack::Stack,
    tools::{self, Talker},
};
use tokio::io::AsyncWriteExt as _;

const KINDS: [&str; 5] = ["services", "endpoints", "nodes", "agents", "health"];

/// Two nodes in a zone, two Pods of which one is ready, and Services of several types in two namespaces.
async fn start() -> Stack {
    let zoned = |name: &str, last| {
        node(name, last).replace("}\nstatus", ", labels: {topology.kubernetes.io/zone: east}}\nstatus")
    };
    let nodes = zoned("node-a", 1) + &zoned("node-b", 2);
    let pods = Pod::new(1, "node-a").text() + &Pod { ready: false, ..Pod::new(2, "node-b") }.text();
    let balancer = "apiVersion: v1\nkind: Service\nmetadata: {name: balanced, namespace: shop}\n\
                    spec: {type: LoadBalancer, selector: {app: web}, sessionAffinity: ClientIP, \
                    ports: [{name: raw, port: 9000, protocol: UDP}]}\n";
    let services = node_port("web", "http", 30_080) + balancer;
    let manifests = [("nodes.yaml", nodes), ("pods.yaml", pods), ("services.yaml", services)];
    let stack = Stack::start(&manifests.each_ref().map(|(name, text)| (*name, text.as_str()))).await;
    stack.until_ready("web", &[stack.ip("2.1")]).await;
    stack
}

/// What jq makes of the output of `portico get ARGS -o json`, as lines.
async fn jq(health: SocketAddr, args: &[&str], filter: &str) -> String {
    let (json, _) = get::text(health, &[args, &["-o", "json"]].concat()).await;
    let mut command = tools::command("jq");
    let mut child = command
        .args(["--exit-status", "--raw-output", filter])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("jq runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(json.as_bytes()).await.expect("jq reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("jq ends");
    assert!(output.status.success(), "jq {filter}: {} of {json}", output.status);
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

/// The cells of a table: columns are at least three spaces apart.
fn cells(line: &str) -> Vec<&str> {
    line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_have_the_columns_of_kubectl() {
    let stack = start().await;
    let health = stack.at("0.1", 18_001);
    let (services, warnings) = get::text(health, &["services"]).await;
    assert_eq!(warnings, "");
    let rows: Vec<Vec<&str>> = services.lines().map(cells).collect();
    assert_eq!(rows[0], ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]);
    assert_eq!(
        (rows.len(), rows[1][0], rows[1][1], rows[1][3], rows[1][4]),
        (2, "web", "NodePort", "<none>", "80:30080/TCP")
    );

    let (all, _) = get::text(health, &["svc", "-A", "-o", "wide"]).await;
    let rows: Vec<Vec<&str>> = all.lines().map(cells).collect();
    assert_eq!(rows[0][..2], ["NAMESPACE", "NAME"]);
    let balanced = rows.iter().find(|row| row[1] == "balanced").unwrap_or_else(|| panic!("in no row: {all}"));
    assert_eq!((balanced[0], balanced[2]), ("shop", "LoadBalancer"));
    assert!(balanced[4].starts_with(&stack.ip("128.0").to_string()[..8]), "an address of the pool: {balanced:?}");
    assert!(balanced.contains(&"ClientIP/3h") && balanced.contains(&"udp"), "{balanced:?}");

    let (endpoints, _) = get::text(health, &["endpoints", "web", "-o", "wide"]).await;
    let rows: Vec<Vec<&str>> = endpoints.lines().map(cells).collect();
    assert_eq!(rows[0], ["NAME", "ENDPOINTS", "AGE", "NOT-READY", "TERMINATING", "NODES"]);
    let address = stack.at("2.1", 8080).to_string();
    assert_eq!((rows[1][1], rows[1][3], rows[1][4], rows[1][5]), (address.as_str(), "1", "0", "node-a,node-b"));

    for (kind, wanted) in
        [("nodes", ["Healthy", "connected"]), ("agents", ["Serving", "yes"]), ("health", ["Healthy", "east"])]
    {
        let (text, _) = get::text(health, &[kind]).await;
        let rows: Vec<Vec<&str>> = text.lines().map(cells).collect();
        assert_eq!(rows[1..].iter().map(|row| row[0]).collect::<Vec<_>>(), ["node-a", "node-b"], "{text}");
        for row in &rows[1..] {
            assert!(
                wanted.iter().all(|wanted| row.iter().any(|cell| cell.eq_ignore_ascii_case(wanted))),
                "{kind}: {text}"
            );
        }
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jq_reads_every_kind_and_yaml_says_the_same() {
    let stack = start().await;
    let health = stack.at("0.1", 18_001);
    for kind in KINDS {
        assert_eq!(jq(health, &[kind], ".kind").await, "List");
        let first = jq(health, &[kind], ".items[0].metadata.name").await;
        assert!(["web", "node-a"].contains(&first.as_str()), "{kind}: {first}");
        let (yaml, _) = get::text(health, &[kind, "-o", "yaml"]).await;
        let json = get::json(health, &[kind]).await;
        assert_eq!(stable(&parse_yaml(&yaml)), stable(&json), "{kind}");
    }
    let web = ["services", "web"];
    assert_eq!(jq(health, &web, ".spec.ports[0].nodePort").await, "30080");
    assert_eq!(jq(health, &web, ".spec.type, .metadata.namespace").await, "NodePort\ndefault");
    let ip = jq(health, &web, ".spec.clusterIP").await;
    assert!(ip.starts_with("127."), "{ip}");
    let ready = ".endpoints[] | select(.conditions.ready) | \"\\(.addresses[0]) \\(.targetRef.name) \\(.nodeName)\"";
    assert_eq!(jq(health, &["endpoints", "web"], ready).await, format!("{} web-1 node-a", stack.ip("2.1")));
    let names =
        jq(health, &["services", "-A"], "[.items[].metadata | .namespace + \"/\" + .name] | sort | join(\" \")").await;
    assert_eq!(names, "default/web shop/balanced");
    let zones = jq(health, &["health"], "[.items[] | .health.state + \" \" + .zone] | unique | join(\",\")").await;
    assert_eq!(zones, "Healthy east");
    assert_eq!(jq(health, &["agents"], "[.items[].status.behind] | add").await, "0");
    assert_eq!(jq(health, &["nodes", "node-b"], ".status.addresses[0].address").await, stack.ip("1.2").to_string());
    stack.stop().await;
}

fn parse_yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("not YAML ({error}): {text}"))
}

/// Without what changes from one moment to the next.
fn stable(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let moving = |key: &str| key == "observeTime" || key == "expireTime";
            Value::Object(
                members
                    .iter()
                    .filter(|(key, _)| !moving(key))
                    .map(|(key, value)| (key.clone(), stable(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(stable).collect()),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_changes_as_they_happen() {
    let stack = start().await;
    let health = stack.at("0.1", 18_001);
    let mut json = Talker::start(&mut get::command(health, &["services", "--watch", "-o", "json"]));
    let mut table = Talker::start(&mut get::command(health, &["services", "--watch"]));
    let first = json.json().await;
    assert_eq!((first["type"].as_str(), first["object"]["metadata"]["name"].as_str()), (Some("ADDED"), Some("web")));
    assert_eq!(cells(&table.line().await)[..2], ["EVENT", "NAME"]);
    assert_eq!(cells(&table.line().await)[..3], ["ADDED", "web", "NodePort"]);

    stack.write("more.yaml", &node_port("more", "http", 30_081));
    let added = json.until("it is added", |event| event["object"]["metadata"]["name"] == "more").await;
    assert_eq!(
        (added["type"].as_str(), added["object"]["spec"]["ports"][0]["nodePort"].as_u64()),
        (Some("ADDED"), Some(30_081))
    );
    assert_eq!(cells(&table.line().await)[..2], ["ADDED", "more"]);
    stack.write("more.yaml", &node_port("more", "http", 30_082));
    let changed = json.until("it is changed", |event| event["object"]["spec"]["ports"][0]["nodePort"] == 30_082).await;
    assert_eq!(changed["type"], "MODIFIED");
    assert_eq!(cells(&table.line().await)[..2], ["MODIFIED", "more"]);
    stack.remove("more.yaml");
    let gone = json.until("it is removed", |event| event["type"] == "DELETED").await;
    assert_eq!(gone["object"]["metadata"]["name"], "more");
    assert_eq!(cells(&table.line().await)[..2], ["DELETED", "more"]);
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_says_why() {
    let stack = start().await;
    let health = stack.at("0.1", 18_001);
    let (status, out, err) = tools::run(&mut get::command(health, &["services", "nobody"])).await;
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (Some(1), "", "error: services \"nobody\" not found in namespace \"default\"\n")
    );
    let (out, err) = get::text(health, &["services", "-n", "empty"]).await;
    assert_eq!((out.as_str(), err.as_str()), ("", "No resources found in empty namespace.\n"));
    let closed = stack.at("0.1", 1);
    let (status, _, err) = tools::run(&mut get::command(closed, &["services"])).await;
    assert_eq!(status, Some(1));
    assert!(err.contains(&closed.to_string()) && err.contains("--gateway"), "{err}");
    let mut wrong = tokio::process::Command::new(binary::path());
    let (status, _, err) = tools::run(wrong.args(["get", "servces", "-o", "jsn", "--gateway", "nowhere"])).await;
    assert_eq!(status, Some(2));
    assert!(
        err.contains("did you mean services?") && err.contains("did you mean json?") && err.contains("nowhere"),
        "{err}"
    );
    stack.stop().await;
}
