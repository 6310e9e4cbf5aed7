//! The hop between agents on a real cluster: a client from outside enters by one node and is seen, as itself, by a Pod of
//! another one. These tests need root; `scripts/test cluster` runs them.

mod pair;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, SystemTime},
};

use agent::{
    hop::{introduction::Introduction, seal::Keys},
    report::trace::SpanContext,
};
use anyhow::Context as _;
use api::resource::{
    hop_keys::{HopKey, HopKeys},
    name::NamespacedName,
    service::Transport,
};
use tests::{
    kubectl::Kubectl,
    metrics::Metrics,
    sandbox::{Sandbox, netns, plan::Role, programs, shared},
    tools,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const SYSTEM: &str = "portico-system";

/// The node that clients enter by, and the one with the Pod.
const ENTRY: Role = Role::Node(1);
const EXIT: Role = Role::Node(2);

/// Node ports: bytes that are not looked at, requests, and policy Local that overflows.
const OPAQUE: u16 = 30_310;
const HTTP: u16 = 30_311;
const OVERFLOW: u16 = 30_312;
/// The same as `OPAQUE`, but nobody asked for the client to be kept.
const REPLACED: u16 = 30_313;

/// As `OPAQUE`, for datagrams.
const UDP: u16 = 30_314;

/// Nothing here takes as long as this.
const PATIENCE: Duration = Duration::from_secs(90);

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  nodeName: node-2
  containers:
    - name: echo
      image: portico
      args: [echo, "--listen=0.0.0.0:8080", "--listen=[::]:8080"]
      ports: [{containerPort: 8080}]
      readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: opaque}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30310, appProtocol: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: http, annotations: {portico.dev/client-address: keep}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30311, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: overflow, annotations: {portico.dev/local-overflow: "true"}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30312, appProtocol: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: replaced, annotations: {portico.dev/client-address: pool}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30313, appProtocol: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: udp}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, protocol: UDP, targetPort: 8080, nodePort: 30314}]
"#;

/// The address of the outside client.
fn client() -> IpAddr {
    Role::Client.addresses()[0]
}

/// The address that the Pod sees when the outside client asks at a node port of the entry node.
async fn seen(sandbox: &Sandbox, entry: IpAddr, port: u16) -> Result<IpAddr, String> {
    let mut command = sandbox.command(Role::Client, "curl");
    let url = format!("http://{}/", SocketAddr::new(entry, port));
    command.args(["-sS", "--fail", "--max-time", "10", "--retry", "0", &url]);
    let output = tokio::process::Command::from(command).output().await.expect("curl runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let peer = said["peer"].as_str().ok_or_else(|| format!("no peer in {said}"))?;
    peer.parse::<SocketAddr>().map(|peer| peer.ip()).map_err(|error| format!("{peer}: {error}"))
}

/// As [`seen`], by UDP: whom the Pod sees, and as whom the client has asked, both with their ports.
fn seen_by_udp(entry: IpAddr, port: u16) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    netns::within(&Role::Client.namespace(), || {
        let any = if entry.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.connect(SocketAddr::new(entry, port))?;
        socket.send(b"who am I")?;
        let mut answer = vec![0; 64 << 10];
        let length = socket.recv(&mut answer)?;
        let said: serde_json::Value = serde_json::from_slice(&answer[..length])?;
        let peer = said["peer"].as_str().with_context(|| format!("no peer in {said}"))?;
        Ok((peer.parse()?, socket.local_addr()?))
    })
}

