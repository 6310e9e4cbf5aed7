//! Who is let in at the discovery port, over real TLS and gRPC, with a simulated API server that vouches for tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{
    delta::client::Received,
    proto::{
        discovery::GoodbyeReason,
        node::{NodeStatus, ReportNodeStatusRequest, node_status_service_client::NodeStatusServiceClient},
    },
    resource::{Resource, hop_keys::HopKeys},
};
use api_server::ApiServer;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use common::{Agent, Gateway, LIMIT};
use serde_json::{Value, json};
use tonic::{
    Code, Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

mod api_server;
#[path = "../common/mod.rs"]
mod common;

const NAMESPACE: &str = "portico-system";
const ACCOUNT: &str = "system:serviceaccount:portico-system:portico-agent";
const SERVER_NAME: &str = "portico-gateway.portico-system.svc";

/// A cluster with one gateway.
struct Cluster {
    api: ApiServer,
    gateway: Gateway,
    kubeconfig: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (api, kubeconfig) = ApiServer::start(directory.path()).await;
        api.put("nodes", json!({"metadata": {"name": "n1"}}));
        let gateway = gateway(&kubeconfig).await;
        Self { api, gateway, kubeconfig, _directory: directory }
    }

    /// What agents are to trust, once it is published.
    async fn bundle(&self) -> String {
        let map = self.api.until("configmaps", NAMESPACE, "portico-gateway-ca", |_| true).await;
        map["data"]["ca.crt"].as_str().expect("a bundle").to_owned()
    }

    async fn channel(&self) -> Channel {
        connect(&self.gateway, &self.bundle().await).await.expect("connects")
    }

    fn refusals(&self, reason: &str) -> f64 {
        let families = self.gateway.registry.gather();
        let name = "portico_discovery_refusals_total";
        let family = families.iter().find(|family| family.name() == name).expect("is counted");
        let of = |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == reason);
        family.get_metric().iter().find(of).expect("a known reason").get_counter().get_value()
    }
}

async fn gateway(kubeconfig: &std::path::Path) -> Gateway {
    let kubeconfig = kubeconfig.to_str().expect("a path that is text");
    Gateway::launch("https", &["--kubeconfig", kubeconfig, "--namespace", NAMESPACE]).await
}

async fn connect(gateway: &Gateway, bundle: &str) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(bundle)).domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(gateway.discovery.clone()).expect("a URL").tls_config(tls).expect("a CA");
    tokio::time::timeout(LIMIT, endpoint.connect()).await.expect("an answer")
}

/// A token that is valid for some seconds from now on.
fn token_for(audience: &str, account: &str, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("is after 1970").as_secs() as i64;
    jwt(&json!({"aud": [audience], "sub": account, "exp": now + seconds}))
}

/// A token of an agent, the same whenever it is asked for.
fn token(id: &str) -> String {
    jwt(&json!({"aud": ["portico-discovery"], "sub": ACCOUNT, "exp": 4_000_000_000u64, "jti": id}))
}

fn jwt(claims: &Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// What the API server says of an agent's token.
fn vouched(extra: &Value) -> Value {
    let user = json!({"username": ACCOUNT, "extra": extra});
    json!({"authenticated": true, "audiences": ["portico-discovery"], "user": user})
}

fn on_node(node: &str) -> Value {
    vouched(&json!({"authentication.kubernetes.io/node-name": [node]}))
}

fn in_pod(name: &str, uid: &str) -> Value {
    vouched(&json!({"authentication.kubernetes.io/pod-name": [name], "authentication.kubernetes.io/pod-uid": [uid]}))
}

fn agent_pod(name: &str, uid: &str, account: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "n1", "serviceAccountName": account, "containers": []},
    })
}

