//! Portico beside kube-proxy on the same nodes: each serves its own Services, and a Service can change hands. These tests
//! need root; `scripts/test cluster` runs them.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tests::{
    kubectl::Kubectl,
    sandbox::{Sandbox, plan::Role, programs, shared},
    tools,
};

const SYSTEM: &str = "portico-system";
const LABEL: &str = "service.kubernetes.io/service-proxy-name";
const PATIENCE: Duration = Duration::from_secs(60);

/// Node ports of the Service that kube-proxy has, and of the one that Portico has.
const THEIRS: u16 = 30_201;
const OURS: u16 = 30_202;

const MANIFESTS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: shared}
spec:
  replicas: 3
  selector: {matchLabels: {app: shared}}
  template:
    metadata: {labels: {app: shared}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: portico
          args: [echo]
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: theirs}
spec:
  type: NodePort
  selector: {app: shared}
  ports: [{port: 80, targetPort: 8080, nodePort: 30201, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: ours, labels: {service.kubernetes.io/service-proxy-name: portico}}
spec:
  type: NodePort
  selector: {app: shared}
  ports: [{port: 80, targetPort: 8080, nodePort: 30202, appProtocol: http}]
";

/// Who carried a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    /// It changes addresses of packets, and nothing in them.
    Kube,
    /// It says in a header who the client is.
    Portico,
}

/// Asks from outside, and tells who carried the request to the Pod.
async fn carried(sandbox: &Sandbox, from: Role, to: SocketAddr) -> Result<Proxy, String> {
    let mut command = sandbox.command(from, "curl");
    command.args(["-sS", "--fail", "--max-time", "5", &format!("http://{to}/")]);
    let output = tokio::process::Command::from(command).output().await.expect("curl runs");
    let seen: Value =
        serde_json::from_slice(&output.stdout).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let forwarded = seen["headers"].get("x-forwarded-for").is_some();
    Ok(if forwarded { Proxy::Portico } else { Proxy::Kube })
}

fn node_ports(port: u16) -> impl Iterator<Item = SocketAddr> {
    (1..=shared::NODES).map(move |node| SocketAddr::new(Role::Node(node).addresses()[0], port))
}

/// Waits until every node has this port carried by that proxy.
async fn carried_everywhere(sandbox: &Sandbox, port: u16, expected: Proxy) {
    for to in node_ports(port) {
        let waiting = async {
            while carried(sandbox, Role::Client, to).await != Ok(expected) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(done.is_ok(), "{to}: {:?}, and not {expected:?}", carried(sandbox, Role::Client, to).await);
    }
}

/// From now on as it is: twenty requests to each node.
async fn stays(sandbox: &Sandbox, port: u16, expected: Proxy) {
    for to in node_ports(port) {
        for _ in 0..20 {
            assert_eq!(carried(sandbox, Role::Client, to).await, Ok(expected), "{to}");
        }
    }
}

/// The rules of kube-proxy on a node.
async fn rules(sandbox: &Sandbox, node: u8) -> String {
    let mut command = sandbox.command(Role::Node(node), "nft");
    command.args(["list", "table", "ip", "kube-proxy"]);
    let output = tokio::process::Command::from(command).output().await.expect("nft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_serves_its_own_services_and_a_service_can_change_hands() {
    let sandbox = shared::up((1..=shared::NODES).collect()).await.expect("a sandbox with kube-proxy on every node");
    let kubectl = Kubectl::new(programs::find("kubectl").expect("kubectl"), sandbox.kubeconfig());
    let overlay = tools::root().join("deploy/overlays/sandbox");
    kubectl.words(&["apply", "-k", &overlay.display().to_string()]).await;
    kubectl.apply(MANIFESTS).await;
    kubectl.rolled_out(SYSTEM, "deployment/portico-gateway").await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    kubectl.rolled_out("default", "deployment/shared").await;

    carried_everywhere(&sandbox, THEIRS, Proxy::Kube).await;
    carried_everywhere(&sandbox, OURS, Proxy::Portico).await;
    stays(&sandbox, THEIRS, Proxy::Kube).await;
    stays(&sandbox, OURS, Proxy::Portico).await;
    // On the same node kube-proxy has a rule for the one and none for the other, by their cluster addresses.
    let address =
        async |service: &str| kubectl.words(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"]).await;
    let (theirs, ours) = (address("theirs").await, address("ours").await);
    for node in 1..=shared::NODES {
        let rules = rules(&sandbox, node).await;
        assert!(
            rules.contains(&format!("{theirs} .")) && !rules.contains(&format!("{ours} .")),
            "node {node}: {rules}"
        );
        let cluster = SocketAddr::new(theirs.parse().expect("an address"), 80);
        assert_eq!(carried(&sandbox, Role::Node(node), cluster).await, Ok(Proxy::Kube), "node {node}");
    }

    kubectl.words(&["label", "service", "theirs", &format!("{LABEL}=portico")]).await;
    kubectl.words(&["label", "service", "ours", &format!("{LABEL}-")]).await;
    carried_everywhere(&sandbox, THEIRS, Proxy::Portico).await;
    carried_everywhere(&sandbox, OURS, Proxy::Kube).await;
    stays(&sandbox, THEIRS, Proxy::Portico).await;
    stays(&sandbox, OURS, Proxy::Kube).await;
    sandbox.down().expect("everything can be removed");
}
