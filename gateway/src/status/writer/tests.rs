use serde_json::Value;
use tokio::time::Instant;

use super::*;
use crate::{
    status::{
        election::{Election, Leadership},
        fixture::ApiServer,
        lease::Timing,
    },
    watch::object::Kind,
};

const WEB: &str = "/api/v1/namespaces/default/services/web";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases/portico-gateway";

fn service(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" }, "spec": spec })
}

fn ours() -> Value {
    service(json!({ "type": "LoadBalancer", "loadBalancerClass": crate::LOAD_BALANCER_CLASS }))
}

fn wish(address: &str, release: bool) -> Arc<Desired> {
    let addresses = if address.is_empty() { vec![] } else { vec![address.parse().expect("an address")] };
    Arc::new(Desired::from([(ObjectKey::new(Kind::Service, "default", "web"), Change { addresses, release })]))
}

fn writer(server: &ApiServer, leadership: Leadership, desired: Arc<Desired>) -> watch::Sender<Arc<Desired>> {
    let (sender, desired) = watch::channel(desired);
    let classes = Classes { named: Some(crate::LOAD_BALANCER_CLASS.into()), unnamed: false };
    tokio::spawn(Writer::new(server.client(), classes, leadership, desired).run());
    sender
}

/// Waits until the time of the test stands still, because nobody has anything to do but wait.
async fn settled() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_list_is_replaced_as_a_whole_and_only_if_it_differs() {
    let server = ApiServer::new();
    let mut object = ours();
    object["status"] = json!({
        "conditions": [{
            "type": "Mine", "status": "True", "reason": "Because", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
        "loadBalancer": { "ingress": [{ "hostname": "old.example.com" }, { "ip": "192.0.2.9" }] },
    });
    server.set(WEB, object);
    server.refuse(2);
    let desired = writer(&server, Leadership::always(), wish("192.0.2.1", false));
    settled().await;
    let status = server.get(WEB)["status"].clone();
    assert_eq!(status["loadBalancer"]["ingress"], json!([{ "ip": "192.0.2.1", "ipMode": "VIP" }]));
    assert_eq!(status["conditions"][0]["type"], "Mine", "what is not ours stays");
    let writes = server.writes();
    assert_eq!(writes, vec![format!("PATCH {WEB}/status"); 3], "two conflicts, and then the write");
    // Nobody says that it was seen, so it is looked at again, and nothing is written.
    tokio::time::sleep(SEEN_AFTER * 2).await;
    assert_eq!(server.writes(), writes);
    desired.send_replace(wish("", false));
    settled().await;
    assert_eq!(server.get(WEB)["status"]["loadBalancer"], json!({}));
}

#[tokio::test(start_paused = true)]
async fn what_became_somebody_elses_is_left_alone() {
    let server = ApiServer::new();
    let mut foreign = service(json!({ "type": "LoadBalancer", "loadBalancerClass": "example.com/other" }));
    foreign["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.9" }] } });
    server.set(WEB, foreign);
    let desired = writer(&server, Leadership::always(), wish("192.0.2.1", false));
    settled().await;
    desired.send_replace(wish("", false));
    settled().await;
    // Gone is gone.
    let gone = ObjectKey::new(Kind::Service, "default", "gone");
    desired.send_replace(Arc::new(Desired::from([(gone, Change { addresses: vec![], release: false })])));
    settled().await;
    assert_eq!(server.writes(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_finalizer_of_a_service_that_is_deleted_is_taken_away_and_others_are_not() {
    let server = ApiServer::new();
    let mut object = ours();
    object["metadata"]["finalizers"] = json!(["example.com/mine", LOAD_BALANCER_CLEANUP]);
    server.set(WEB, object);
    let _desired = writer(&server, Leadership::always(), wish("192.0.2.1", true));
    settled().await;
    assert_eq!(server.get(WEB)["metadata"]["finalizers"], json!(["example.com/mine"]));
    assert_eq!(server.get(WEB)["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_by_who_does_not_lead() {
    let server = ApiServer::new();
    server.set(WEB, ours());
    let held = json!({
        "metadata": { "name": "portico-gateway" },
        "spec": { "holderIdentity": "other", "leaseDurationSeconds": 15 },
    });
    server.set(LEASE, held);
    let (election, mut leadership) =
        Election::new(server.client(), "default", "portico-gateway", "this", Timing::DEFAULT);
    let (_trigger, drain) = runtime::drain::channel();
    let _desired = writer(&server, leadership.clone(), wish("192.0.2.1", false));
    tokio::spawn(election.run(drain));
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(server.writes(), Vec::<String>::new());
    leadership.gained().await;
    assert!(began.elapsed() >= Timing::DEFAULT.duration);
    settled().await;
    assert!(server.writes().contains(&format!("PATCH {WEB}/status")));
}
