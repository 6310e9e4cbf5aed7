//! Every address of a Service, from everywhere that Kubernetes promises it to.

use std::{process::Command, time::Duration};

use tests::{kubectl::Kubectl, sandbox::plan::Role};

use crate::cluster;

/// Clients in the cluster: a Pod, and one that shares the network of its node.
const CLIENTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: inside}
spec:
  nodeName: node-1
  containers: [{name: shell, image: busybox, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec:
  nodeName: node-2
  hostNetwork: true
  containers: [{name: shell, image: busybox, command: [sleep, infinity]}]
---
apiVersion: portico.dev/v1alpha1
kind: AddressPool
metadata: {name: addresses-test}
spec: {addresses: [10.97.1.0/28, 'fd97:1::/124'], autoAssign: false}
";

/// More than `kubectl expose` says by itself.
const EXPOSED: &str = "--overrides={\"metadata\":{\"annotations\":{\"portico.dev/address-pool\":\"addresses-test\"}},\
    \"spec\":{\"ipFamilyPolicy\":\"RequireDualStack\",\"loadBalancerClass\":\"portico.dev/gateway\"}}";

#[tokio::test(flavor = "multi_thread")]
async fn what_kubectl_exposes_answers_at_all_its_addresses() {
    let (sandbox, kubectl, _turn) = cluster().await;
    kubectl.apply(CLIENTS).await;
    kubectl.run("create deployment everywhere --image=nginx").await;
    kubectl
        .words(&[
            "expose",
            "deployment",
            "everywhere",
            "--type=LoadBalancer",
            "--port=8000",
            "--target-port=80",
            EXPOSED,
        ])
        .await;
    kubectl.rolled_out("default", "deployment/everywhere").await;
    kubectl.run("wait --for=condition=Ready pod/inside pod/on-host --timeout=60s").await;
    let endpoints = kubectl.run("get pods -l app=everywhere -o jsonpath={.items[*].metadata.name}").await;
    let places = [pod(&kubectl, "inside").await, pod(&kubectl, &endpoints).await, node(1), node(2), node(3)];

    let cluster_ips = read(&kubectl, "{.spec.clusterIPs[*]}").await;
    let balanced = "{.status.loadBalancer.ingress[*].ip}";
    kubectl
        .until(&format!("get service everywhere -o jsonpath={balanced}"), "two addresses are given", |addresses| {
            addresses.split_whitespace().count() == 2
        })
        .await;
    let balanced = read(&kubectl, balanced).await;
    let node_port = read(&kubectl, "{.spec.ports[0].nodePort}").await.remove(0);
    let at_nodes: Vec<String> = [Role::Node(1), Role::Node(2), Role::Node(3)]
        .iter()
        .flat_map(|node| node.addresses())
        .map(|address| std::net::SocketAddr::new(address, node_port.parse().expect("a port")).to_string())
        .collect();
    assert_eq!((cluster_ips.len(), balanced.len()), (2, 2));
    let with_port = |addresses: &[String]| -> Vec<String> {
        let host = |address: &String| if address.contains(':') { format!("[{address}]") } else { address.clone() };
        addresses.iter().map(|address| format!("{}:8000", host(address))).collect()
    };
    let inside: Vec<String> = [with_port(&cluster_ips), with_port(&balanced), at_nodes.clone()].concat();
    for place in &places {
        for address in &inside {
            shows_a_page(place, address).await;
        }
    }
    // Outside, routers lead load-balancer addresses to the nodes.
    let outside = Role::Client.namespace();
    for (family, range, via) in [("-4", "10.97.1.0/28", Role::Node(1)), ("-6", "fd97:1::/124", Role::Node(2))] {
        let via = via.addresses()[usize::from(family == "-6")].to_string();
        let mut route = sandbox.command(Role::Client, "ip");
        assert!(route.args([family, "route", "replace", range, "via", &via]).status().expect("ip runs").success());
    }
    for address in [with_port(&balanced), at_nodes].concat() {
        shows_a_page(&outside, &address).await;
    }
    kubectl.run("delete service,deployment everywhere --wait=false").await;
    kubectl.run("delete pod inside on-host --wait=false --grace-period=0").await;
    kubectl.run("delete addresspool addresses-test --wait=false").await;
}

/// The network namespace of a Pod.
async fn pod(kubectl: &Kubectl, name: &str) -> String {
    let uid = kubectl.run(&format!("get pod {name} -o jsonpath={{.metadata.uid}}")).await;
    format!("portico-pod-{}", &uid[..8])
}

fn node(number: u8) -> String {
    Role::Node(number).namespace()
}

/// What a field of the Service says, word by word.
async fn read(kubectl: &Kubectl, field: &str) -> Vec<String> {
    let said = kubectl.run(&format!("get service everywhere -o jsonpath={field}")).await;
    said.split_whitespace().map(str::to_owned).collect()
}

/// Asks until the page comes: nodes hear of a Service a moment after its Pods are ready.
async fn shows_a_page(namespace: &str, address: &str) {
    let mut said = String::new();
    for _ in 0..50 {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            namespace,
            "curl",
            "-sS",
            "-g",
            "--max-time",
            "3",
            &format!("http://{address}/"),
        ]);
        let output = tokio::process::Command::from(command).output().await.expect("curl runs");
        said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() && said.contains("nginx") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{namespace} gets no page from {address}: {said}");
}