#[tokio::test]
async fn an_agent_is_let_in_with_its_own_token_and_for_its_own_node_only() {
    let cluster = Cluster::start().await;
    let channel = cluster.channel().await;
    cluster.api.vouch(&token("n1"), on_node("n1"));
    cluster.api.vouch(&token("bare"), vouched(&json!({})));
    cluster.api.vouch(
        &token("admin"),
        json!({
            "authenticated": true, "audiences": ["portico-discovery"], "user": {"username": "admin"},
        }),
    );
    let cases = [
        (None, "n1", Code::Unauthenticated, "no_credential"),
        (Some("nonsense".to_owned()), "n1", Code::Unauthenticated, "malformed"),
        (Some(token_for("api", ACCOUNT, 3600)), "n1", Code::Unauthenticated, "wrong_audience"),
        (Some(token_for("portico-discovery", ACCOUNT, -1)), "n1", Code::Unauthenticated, "expired"),
        (Some(token_for("portico-discovery", "other", 3600)), "n1", Code::PermissionDenied, "wrong_account"),
        (Some(token("forged")), "n1", Code::Unauthenticated, "rejected"),
        (Some(token("bare")), "n1", Code::PermissionDenied, "unbound"),
        (Some(token("admin")), "n1", Code::PermissionDenied, "wrong_account"),
        (Some(token("n1")), "n2", Code::PermissionDenied, "other_node"),
    ];
    for (token, node, code, reason) in cases {
        let before = cluster.refusals(reason);
        let refused = Agent::new(node).open(channel.clone(), token.as_deref()).await.map(drop);
        let refused = refused.expect_err(reason);
        assert_eq!(refused.code(), code, "{reason}: {refused:?}");
        let secret = token.as_deref().unwrap_or("-----");
        assert!(!refused.message().contains(secret), "{refused:?}");
        assert_eq!(cluster.refusals(reason), before + 1.0, "{reason}");
    }
    let mut agent = Agent::new("n1");
    let mut stream = agent.open(channel.clone(), Some(&token("n1"))).await.expect("is let in");
    agent.commit(&mut stream).await;
    assert_eq!(stream.welcome.cluster_uid, "cluster");

    // The same holds for what nodes say of themselves.
    for (node, expected) in [("n1", Ok(())), ("n2", Err(Code::PermissionDenied))] {
        let status = NodeStatus { node_name: node.into(), instance_id: "i".into(), ..NodeStatus::default() };
        let report = ReportNodeStatusRequest { sequence: 1, status: Some(status) };
        let mut request =
            Request::new(futures::StreamExt::chain(futures::stream::iter([report]), futures::stream::pending()));
        request.metadata_mut().insert("authorization", format!("Bearer {}", token("n1")).parse().expect("is text"));
        let answers = NodeStatusServiceClient::new(channel.clone()).report_node_status(request).await;
        let answer = answers.expect("the token is right").into_inner().message().await;
        assert_eq!(answer.map(drop).map_err(|status| status.code()), expected, "{node}");
    }
    drop(stream);
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn plain_text_and_strange_certificates_are_turned_away_and_counted() {
    let cluster = Cluster::start().await;
    cluster.bundle().await;
    let plain = cluster.gateway.discovery.replace("https", "http");
    let channel = Endpoint::from_shared(plain).expect("a URL").connect().await;
    // The connection is closed by us before or after the client thinks that it stands.
    if let Ok(channel) = channel {
        assert!(Agent::new("n1").open(channel, Some(&token("n1"))).await.is_err());
    }
    let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).expect("a certificate");
    assert!(connect(&cluster.gateway, &made.cert.pem()).await.is_err(), "not signed by what we trust");
    // The gateway notices both after the client does.
    let noticed = async {
        while cluster.refusals("plaintext") < 1.0 || cluster.refusals("handshake") < 1.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, noticed).await.expect("both are counted");
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn an_answer_is_kept_and_holds_while_the_api_server_is_away() {
    let cluster = Cluster::start().await;
    let channel = cluster.channel().await;
    cluster.api.vouch(&token("n1"), on_node("n1"));
    cluster.api.vouch(&token("new"), on_node("n1"));
    for _ in 0..3 {
        Agent::new("n1").open(channel.clone(), Some(&token("n1"))).await.expect("is let in");
    }
    assert_eq!(cluster.api.reviews(), 1);
    cluster.api.fail_reviews(true);
    Agent::new("n1").open(channel.clone(), Some(&token("n1"))).await.expect("is known");
    let refused = Agent::new("n1").open(channel.clone(), Some(&token("new"))).await.map(drop);
    assert_eq!(refused.map_err(|status| status.code()), Err(Code::Unavailable));
    cluster.api.fail_reviews(false);
    Agent::new("n1").open(channel, Some(&token("new"))).await.expect("that it failed was not kept");
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn a_token_that_names_its_pod_only_is_one_of_the_pods_node() {
    let cluster = Cluster::start().await;
    cluster.api.put("pods", agent_pod("a", "u1", "portico-agent"));
    cluster.api.put("pods", agent_pod("b", "u2", "default"));
    let channel = cluster.channel().await;
    tokio::time::timeout(LIMIT, cluster.gateway.readiness.wait()).await.expect("gets ready");
    cluster.api.vouch(&token("a"), in_pod("a", "u1"));
    cluster.api.vouch(&token("other uid"), in_pod("a", "u0"));
    cluster.api.vouch(&token("other account"), in_pod("b", "u2"));
    for id in ["other uid", "other account"] {
        let refused = Agent::new("n1").open(channel.clone(), Some(&token(id))).await.map(drop);
        assert_eq!(refused.map_err(|status| status.code()), Err(Code::PermissionDenied), "{id}");
    }
    assert_eq!(cluster.refusals("unbound"), 2.0);
    let mut agent = Agent::new("n1");
    let mut stream = agent.open(channel.clone(), Some(&token("a"))).await.expect("is let in");
    agent.commit(&mut stream).await;

    // With its Pod an agent loses its stream, whatever the token says.
    cluster.api.delete("pods", NAMESPACE, "a");
    while agent.next(&mut stream).await.is_some() {}
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn a_stream_ends_before_its_token_does() {
    let cluster = Cluster::start().await;
    let channel = cluster.channel().await;
    let short = token_for("portico-discovery", ACCOUNT, 10);
    cluster.api.vouch(&short, on_node("n1"));
    let mut agent = Agent::new("n1");
    let mut stream = agent.open(channel, Some(&short)).await.expect("is let in");
    let goodbye = loop {
        match agent.next(&mut stream).await {
            Some(Received::Goodbye(goodbye)) => break goodbye,
            Some(_) => {}
            None => panic!("the stream ended without a goodbye"),
        }
    };
    assert_eq!(goodbye.reason(), GoodbyeReason::CredentialExpiring);
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_streams_live_on() {
    let cluster = Cluster::start().await;
    let before = cluster.bundle().await;
    let channel = cluster.channel().await;
    cluster.api.vouch(&token("n1"), on_node("n1"));
    let mut agent = Agent::new("n1");
    let mut stream = agent.open(channel, Some(&token("n1"))).await.expect("is let in");
    agent.commit(&mut stream).await;

    cluster.api.delete("secrets", NAMESPACE, "portico-gateway-tls");
    let differs = |map: &Value| map["data"]["ca.crt"].as_str() != Some(&before);
    let map = cluster.api.until("configmaps", NAMESPACE, "portico-gateway-ca", differs).await;
    let after = map["data"]["ca.crt"].as_str().expect("a bundle").to_owned();
    // It is published a moment before it is in force.
    let in_force = async {
        while connect(&cluster.gateway, &after).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, in_force).await.expect("the new one is shown");
    assert!(connect(&cluster.gateway, &before).await.is_err(), "the old one is not");
    cluster.api.put("nodes", json!({"metadata": {"name": "n2"}}));
    agent.until(&mut stream, |agent| agent.names(api::resource::Kind::Node).len() == 2).await;
    drop(stream);
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn gateways_that_start_at_once_show_the_same_certificate() {
    let cluster = Cluster::start().await;
    let others = futures::future::join_all((0..3).map(|_| gateway(&cluster.kubeconfig))).await;
    let bundle = cluster.bundle().await;
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
    for other in others {
        connect(&other, &bundle).await.expect("is trusted");
        other.stop().await;
    }
    assert_eq!(cluster.bundle().await, bundle);
    cluster.gateway.stop().await;
}

#[tokio::test]
async fn a_certificate_in_files_needs_no_cluster_and_is_read_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = || {
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).expect("a certificate");
        std::fs::write(directory.path().join("key"), made.signing_key.serialize_pem()).expect("writes");
        std::fs::write(directory.path().join("crt"), made.cert.pem()).expect("writes");
        made.cert.pem()
    };
    let first = write();
    let path = |name: &str| directory.path().join(name).to_str().expect("a path that is text").to_owned();
    let manifests = tempfile::tempdir().expect("a directory");
    let manifests = manifests.path().to_str().expect("a path that is text");
    let (certificate, key) = (path("crt"), path("key"));
    let options = ["--manifests", manifests, "--discovery-certificate", &certificate, "--discovery-key", &key];
    let gateway = Gateway::launch("https", &options).await;
    let channel = connect(&gateway, &first).await.expect("is trusted");
    Agent::new("n1").open(channel, None).await.expect("nobody vouches for tokens here");
    let second = write();
    let shown = async {
        while connect(&gateway, &second).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, shown).await.expect("the new one is shown");
    gateway.stop().await;
}

/// The keys that an agent holds.
fn hop_keys(agent: &Agent) -> Option<HopKeys> {
    agent.held.values().find_map(|resource| match resource {
        Resource::HopKeys(keys) => Some(keys.clone()),
        _ => None,
    })
}

#[tokio::test]
async fn agents_of_all_gateways_get_the_same_keys_and_new_ones_when_the_secret_is_gone() {
    let cluster = Cluster::start().await;
    let other = gateway(&cluster.kubeconfig).await;
    cluster.api.vouch(&token("n1"), on_node("n1"));
    let bundle = cluster.bundle().await;
    let mut agents = Vec::new();
    for gateway in [&cluster.gateway, &other] {
        let channel = connect(gateway, &bundle).await.expect("connects");
        let mut agent = Agent::new("n1");
        let mut stream = agent.open(channel, Some(&token("n1"))).await.expect("is let in");
        agent.until(&mut stream, |agent| hop_keys(agent).is_some()).await;
        agents.push((agent, stream));
    }
    let before = hop_keys(&agents[0].0).expect("has keys");
    assert_eq!(hop_keys(&agents[1].0).as_ref(), Some(&before));
    let secret = cluster.api.until("secrets", NAMESPACE, "portico-hop-keys", |_| true).await;
    assert_eq!(secret["data"]["current"], json!(STANDARD.encode(before.current.0)));

    cluster.api.delete("secrets", NAMESPACE, "portico-hop-keys");
    let mut after = Vec::new();
    for (agent, stream) in &mut agents {
        agent.until(stream, |agent| hop_keys(agent).is_some_and(|keys| keys != before)).await;
        after.extend(hop_keys(agent));
    }
    assert_eq!(after[0], after[1]);
    let old = [&[before.current][..], &before.accepted].concat();
    assert!(!old.contains(&after[0].current) && after[0].accepted.iter().all(|key| !old.contains(key)));
    cluster.gateway.stop().await;
    other.stop().await;
}
