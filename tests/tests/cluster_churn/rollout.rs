use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::proto::echo::{EchoStreamRequest, EchoStreamResponse, echo_service_client::EchoServiceClient};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tests::{
    kubectl::Kubectl,
    load::Load,
    probe::{self, Seen, Transport},
    sandbox::{
        Sandbox,
        plan::{HOST, Role},
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::{answers, cluster, nodes, pods};

const RESTARTS: usize = 2;
/// HTTP requests a second to each Service, through all nodes.
const RATE: u32 = 60;
/// Between one exchange of a session and the next, and between one short connection and the next.
const PERIOD: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody answers a datagram later than this.
const ANSWER: Duration = Duration::from_millis(500);

/// Node ports by what they speak.
#[derive(Clone, Copy)]
struct Ports {
    http: u16,
    raw: u16,
    web_socket: u16,
    grpc: u16,
}

/// A session that lasts until one side ends it, and the Pod at its other end.
struct Session {
    pod: String,
    wire: Wire,
}

enum Wire {
    Tcp(BufReader<TcpStream>),
    WebSocket(Box<WebSocketStream<TcpStream>>),
    Grpc(mpsc::UnboundedSender<EchoStreamRequest>, Box<tonic::Streaming<EchoStreamResponse>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    WebSocket,
    Grpc,
}

/// What became of sessions and of short exchanges.
#[derive(Default)]
struct Account {
    done: usize,
    /// Those that could not be opened, or were not answered.
    lost: Vec<String>,
    /// Sessions that ended, by the Pod that they were with.
    ended: Vec<(String, String)>,
}

/// Clients of one kind, until dropped.
struct Clients {
    name: String,
    account: Arc<Mutex<Account>>,
    tasks: Vec<JoinHandle<()>>,
}

// === impl Session ===

impl Session {
    async fn open(kind: Kind, to: SocketAddr) -> anyhow::Result<Self> {
        match kind {
            Kind::Tcp => {
                let mut stream = BufReader::new(TcpStream::connect(to).await?);
                stream.write_all(b"#\n").await?;
                let mut line = String::new();
                stream.read_line(&mut line).await?;
                let pod = pod(&line)?;
                // What was sent comes back after the line about the connection.
                line.clear();
                stream.read_line(&mut line).await?;
                Ok(Self { pod, wire: Wire::Tcp(stream) })
            }
            Kind::WebSocket => {
                let stream = TcpStream::connect(to).await?;
                let (mut socket, _) = client_async(format!("ws://{to}/"), stream).await?;
                let greeting = socket.next().await.ok_or_else(|| anyhow::anyhow!("no greeting"))??;
                Ok(Self { pod: pod(greeting.to_text()?)?, wire: Wire::WebSocket(Box::new(socket)) })
            }
            Kind::Grpc => {
                let mut client = EchoServiceClient::connect(format!("http://{to}")).await?;
                let (sender, requests) = mpsc::unbounded_channel();
                sender.send(EchoStreamRequest::default())?;
                let requests = UnboundedReceiverStream::new(requests);
                let mut answers = client.echo_stream(requests).await?.into_inner();
                let first = answers.message().await?.ok_or_else(|| anyhow::anyhow!("the stream ended"))?;
                Ok(Self { pod: first.pod, wire: Wire::Grpc(sender, Box::new(answers)) })
            }
        }
    }

    /// Sends something and waits until it comes back.
    async fn exchange(&mut self) -> anyhow::Result<()> {
        match &mut self.wire {
            Wire::Tcp(stream) => {
                stream.write_all(b"ping\n").await?;
                let mut line = String::new();
                anyhow::ensure!(stream.read_line(&mut line).await? > 0, "closed");
            }
            Wire::WebSocket(socket) => {
                socket.send(Message::text("ping")).await?;
                let answer = socket.next().await.ok_or_else(|| anyhow::anyhow!("closed"))??;
                anyhow::ensure!(answer.is_text(), "{answer}");
            }
            Wire::Grpc(sender, answers) => {
                sender.send(EchoStreamRequest::default())?;
                answers.message().await?.ok_or_else(|| anyhow::anyhow!("the stream ended"))?;
            }
        }
        Ok(())
    }
}

fn pod(json: &str) -> anyhow::Result<String> {
    let seen: Value = serde_json::from_str(json)?;
    seen["pod"].as_str().map(str::to_owned).ok_or_else(|| anyhow::anyhow!("no Pod in {json}"))
}

// === impl Clients ===

impl Clients {
    /// A session to each address at all times.
    fn sessions(kind: Kind, addresses: &[SocketAddr]) -> Self {
        let account = Arc::new(Mutex::new(Account::default()));
        let task = |&to: &SocketAddr| {
            let account = account.clone();
            tokio::spawn(async move {
                loop {
                    let mut session = match timeout(PATIENCE, Session::open(kind, to)).await {
                        Ok(Ok(session)) => session,
                        Ok(Err(error)) => {
                            lock(&account).lost.push(format!("{to}: {error:#}"));
                            continue;
                        }
                        Err(_) => {
                            lock(&account).lost.push(format!("{to}: no answer"));
                            continue;
                        }
                    };
                    loop {
                        let exchanged = timeout(PATIENCE, session.exchange()).await;
                        let end = match exchanged {
                            Ok(Ok(())) => None,
                            Ok(Err(error)) => Some(format!("{error:#}")),
                            Err(_) => Some("no answer".to_owned()),
                        };
                        if let Some(end) = end {
                            lock(&account).ended.push((session.pod, end));
                            break;
                        }
                        lock(&account).done += 1;
                        tokio::time::sleep(PERIOD).await;
                    }
                }
            })
        };
        Self { name: format!("{kind:?} sessions"), tasks: addresses.iter().map(task).collect(), account }
    }

    /// A new connection, or a new flow of datagrams, to each address all the time.
    fn short(transport: Transport, addresses: &[SocketAddr]) -> Self {
        let account = Arc::new(Mutex::new(Account::default()));
        let patience = if transport == Transport::Tcp { PATIENCE } else { ANSWER };
        let task = |&to: &SocketAddr| {
            let account = account.clone();
            tokio::spawn(async move {
                loop {
                    let seen = probe::ask(&Role::Client.namespace(), to, transport, patience).await;
                    {
                        let mut account = lock(&account);
                        account.done += 1;
                        if !matches!(seen, Seen::Answer { .. }) {
                            account.lost.push(format!("{to}: {seen:?}"));
                        }
                    }
                    tokio::time::sleep(PERIOD).await;
                }
            })
        };
        Self { name: format!("new {transport:?}"), tasks: addresses.iter().map(task).collect(), account }
    }

    fn report(&self) -> String {
        let account = lock(&self.account);
        let (lost, ended) = (account.lost.len(), account.ended.len());
        format!("{:<20} {:>6} exchanges, {lost:>3} lost, {ended:>3} sessions ended", self.name, account.done)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A task that panicked leaves what it wrote before, which is whole.
fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is rolled, and how it is reached.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// `externalTrafficPolicy`.
    policy: &'static str,
    /// Annotations of the Service, as elements of a flow mapping.
    annotations: &'static str,
    /// Whether Pods wait a moment before they stop to listen, as the documentation of Kubernetes advises.
    waits: bool,
    ports: Ports,
}

/// Node ports from `first` on.
const fn ports(first: u16) -> Ports {
    Ports { http: first, raw: first + 1, web_socket: first + 2, grpc: first + 3 }
}

/// A Pod that stops to listen before its node has heard of the next one is all that policy Local leaves there, so what
/// meets it waits for the next one.
const CASES: [Case; 4] = [
    Case { name: "cluster", policy: "Cluster", annotations: "", waits: false, ports: ports(30_401) },
    Case { name: "local-waiting", policy: "Local", annotations: "", waits: true, ports: ports(30_411) },
    Case { name: "local", policy: "Local", annotations: "", waits: false, ports: ports(30_421) },
    Case {
        name: "local-overflowing",
        policy: "Local",
        annotations: "portico.dev/local-overflow: 'true'",
        waits: false,
        ports: ports(30_431),
    },
];

/// One Pod on every node, of which the next is ready before the last one goes.
fn workload(case: &Case) -> String {
    let Case { name, policy, annotations, waits, ports: Ports { http, raw, web_socket, grpc } } = case;
    let hook = if *waits { "lifecycle: {preStop: {sleep: {seconds: 3}}}" } else { "" };
    format!(
        "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  updateStrategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: echo
          image: portico
          args: [echo]
          env: [{{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
          {hook}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec:
  type: NodePort
  externalTrafficPolicy: {policy}
  selector: {{app: {name}}}
  ports:
    - {{name: http, port: 80, targetPort: 8080, nodePort: {http}, appProtocol: http}}
    - {{name: raw, port: 81, targetPort: 8080, nodePort: {raw}}}
    - {{name: web-socket, port: 82, targetPort: 8080, nodePort: {web_socket}, appProtocol: kubernetes.io/ws}}
    - {{name: grpc, port: 83, targetPort: 8080, nodePort: {grpc}, appProtocol: grpc}}
    - {{name: udp, port: 81, targetPort: 8080, nodePort: {raw}, protocol: UDP}}
"
    )
}

async fn names(sandbox: &Sandbox, app: &str) -> BTreeSet<String> {
    pods(sandbox, &format!("app={app}")).await.into_iter().filter_map(|pod| pod.metadata.name).collect()
}

async fn roll(sandbox: &Sandbox, kubectl: &Kubectl, case: &Case) {
    let Case { name, ports, .. } = *case;
    kubectl.apply(&workload(case)).await;
    let object = format!("daemonset/{name}");
    kubectl.rolled_out("default", &object).await;
    let at = |port| nodes().map(|node| SocketAddr::new(node.addresses()[0], port)).collect::<Vec<_>>();
    for (port, transport) in [
        (ports.http, Transport::Tcp),
        (ports.raw, Transport::Tcp),
        (ports.raw, Transport::Udp),
        (ports.web_socket, Transport::Tcp),
        (ports.grpc, Transport::Tcp),
    ] {
        for to in at(port) {
            open_for(to, transport, port == ports.raw).await;
        }
    }
    let clients: Vec<_> = at(ports.http).into_iter().map(|to| (HOST[0], to)).collect();
    let mut http = Load::start(RATE, "rollout", &clients);
    let tcp = Clients::short(Transport::Tcp, &at(ports.raw));
    let udp = Clients::short(Transport::Udp, &at(ports.raw));
    let sessions = [(Kind::Tcp, ports.raw), (Kind::WebSocket, ports.web_socket), (Kind::Grpc, ports.grpc)];
    let sessions = sessions.map(|(kind, port)| Clients::sessions(kind, &at(port)));
    http.more(2 * RATE as usize).await;
    let before = names(sandbox, name).await;
    for _ in 0..RESTARTS {
        kubectl.words(&["rollout", "restart", &object]).await;
        kubectl.rolled_out("default", &object).await;
    }
    http.more(2 * RATE as usize).await;
    let after = names(sandbox, name).await;
    assert!(before.is_disjoint(&after), "every Pod was replaced");

    let failures = http.failures();
    let mut report = format!("{name}: {RESTARTS} restarts of {} Pods\n", before.len());
    report += &format!("{:<20} {:>6} exchanges, {:>3} lost\n", "HTTP", http.requests(), failures.len());
    for clients in sessions.iter().chain([&tcp, &udp]) {
        report += &format!("{}\n", clients.report());
    }
    print!("{report}");
    assert!(failures.is_empty(), "{name}: HTTP lost {failures:#?}");
    assert!(lock(&tcp.account).lost.is_empty(), "{name}: {:#?}", lock(&tcp.account).lost);
    for clients in &sessions {
        let account = lock(&clients.account);
        assert!(account.lost.is_empty(), "{name}: {} not opened: {:#?}", clients.name, account.lost);
        assert!(account.done > 0, "{name}: {} were idle", clients.name);
        // A session lasts as long as its Pod.
        let unexplained: Vec<_> = account.ended.iter().filter(|(pod, _)| after.contains(pod)).collect();
        assert!(unexplained.is_empty(), "{name}: {} with Pods that are there: {unexplained:#?}", clients.name);
    }
    // A datagram that arrives at a Pod which has just closed its socket is nobody's to repeat. A Pod is known to go within
    // a second.
    let restarted = RESTARTS * before.len();
    let most = restarted * usize::try_from(Duration::from_secs(1).as_millis() / PERIOD.as_millis()).unwrap_or_default();
    let lost = lock(&udp.account).lost.len();
    assert!(lost <= most, "{name}: {lost} datagrams were lost, more than {most}");
    kubectl.words(&["delete", "service", name, "--wait=false"]).await;
    kubectl.words(&["delete", &object, "--wait=false"]).await;
}

/// Waits until a node port is served, by raw bytes or, where it is not raw, as far as being opened.
async fn open_for(to: SocketAddr, transport: Transport, raw: bool) {
    if raw {
        answers(Role::Client, to, transport).await;
        return;
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = TcpStream::connect(to).await {
        assert!(tokio::time::Instant::now() < deadline, "{to}: {error}");
        tokio::time::sleep(PERIOD).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_lose_no_request_and_no_new_connection() {
    let (sandbox, kubectl, _turn) = cluster().await;
    let rolls = CASES.iter().map(|case| roll(sandbox, &kubectl, case));
    futures::future::join_all(rolls).await;
}
