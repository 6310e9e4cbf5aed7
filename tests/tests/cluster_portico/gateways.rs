use std::{net::SocketAddr, time::Duration};

use tests::{client, kubectl::Kubectl, metrics::Metrics, sandbox::plan::HOST};

use crate::{RATE, SYSTEM, answers_everywhere, cluster, echo, everyone_answers, load, none_failed, pods_of};

const LEASE: &str = "-n portico-system get lease portico-gateway -o jsonpath={.spec.holderIdentity}";
const GATEWAYS: &str = "-n portico-system get pods -l app.kubernetes.io/component=gateway";
const POOL: &str = "{apiVersion: portico.dev/v1alpha1, kind: AddressPool, metadata: {name: public}, \
                    spec: {addresses: [192.0.2.0/26]}}";

/// A Service for the Pods of a Deployment that wants an address of Portico's.
fn balanced(name: &str, app: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, \
         loadBalancerClass: portico.dev/gateway, selector: {{app: {app}}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
    )
}

fn address(service: &str) -> String {
    format!("get service {service} -o jsonpath={{.status.loadBalancer.ingress[0].ip}}")
}

/// How many gateways say that they lead.
async fn leaders(kubectl: &Kubectl) -> f64 {
    let gateways = kubectl.run(&format!("{GATEWAYS} -o jsonpath={{.items[*].status.podIP}}")).await;
    let mut sum = 0.0;
    for gateway in gateways.split_whitespace() {
        let admin: SocketAddr = format!("{gateway}:18080").parse().expect("an address");
        let answer = client::get(HOST[0], admin, "admin", "/metrics").await;
        let text = String::from_utf8(answer.body.to_vec()).expect("text");
        sum += Metrics::from(text).sum("portico_leader", &[]);
    }
    sum
}

async fn until_leaders(kubectl: &Kubectl, count: f64) {
    let waiting = async {
        while leaders(kubectl).await != count {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    done.unwrap_or_else(|_| panic!("{count} gateways are expected to lead"));
}

/// Says once more that somebody else leads, as an operator's mistake or a gateway of another installation would.
async fn steal(kubectl: &Kubectl) {
    let now = k8s_openapi::jiff::Timestamp::now();
    let record =
        format!(r#"{{"spec": {{"holderIdentity": "thief", "leaseDurationSeconds": 15, "renewTime": "{now:.6}"}}}}"#);
    kubectl.words(&["-n", SYSTEM, "patch", "lease", "portico-gateway", "--type=merge", "-p", &record]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_lease_is_taken_writes_nothing_until_one_of_them_has_it_again() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("led", 2, 30_106, false)).await;
    kubectl.apply(POOL).await;
    kubectl.apply(&balanced("led-before", "led")).await;
    kubectl.rolled_out("default", "deployment/led").await;
    answers_everywhere(sandbox, 30_106).await;
    kubectl.until(&address("led-before"), "the leader gives an address", |ip| ip.starts_with("192.0.2.")).await;
    until_leaders(&kubectl, 1.0).await;
    let mut load = load(30_106);

    steal(&kubectl).await;
    let thief = kubectl.clone();
    let stealing = tokio::spawn(async move {
        loop {
            steal(&thief).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    until_leaders(&kubectl, 0.0).await;
    kubectl.apply(&balanced("led-meanwhile", "led")).await;
    kubectl.apply(&echo("led-later", 1, 30_107, false)).await;
    // All gateways have seen what came after the Service that wants an address, and nobody gave it one.
    answers_everywhere(sandbox, 30_107).await;
    assert_eq!(kubectl.run(&address("led-meanwhile")).await, "");
    assert_eq!(kubectl.run(LEASE).await, "thief");
    assert_eq!(leaders(&kubectl).await, 0.0);

    stealing.abort();
    kubectl.until(LEASE, "a gateway leads again", |holder| holder.starts_with("portico-gateway-")).await;
    kubectl.until(&address("led-meanwhile"), "the address is given", |ip| ip.starts_with("192.0.2.")).await;
    until_leaders(&kubectl, 1.0).await;
    load.more(RATE as usize).await;
    none_failed(&load);
    drop(load);
    kubectl.run("delete service,deployment led led-later --ignore-not-found --wait=false").await;
    kubectl.run("delete service led-before led-meanwhile --wait=false").await;
    kubectl.run("delete addresspool public --wait=false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_restart_one_after_the_other_and_nobody_notices() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(&echo("unmoved", 3, 30_108, false)).await;
    kubectl.rolled_out("default", "deployment/unmoved").await;
    answers_everywhere(sandbox, 30_108).await;
    let mut load = load(30_108);
    let names = kubectl.run(&format!("{GATEWAYS} -o jsonpath={{.items[*].metadata.name}}")).await;
    let names: Vec<&str> = names.split_whitespace().collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in names {
        kubectl.run(&format!("-n {SYSTEM} delete pod {name} --wait=false")).await;
        // What changes while it goes is not lost on the way.
        kubectl.run("rollout restart deployment unmoved").await;
        kubectl.rolled_out("default", "deployment/unmoved").await;
        everyone_answers(&mut load, &pods_of(&kubectl, "unmoved").await).await;
        kubectl.rolled_out(SYSTEM, "deployment/portico-gateway").await;
        none_failed(&load);
    }
    until_leaders(&kubectl, 1.0).await;
    load.more(RATE as usize).await;
    none_failed(&load);
    drop(load);
    kubectl.run("delete service,deployment unmoved --wait=false").await;
}