/// Asks by UDP until the Pod sees the client, or who else is expected.
async fn until_seen_by_udp(entry: IpAddr, is_expected: impl Fn(SocketAddr, SocketAddr) -> bool) {
    let mut last = None;
    let asking = async {
        loop {
            let seen = tokio::task::block_in_place(|| seen_by_udp(entry, UDP));
            if matches!(&seen, Ok((seen, own)) if is_expected(*seen, *own)) {
                return;
            }
            last = Some(seen);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if timeout(PATIENCE, asking).await.is_err() {
        panic!("at the UDP port of {entry} the Pod sees and the client is {last:?}");
    }
}

/// Asks until the Pod sees this address.
async fn until_seen(sandbox: &Sandbox, entry: IpAddr, port: u16, expected: IpAddr) {
    let mut last = Err(String::new());
    let asking = async {
        loop {
            last = seen(sandbox, entry, port).await;
            if last == Ok(expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if timeout(PATIENCE, asking).await.is_err() {
        panic!("at port {port} of {entry} the Pod is to see {expected}; last: {last:?}");
    }
}

/// What the agent of a node counts.
async fn metrics(sandbox: &Sandbox, node: Role) -> Metrics {
    let mut command = sandbox.command(Role::Client, "curl");
    command.args(["-sS", "--fail", "--max-time", "10", &format!("http://{}:18081/metrics", node.addresses()[0])]);
    let output = tokio::process::Command::from(command).output().await.expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Metrics::from(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends bytes to the hop port of the exit node, and gives what comes back before the end.
async fn say(bytes: &[u8]) -> Vec<u8> {
    let port = SocketAddr::new(EXIT.addresses()[0], 18_082);
    let mut stream = TcpStream::connect(port).await.expect("the agent listens for others");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends");
    answer
}

/// A header as an agent makes it, but with a key of our own.
fn forged(client: IpAddr, endpoint: SocketAddr) -> Vec<u8> {
    let keys = Keys::new(&HopKeys { current: HopKey([7; 32]), accepted: vec![] });
    let said = Introduction {
        transport: Transport::Tcp,
        client: SocketAddr::new(client, 40_000),
        destination: SocketAddr::new(ENTRY.addresses()[0], OPAQUE),
        service: NamespacedName::new("default", "opaque"),
        endpoint,
        entry: "node-1".into(),
        trace: SpanContext::default(),
    };
    keys.seal(&said, SystemTime::now()).expect("fits")
}

async fn deploy(sandbox: &Sandbox) -> Kubectl {
    let kubectl = Kubectl::new(programs::find("kubectl").expect("kubectl"), sandbox.kubeconfig());
    let overlay = tools::root().join("deploy/overlays/sandbox-replace-kube-proxy");
    kubectl.words(&["apply", "-k", &overlay.display().to_string()]).await;
    kubectl.rolled_out(SYSTEM, "deployment/portico-gateway").await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    kubectl.apply(MANIFESTS).await;
    kubectl
        .until("get pod echo -o jsonpath={.status.conditions[?(@.type=='Ready')].status}", "it is ready", |ready| {
            ready == "True"
        })
        .await;
    kubectl
}

/// One test, because each part begins where the one before it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_another_node_sees_the_client() {
    let sandbox = shared::get().await;
    let kubectl = deploy(sandbox).await;
    for (client, entry) in Role::Client.addresses().into_iter().zip(ENTRY.addresses()) {
        for port in [OPAQUE, HTTP, OVERFLOW] {
            until_seen(sandbox, entry, port, client).await;
        }
        until_seen(sandbox, entry, REPLACED, entry).await;
        // The port is kept as well: what speaks UDP may know its clients by it.
        until_seen_by_udp(entry, |seen, own| seen == own).await;
    }
    let entered = metrics(sandbox, EXIT).await;
    let handed = entered.sum("portico_connection_accepted_total", &[("portico_listener_kind", "hop")]);
    assert!(handed >= 6.0, "{}", entered.text());

    forged_headers_are_refused(sandbox, &kubectl).await;
    the_secret_is_rotated(sandbox, &kubectl).await;
    a_node_without_agent_is_dialled_from_the_entry(sandbox, &kubectl).await;
}

async fn forged_headers_are_refused(sandbox: &Sandbox, kubectl: &Kubectl) {
    let refused = |metrics: &Metrics, reason| metrics.sum("portico_hop_refused_total", &[("reason", reason)]);
    let before = metrics(sandbox, EXIT).await;
    let pod: IpAddr = kubectl.run("get pod echo -o jsonpath={.status.podIP}").await.parse().expect("an address");
    let mut request = forged(client(), SocketAddr::new(pod, 8080));
    request.extend_from_slice(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(say(&request).await, b"", "who forges is told nothing");
    assert_eq!(say(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await, b"");
    let after = metrics(sandbox, EXIT).await;
    for reason in ["code", "malformed"] {
        assert_eq!(refused(&after, reason), refused(&before, reason) + 1.0, "{reason}");
    }
}

/// Who deletes the Secret has all keys made anew; what is handed over meanwhile loses its client and nothing else.
async fn the_secret_is_rotated(sandbox: &Sandbox, kubectl: &Kubectl) {
    let keys = "-n portico-system get secret portico-hop-keys -o jsonpath={.data.current}";
    let before = kubectl.run(keys).await;
    kubectl.run("-n portico-system delete secret portico-hop-keys").await;
    kubectl.until(keys, "there are new keys", |now| !now.is_empty() && now != before).await;
    until_seen(sandbox, ENTRY.addresses()[0], OPAQUE, client()).await;
}

async fn a_node_without_agent_is_dialled_from_the_entry(sandbox: &Sandbox, kubectl: &Kubectl) {
    let entry = ENTRY.addresses()[0];
    // The DaemonSet wants nodes with Linux.
    kubectl.run("label node node-2 kubernetes.io/os=none --overwrite").await;
    let agents =
        "-n portico-system get pods -o jsonpath={.items[*].spec.nodeName} -l app.kubernetes.io/component=agent";
    kubectl.until(agents, "the agent is gone", |nodes| !nodes.contains("node-2")).await;
    until_seen(sandbox, entry, OPAQUE, entry).await;
    until_seen_by_udp(entry, |seen, _| seen.ip() == entry).await;
    let bypassed = metrics(sandbox, ENTRY).await;
    assert!(bypassed.sum("portico_hop_bypassed_total", &[("reason", "no_agent")]) >= 1.0, "{}", bypassed.text());

    kubectl.run("label node node-2 kubernetes.io/os=linux --overwrite").await;
    until_seen(sandbox, entry, OPAQUE, client()).await;
    until_seen_by_udp(entry, |seen, own| seen == own).await;
}
