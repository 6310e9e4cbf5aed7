use std::collections::BTreeSet;

use serde_json::Value;
use tests::{
    kubectl::Kubectl,
    sandbox::{Sandbox, plan::Role, shared},
};

use crate::{AGENT, SYSTEM, cluster, set_options, upstream_option};

/// Runs a command in the Pod `client` of the namespace `shop`; what it printed, or what it complained of.
async fn in_pod(kubectl: &Kubectl, command: &str) -> Result<String, String> {
    let words = ["-n", "shop", "exec", "client", "--"].into_iter().chain(command.split_whitespace());
    kubectl.attempt(&words.collect::<Vec<_>>(), "").await
}

/// What the C library of the Pod finds: addresses, once each.
async fn addresses(kubectl: &Kubectl, database: &str, name: &str) -> BTreeSet<String> {
    let found = in_pod(kubectl, &format!("getent {database} {name}")).await.unwrap_or_default();
    found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn set<const N: usize>(addresses: [&str; N]) -> BTreeSet<String> {
    addresses.map(str::to_owned).into()
}

/// The Pod that answers `curl` of a URL.
async fn answered_by(kubectl: &Kubectl, family: &str, url: &str) -> String {
    let said = in_pod(kubectl, &format!("curl {family} -sS --fail --max-time 10 {url}")).await;
    let said = said.unwrap_or_else(|error| panic!("curl {family} {url}: {error}"));
    let seen: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    seen["pod"].as_str().unwrap_or_else(|| panic!("no Pod in {said}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_finds_services_by_short_names_and_the_world_by_its_own() {
    let (_, kubectl, _turn) = cluster().await;
    kubectl.run("-n shop wait pod/client --for=condition=Ready --timeout=60s").await;
    let resolver = in_pod(&kubectl, "cat /etc/resolv.conf").await.expect("the file is there");
    let expected = "nameserver 169.254.20.53\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n\
                    options ndots:5\n";
    assert_eq!(resolver, expected);

    // The kubelets tell agents too to ask the address that agents answer at.
    set_options(&kubectl, &["PORTICO_DNS_UPSTREAM-"]).await;
    assert_eq!(addresses(&kubectl, "ahostsv4", "www.example.test").await, set([]));
    let log = kubectl.run("-n portico-system logs daemonset/portico-agent").await;
    assert!(log.contains("are this agent itself") && log.contains("dnsPolicy: Default"), "{log}");
    assert_eq!(addresses(&kubectl, "ahostsv4", "web").await, set(["10.96.7.1"]), "names of the cluster are answered");

    set_options(&kubectl, &[&upstream_option()]).await;
    for (database, name, expected) in [
        ("ahostsv4", "web", set(["10.96.7.1"])),
        ("ahostsv6", "web", set(["fd96::701"])),
        ("ahostsv4", "web.shop", set(["10.96.7.1"])),
        ("ahostsv4", "web.shop.svc", set(["10.96.7.1"])),
        ("ahostsv4", "WEB.shop.svc.cluster.local.", set(["10.96.7.1"])),
        ("ahostsv4", "kubernetes.default", set(["10.96.0.1"])),
        ("ahostsv4", "db-1.db", set(["10.250.1.2", "10.250.1.3"])),
        ("ahostsv6", "db-0.db", set(["fd25::1:1"])),
        ("ahostsv4", "near", set(["10.96.7.1"])),
        ("ahostsv4", "site", set(["192.0.2.7"])),
        ("ahostsv4", "www.example.test", set(["192.0.2.7"])),
        ("ahostsv6", "www.example.test", set(["2001:db8::7"])),
        ("ahostsv4", "nobody", set([])),
        ("ahostsv4", "nobody.example.test", set([])),
        ("hosts", "10.96.7.1", set(["10.96.7.1"])),
    ] {
        assert_eq!(addresses(&kubectl, database, name).await, expected, "getent {database} {name}");
    }
    for family in ["-4", "-6"] {
        // By the ClusterIP, which kube-proxy serves, and without one.
        let pod = answered_by(&kubectl, family, "http://web").await;
        assert!(pod.starts_with("web-"), "{pod}");
        for pod in ["web-0", "web-1"] {
            assert_eq!(answered_by(&kubectl, family, &format!("http://{pod}.direct:8080")).await, pod);
        }
    }
}

/// The lines that `ip` prints of the address that agents answer at.
fn on_loopback(sandbox: &Sandbox, node: u8) -> String {
    let address = format!("{}/32", AGENT.ip());
    let mut ip = sandbox.command(Role::Node(node), "ip");
    let output = ip.args(["-oneline", "address", "show", "dev", "lo", "to", &address]).output().expect("ip runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_comes_and_goes_with_the_agents() {
    let (sandbox, kubectl, _turn) = cluster().await;
    let nodes = 1..=shared::NODES;
    // No node has the label.
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"portico.dev/nowhere":"true"}}}}}"#;
    let everywhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"portico.dev/nowhere":null}}}}}"#;
    let patch = async |patch: &str| {
        kubectl.words(&["-n", SYSTEM, "patch", "daemonset", "portico-agent", "-p", patch]).await;
    };
    let agents = "-n portico-system get pods -l app.kubernetes.io/component=agent -o name";
    for node in nodes.clone() {
        let line = on_loopback(sandbox, node);
        assert!(line.contains("scope host lo:portico"), "node-{node}: {line:?}");
    }
    patch(nowhere).await;
    kubectl.until(agents, "no agent is left", str::is_empty).await;
    for node in nodes.clone() {
        assert_eq!(on_loopback(sandbox, node), "", "node-{node}");
    }
    // An address that somebody else has put there is used, and stays.
    let by_hand = ["address", "add", "169.254.20.53/32", "dev", "lo"];
    let added = sandbox.command(Role::Node(2), "ip").args(by_hand).status();
    assert!(added.is_ok_and(|status| status.success()));
    patch(everywhere).await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    kubectl.run("-n shop wait pod/client --for=condition=Ready --timeout=60s").await;
    assert_eq!(addresses(&kubectl, "ahostsv4", "web").await, set(["10.96.7.1"]));
    patch(nowhere).await;
    kubectl.until(agents, "no agent is left", str::is_empty).await;
    let left: Vec<u8> = nodes.filter(|node| !on_loopback(sandbox, *node).is_empty()).collect();
    assert_eq!(left, [2]);
    let removed =
        sandbox.command(Role::Node(2), "ip").args(["address", "delete", "169.254.20.53/32", "dev", "lo"]).status();
    assert!(removed.is_ok_and(|status| status.success()));
    patch(everywhere).await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
}
