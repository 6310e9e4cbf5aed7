use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tests::{
    probe::{self, Seen, Transport},
    sandbox::{Sandbox, netns, plan::Role},
};

use crate::{ANSWER, PATIENCE, answers, cluster, datagrams, pods};

const NODE_PORT: u16 = 30_481;
const HEALTH_PORT: u16 = 30_482;
/// What the node gets in place of `10.245.0.13` and `fd45::13`.
const OTHER: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 245, 0, 63)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd45, 0, 0, 0, 0, 0, 0, 0x63)),
];
/// Where agents take over connections from each other.
const HOP: u16 = 18_082;

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: stays, labels: {app: stays}}
spec:
  nodeName: node-3
  containers:
    - name: echo
      image: portico
      args: [echo, '--listen=0.0.0.0:8080,[::]:8080']
      env: [{name: POD_NAME, value: stays}]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: stays}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: stays}
  ports: [{port: 80, targetPort: 8080, nodePort: 30481}]
---
apiVersion: v1
kind: Service
metadata: {name: stays-healthy}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  externalTrafficPolicy: Local
  healthCheckNodePort: 30482
  selector: {app: stays}
  ports: [{port: 80, targetPort: 8080}]
";

/// Has the Node say that these are its addresses. Its interface has both all the time, as while a network is renumbered:
/// what answers where is Portico's doing.
async fn say(sandbox: &Sandbox, node: Role, addresses: [IpAddr; 2]) {
    let nodes: Api<Node> = Api::all(sandbox.client().await.expect("a client"));
    let mut said: Vec<_> = addresses.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
    said.push(json!({ "type": "Hostname", "address": node.name() }));
    said.push(json!({ "$patch": "replace" }));
    let patch = Patch::Strategic(json!({ "status": { "addresses": said } }));
    nodes.patch_status(&node.name(), &PatchParams::default(), &patch).await.expect("the API server takes it");
}

/// What a load balancer is told at the health-check port of an address; `None` if nobody is there.
async fn health(sandbox: &Sandbox, at: IpAddr) -> Option<String> {
    let mut command = sandbox.command(Role::Client, "curl");
    let url = format!("http://{}/", SocketAddr::new(at, HEALTH_PORT));
    command.args(["-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", &url]);
    let output = tokio::process::Command::from(command).output().await.expect("curl runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until the node port and the health check answer at these addresses.
async fn serves(sandbox: &Sandbox, addresses: [IpAddr; 2]) {
    for address in addresses {
        let took = answers(Role::Client, SocketAddr::new(address, NODE_PORT), Transport::Tcp).await;
        println!("the node port answers at {address} after {took:?}");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while health(sandbox, address).await.as_deref() != Some("200") {
            assert!(tokio::time::Instant::now() < deadline, "no health check at {address}");
            tokio::time::sleep(ANSWER / 20).await;
        }
    }
}

/// Asks by way of another node, which hands over to the agent of the Pod's node; whom the Pod sees.
async fn handed_over() -> Option<IpAddr> {
    let entry = SocketAddr::new(Role::Node(1).addresses()[0], NODE_PORT);
    match probe::ask(&Role::Client.namespace(), entry, Transport::Tcp, 5 * ANSWER).await {
        Seen::Answer { source, .. } => Some(source),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_served_at_the_address_that_it_has() {
    let (sandbox, kubectl, _turn) = cluster().await;
    let node = Role::Node(3);
    let old = node.addresses();
    let change = |verb: &str| {
        let line = |address: &IpAddr| match address.is_ipv4() {
            true => format!("address {verb} {address}/24 dev eth0"),
            false => format!("address {verb} {address}/64 dev eth0{}", if verb == "add" { " nodad" } else { "" }),
        };
        netns::ip(Some(&node.namespace()), &OTHER.iter().map(line).collect::<Vec<_>>()).expect("addresses");
    };
    change("add");
    kubectl.apply(MANIFESTS).await;
    kubectl.run("wait pod/stays --for=condition=Ready --timeout=60s").await;
    assert!(!pods(sandbox, "app=stays").await.is_empty());
    serves(sandbox, old).await;
    let client = Role::Client.addresses()[0];
    let to = |addresses: [IpAddr; 2]| (addresses[0].to_string(), format!("ip daddr {} tcp dport {HOP}", addresses[0]));
    datagrams::count(sandbox, Role::Node(1), &[to(old), to(OTHER)]);
    for (now, before) in [(OTHER, old), (old, OTHER)] {
        say(sandbox, node, now).await;
        serves(sandbox, now).await;
        for address in before {
            let gone = SocketAddr::new(address, NODE_PORT);
            let deadline = tokio::time::Instant::now() + PATIENCE;
            loop {
                let seen = probe::ask(&Role::Client.namespace(), gone, Transport::Tcp, ANSWER).await;
                if matches!(seen, Seen::Refused) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "the node port at {gone}: {seen:?}");
            }
            assert_eq!(health(sandbox, address).await, None, "the health check at {address}");
        }
        // The agent of the entry node may hear of it a moment later.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let handed = || datagrams::counted(sandbox, Role::Node(1));
        loop {
            let before_it = handed();
            let seen = handed_over().await;
            let after_it = handed();
            let more = |at: IpAddr| after_it[&at.to_string()] > before_it[&at.to_string()];
            if seen == Some(client) && more(now[0]) && !more(before[0]) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "hop to {}: {seen:?}, {after_it:?}", now[0]);
        }
    }
    datagrams::stop_counting(sandbox, Role::Node(1));
    change("delete");
    kubectl.run("delete pod,service -l app=stays --wait=false --grace-period=0").await;
    kubectl.run("delete service stays stays-healthy --wait=false").await;
}
