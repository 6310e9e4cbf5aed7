//! Manifests that are broken, by the hundred: each is reported with file, place and reason, and everything else is served on.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use api::proto::inspect::ObjectKind;
use tests::{
    get,
    load::Load,
    manifests::{Pod, node, node_port},
    stack::Stack,
};

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: broken}}\nspec: {spec}\n")
}

/// Files that cannot be read as objects, each with what its report has to name.
fn broken() -> Vec<(Vec<u8>, &'static str)> {
    let mut cases: Vec<(Vec<u8>, &'static str)> = vec![
        (b"apiVersion: v1\nkind: Service\nmetadata: {name: a\nspec: [\n".to_vec(), "line "),
        (b"\xff\xfe\x00\x01".to_vec(), "UTF-8"),
        (b"apiVersion: v1\n\tkind: Service\n".to_vec(), "tab"),
        (b"kind: Service\nmetadata: {name: a}\n".to_vec(), "apiVersion"),
        (b"apiVersion: v1\nmetadata: {name: a}\n".to_vec(), "kind"),
        (b"apiVersion: v1\nkind: Service\nmetadata: {}\n".to_vec(), "metadata.name"),
        (b"apiVersion: v1\nkind: Service\nmetadata: {name: Upper/Case}\n".to_vec(), "metadata.name"),
        (b"- just\n- a list\n".to_vec(), "line 1"),
        (b"just words\n".to_vec(), "line 1"),
        (b"{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\"}".to_vec(), "line "),
        (b"&a [*a, *a]\n".to_vec(), "line 1"),
        (format!("{}1{}\n", "[".repeat(5000), "]".repeat(5000)).into_bytes(), "line "),
    ];
    let specs = [
        ("{ports: [{port: http}]}", "spec.ports[0].port"),
        ("{ports: [{port: 80}, {port: [80]}]}", "spec.ports[1].port"),
        ("{ports: {port: 80}}", "spec.ports"),
        ("{selector: [app]}", "spec.selector"),
        ("{type: [NodePort]}", "spec.type"),
        ("{ports: [{port: 80, nodePort: x}]}", "spec.ports[0].nodePort"),
        ("{externalIPs: 1.2.3.4}", "spec.externalIPs"),
        ("text", "spec"),
    ];
    cases.extend(specs.map(|(spec, field)| (service(spec).into_bytes(), field)));
    // The same, further down in a file: lines count from its beginning.
    for at in 1..=90 {
        let mut text = String::new();
        for other in 0..at {
            writeln!(text, "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{other}}}\n---")
                .expect("a string grows");
        }
        text.push_str(&service(specs[at % specs.len()].0));
        cases.push((text.into_bytes(), specs[at % specs.len()].1));
    }
    cases
}

/// The problems of the source, by the file they name first.
async fn problems(stack: &Stack) -> BTreeMap<String, String> {
    let problems = stack.list(ObjectKind::Service).await.problems;
    let file = |message: &str| message.split(": ").next().unwrap_or_default().to_owned();
    problems.into_iter().map(|problem| (file(&problem.message), problem.message)).collect()
}

