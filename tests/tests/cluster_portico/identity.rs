use std::{collections::BTreeSet, net::SocketAddr, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};
use tests::{
    client,
    kubectl::Kubectl,
    metrics::Metrics,
    sandbox::{pki::SERVICE_ACCOUNT_KEY, plan::HOST, state::ROOT},
    tools,
};

use crate::{SYSTEM, cluster};

/// Name in the certificate of the discovery port.
const SERVER_NAME: &str = "portico-gateway.portico-system.svc";

/// What an account may do with objects, one line for each: kind, names if it is limited to some, verbs. What every account
/// may do, which is to ask who it is and what it may do, is left out.
fn right(line: &str) -> Option<String> {
    let (kind, rest) = line.split_once(char::is_whitespace)?;
    let fields: Vec<&str> = rest.split(['[', ']']).map(str::trim).filter(|part| !part.is_empty()).collect();
    (!kind.is_empty() && !kind.starts_with("selfsubject")).then(|| format!("{kind} {}", fields.join(" ")))
}

/// It finds the gateways; everything else it learns from them.
const AGENT: &[&str] = &["endpointslices.discovery.k8s.io list watch"];

/// What docs/install.md says each is for.
const GATEWAY: &[&str] = &[
    "addresspools.portico.dev get list watch",
    "configmaps create",
    "configmaps portico-gateway-ca get update",
    "endpointslices.discovery.k8s.io get list watch",
    "events.events.k8s.io create patch",
    "leases.coordination.k8s.io create",
    "leases.coordination.k8s.io portico-gateway get update",
    "namespaces get list watch",
    "nodes get list watch",
    "pods get list watch",
    "secrets get list watch create",
    "secrets portico-gateway-tls get list watch update",
    "secrets portico-hop-keys get list watch update",
    "servicecidrs.networking.k8s.io get list watch",
    "services get list watch patch",
    "services/status patch",
    "tokenreviews.authentication.k8s.io create",
];

#[tokio::test(flavor = "multi_thread")]
async fn gateways_and_agents_may_do_what_they_do_and_nothing_else() {
    let (_, kubectl, _turn) = cluster().await;
    for (account, expected) in [("portico-agent", AGENT), ("portico-gateway", GATEWAY)] {
        let as_account = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        let line = ["auth", "can-i", "--list", "--no-headers", "-n", SYSTEM, &as_account];
        let listed = kubectl.words(&line).await;
        let rights: BTreeSet<String> = listed.lines().filter_map(right).collect();
        let expected: BTreeSet<String> = expected.iter().map(|&right| right.to_owned()).collect();
        assert_eq!(rights, expected, "{account}: {listed}");
    }
}

/// A token for an account of Portico's namespace.
async fn token(kubectl: &Kubectl, account: &str, options: &[&str]) -> String {
    let words = [&["-n", SYSTEM, "create", "token", account], options].concat();
    kubectl.words(&words).await.trim().to_owned()
}

/// What a gateway says to somebody who opens a stream as the agent of a node.
async fn hello(gateway: &str, ca: &str, token: &str, node: &str) -> String {
    let mut command = tools::command("grpcurl");
    command.args(["-max-time", "10", "-cacert", ca, "-servername", SERVER_NAME]);
    command.args(["-H", &format!("authorization: Bearer {token}")]);
    let protocol = tools::root().join("proto");
    command.args(["-import-path", &protocol.display().to_string()]);
    command.args(["-proto", "portico/discovery/v1/discovery_service.proto"]);
    command.args(["-d", &format!(r#"{{"hello": {{"node_name": "{node}", "max_message_bytes": 1048576}}}}"#)]);
    command.args([&format!("{gateway}:18000"), "portico.discovery.v1.DiscoveryService/Watch"]);
    let (_, out, said) = tools::run(&mut command).await;
    format!("{out}{said}")
}

async fn refusals(gateway: &str) -> f64 {
    let admin: SocketAddr = format!("{gateway}:18080").parse().expect("an address");
    let answer = client::get(HOST[0], admin, "admin", "/metrics").await;
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    Metrics::from(text).sum("portico_discovery_refusals_total", &[])
}

/// Address of a gateway.
async fn gateway(kubectl: &Kubectl) -> String {
    let gateways =
        "-n portico-system get pods -l app.kubernetes.io/component=gateway --field-selector status.phase=Running";
    kubectl.run(&format!("{gateways} -o jsonpath={{.items[0].status.podIP}}")).await
}

/// The CA certificates of the gateways.
async fn authority(kubectl: &Kubectl) -> tempfile::NamedTempFile {
    let ca = kubectl.run("-n portico-system get configmap portico-gateway-ca -o jsonpath={.data.ca\\.crt}").await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), ca).expect("the file can be written");
    file
}

/// Name of the Pod that is the agent of the first node.
async fn agent(kubectl: &Kubectl) -> String {
    let agents =
        "-n portico-system get pods -l app.kubernetes.io/component=agent --field-selector spec.nodeName=node-1";
    kubectl.run(&format!("{agents} -o jsonpath={{.items[0].metadata.name}}")).await
}

/// A token with another end, signed as the API server does (ES256, RFC 7518 section 3.4).
fn ending(token: &str, end: i64) -> String {
    let mut parts = token.split('.');
    let (header, claims) = (parts.next().expect("a header"), parts.next().expect("claims"));
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).expect("base64")).expect("JSON");
    let life = Timestamp::now().as_second() - claims["iat"].as_i64().expect("a time") + 600;
    for name in ["iat", "nbf"] {
        claims[name] = json!(end - life);
    }
    claims["exp"] = json!(end);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = std::fs::read_to_string(Path::new(ROOT).join("pki").join(SERVICE_ACCOUNT_KEY)).expect("the key");
    let signature = KeyPair::from_pem(&key).expect("a key").sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed(&signature)))
}

/// An ECDSA signature of two numbers in ASN.1 as two times 32 bytes.
fn fixed(signature: &[u8]) -> [u8; 64] {
    let mut fixed = [0; 64];
    let mut rest = &signature[2..];
    for half in fixed.chunks_mut(32) {
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        half[32 - number.len()..].copy_from_slice(number);
        rest = after;
    }
    fixed
}

/// The shortest life that the API server gives a token is ten minutes, so this one is made with the key of the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_refused_once_it_has_expired_or_its_pod_is_gone() {
    let (_, kubectl, _turn) = cluster().await;
    let (gateway, file, pod) = (gateway(&kubectl).await, authority(&kubectl).await, agent(&kubectl).await);
    let ca = file.path().display().to_string();
    let bound = ["--audience=portico-discovery", "--bound-object-kind=Pod", "--bound-object-name", &pod];
    let valid = token(&kubectl, "portico-agent", &bound).await;
    let now = Timestamp::now().as_second();
    let said = hello(&gateway, &ca, &ending(&valid, now + 300), "node-1").await;
    assert!(
        said.contains("\"welcome\""),
        "a token of ours that ends later is as good as one of the API server: {said}"
    );
    let said = hello(&gateway, &ca, &ending(&valid, now - 60), "node-1").await;
    assert!(said.contains("Code: Unauthenticated"), "{said}");

    // Nobody has shown this one yet, so that no answer to it is remembered.
    let orphan = token(&kubectl, "portico-agent", &bound).await;
    kubectl.words(&["-n", SYSTEM, "delete", "pod", &pod, "--wait=true"]).await;
    let said = hello(&gateway, &ca, &orphan, "node-1").await;
    assert!(said.contains("Code: Unauthenticated"), "{said}");
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_talks_to_the_agent_of_a_node_and_nobody_else() {
    let (_, kubectl, _turn) = cluster().await;
    let (gateway, file, pod) = (gateway(&kubectl).await, authority(&kubectl).await, agent(&kubectl).await);
    let ca = file.path().display().to_string();

    let right = ["--audience=portico-discovery"];
    let bound = ["--audience=portico-discovery", "--bound-object-kind=Pod", "--bound-object-name", &pod];
    let cases = [
        ("no token", String::new(), "node-1", "Unauthenticated"),
        (
            "a wrong audience",
            token(&kubectl, "portico-agent", &["--audience=other"]).await,
            "node-1",
            "Unauthenticated",
        ),
        ("another account", token(&kubectl, "portico-gateway", &right).await, "node-1", "PermissionDenied"),
        ("a token of no Pod", token(&kubectl, "portico-agent", &right).await, "node-1", "PermissionDenied"),
        ("another node", token(&kubectl, "portico-agent", &bound).await, "node-2", "PermissionDenied"),
    ];
    for (what, token, node, expected) in cases {
        let before = refusals(&gateway).await;
        let said = hello(&gateway, &ca, &token, node).await;
        assert!(said.contains(&format!("Code: {expected}")), "{what}: {said}");
        assert!(refusals(&gateway).await > before, "{what} is counted");
    }
    let before = refusals(&gateway).await;
    let plain = SocketAddr::new(gateway.parse().expect("an address"), 18_000);
    let mut stream = client::Client::connect(HOST[0], plain).await.expect("the port is open");
    assert!(stream.get("gateway", "/").await.is_err(), "HTTP without TLS is not answered");
    assert!(refusals(&gateway).await > before, "it is counted");
    let welcome = hello(&gateway, &ca, &token(&kubectl, "portico-agent", &bound).await, "node-1").await;
    assert!(welcome.contains("\"welcome\""), "{welcome}");
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
}