/// Waits until as many files as given are reported.
async fn reported(stack: &Stack, files: usize) -> BTreeMap<String, String> {
    let wait = async {
        loop {
            let problems = problems(stack).await;
            if problems.len() == files {
                return problems;
            }
            tokio::task::yield_now().await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(20), wait).await {
        Ok(problems) => problems,
        Err(_) => panic!("{files} files should be reported: {:#?}", problems(stack).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_files_are_reported_and_the_others_served() {
    let good = node("node-a", 1) + &Pod::new(1, "node-a").text() + &node_port("web", "http", 30_080);
    let stack = Stack::start(&[("good.yaml", &good)]).await;
    let client = (stack.ip("9.1"), stack.at("1.1", 30_080));
    let mut load = Load::start(50, "web", &[client]);
    load.more(20).await;

    let cases = broken();
    for (at, (content, _)) in cases.iter().enumerate() {
        let name = format!("{at:03}.yaml");
        std::fs::write(stack.path(&name), content).expect("a manifest can be written");
    }
    let reports = reported(&stack, cases.len()).await;
    for (at, (content, names)) in cases.iter().enumerate() {
        let report = reports.get(&format!("{at:03}.yaml"));
        let shown = String::from_utf8_lossy(&content[..content.len().min(200)]);
        let report = report.unwrap_or_else(|| panic!("{at:03}.yaml is not reported: {shown}"));
        assert!(report.contains(names), "{report}: it does not name {names:?} of {shown}");
        assert!(report.contains("line "), "{report}: no line of {shown}");
        assert!(!report.contains('\n') && report.len() < 1000, "one line that can be read: {report}");
    }
    let (services, warnings) = get::text(stack.at("0.1", 18_001), &["services"]).await;
    assert_eq!(services.lines().count(), 2, "the heading and the one that is whole: {services}");
    assert_eq!(warnings.lines().count(), cases.len(), "{warnings}");
    load.more(50).await;

    // Mended, every file is an object like any other.
    for at in 0..cases.len() {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: mended-{at}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        );
        stack.write(&format!("{at:03}.yaml"), &text);
    }
    let all = cases.len() + 1;
    stack.until(ObjectKind::Service, "all are served", |objects| objects.len() == all).await;
    reported(&stack, 0).await;
    assert!(load.failures().is_empty(), "others were harmed: {:#?}", load.failures());
    drop(load);
    eprintln!("{} broken files reported and mended", cases.len());
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_make_no_sense_are_reported_with_their_name() {
    let good = node("node-a", 1) + &Pod::new(1, "node-a").text() + &node_port("web", "http", 30_080);
    let stack = Stack::start(&[("good.yaml", &good)]).await;
    // Each with a word that its report has to have. They parse; what they say cannot be obeyed.
    let cases = [
        ("asked-twice", node_port("asked-twice", "http", 30_080), "30080"),
        ("out-of-range", node_port("out-of-range", "http", 80), "nodePort"),
        ("port-zero", object("port-zero", "", "ports: [{port: 0}]"), "port"),
        ("no-such-type", object("no-such-type", "", "type: Cluster, ports: [{port: 80}]"), "type"),
        ("protocol", object("protocol", "portico.dev/protocol: gopher", "ports: [{port: 80}]"), "gopher"),
        (
            "balancing",
            object("balancing", "portico.dev/balancing: leest-request", "ports: [{port: 80}]"),
            "least-request",
        ),
        ("misspelt", object("misspelt", "portico.dev/protocoll: http", "ports: [{port: 80}]"), "portico.dev/protocol"),
        (
            "secretless",
            object("secretless", "portico.dev/tls-secret: nowhere", "ports: [{port: 443, appProtocol: https}]"),
            "nowhere",
        ),
    ];
    let text: String = cases.iter().map(|(_, text, _)| text.as_str()).collect();
    stack.write("odd.yaml", &text);
    let known = cases.len() + 1;
    stack.until(ObjectKind::Service, "all are known", |objects| objects.len() == known).await;
    let listed = stack.list(ObjectKind::Service).await;
    let mut silent = Vec::new();
    for (name, _, word) in &cases {
        let object = listed.objects.iter().find(|object| object.key.as_ref().is_some_and(|key| key.name == *name));
        let problems = object.map(|object| object.problems.clone()).unwrap_or_default();
        if !problems.iter().any(|problem| problem.message.contains(word) && !problem.reason.is_empty()) {
            silent.push(format!("{name}: nothing about {word:?} in {problems:?}"));
        }
    }
    assert!(silent.is_empty(), "{silent:#?}; of the source: {:#?}", listed.problems);
    // The older one keeps what both asked for.
    let answer = tests::client::get(stack.ip("9.1"), stack.at("1.1", 30_080), "web", "/").await;
    assert_eq!((answer.status.as_u16(), answer.field("pod").as_str()), (200, "web-1"));
    stack.stop().await;
}

fn object(name: &str, annotation: &str, spec: &str) -> String {
    let annotation = if annotation.is_empty() { String::new() } else { format!(", annotations: {{{annotation}}}") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}{annotation}}}\nspec: {{{spec}, selector: {{app: web}}}}\n---\n"
    )
}
