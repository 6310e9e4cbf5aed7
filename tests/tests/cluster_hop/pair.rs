//! Two agents in one process, each with one worker, and what becomes of a connection that one hands to the other. Their
//! addresses are on the loopback interface. Needs root, because what agents dial is marked.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, Instant, SystemTime},
};

use agent::{
    balance::{pick::LoadBound, pin::Pins},
    hop::{State, answer::Answer, seal::Keys},
    listen,
    local::{Limits, Local},
    report::{
        outcome::Outcome,
        record::{ClientSource, ConnectionRecord, Record, Reporter, Shard},
        trace::{Sampling, TraceState},
        via::{Bypass, Via},
    },
    table::{
        Backend, Balance, Candidates, Destination, Family, Frontend, FrontendKind, Locality, Location, Table, Target,
        Terminate,
        hop::{Exit, ExitKey, Hop},
    },
};
use api::resource::{
    hop_keys::{HopKey, HopKeys},
    name::NamespacedName,
    service::{AppProtocol, ClientAddress, Transport},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{LocalSet, spawn_local},
};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

const CLIENT: &str = "127.5.0.100";
const ENTRY: &str = "127.5.0.1";
const EXIT: &str = "127.5.0.2";
const POD: &str = "127.5.1.1";

/// An agent with one worker.
struct Agent {
    local: Rc<Local>,
    address: SocketAddr,
    records: Receiver<Vec<Record>>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") });
}

fn limits() -> Limits {
    Limits {
        header_timeout: Duration::from_secs(5),
        idle_timeout: LIMIT,
        connect_timeout: Duration::from_secs(2),
        upstream_user_timeout: LIMIT,
        response_timeout: LIMIT,
        tcp_idle_timeout: LIMIT,
        udp_idle_timeout: (LIMIT, LIMIT),
        attempts: 3,
        header_bytes: 64 << 10,
        headers: 100,
        connections: 1024,
        flows: 1024,
        trusted_proxies: vec![],
        affinity_clients: 1024,
        load_bound: LoadBound { percent: None },
        drain_timeout: LIMIT,
    }
}

fn keys(byte: u8) -> Arc<Keys> {
    Arc::new(Keys::new(&HopKeys { current: HopKey([byte; 32]), accepted: vec![] }))
}

fn backend(address: SocketAddr, locality: Locality) -> Arc<Backend> {
    Arc::new(Backend {
        address,
        key: address.to_string().into(),
        pod: "pod".into(),
        node: "exit".into(),
        zone: "".into(),
        locality,
        weight: 1,
        draining: false,
    })
}

fn target(backends: &[SocketAddr]) -> Target {
    let backends = backends.iter().map(|address| backend(*address, Locality::Cluster)).collect();
    Target {
        service: NamespacedName::new("default", "web"),
        port_name: "".into(),
        port: 80,
        transport: Transport::Tcp,
        family: Family::Ipv4,
        protocol: AppProtocol::Opaque,
        tls: Terminate::No,
        client_address: ClientAddress::Keep,
        balance: Balance::RoundRobin,
        affinity: None,
        cluster: Candidates { backends, ..Candidates::default() },
        local: Candidates::default(),
        any_endpoint: true,
        serving: Box::default(),
        external: true,
        internal_local: false,
        external_local: false,
        local_overflow: false,
        source_ranges: Box::default(),
        own_sources: Box::default(),
    }
}

fn hop(keys: Arc<Keys>, port: u16) -> Hop {
    Hop {
        port: NonZeroU16::new(port).expect("not zero"),
        keys,
        nodes: [("exit".into(), ip(EXIT))].into_iter().collect(),
        node_addresses: [ip(ENTRY), ip(EXIT)].into_iter().collect(),
        exits: Default::default(),
        state: Arc::new(State::new(SystemTime::now())),
    }
}

impl Agent {
    /// An agent that listens at an address of its own, with nothing in its table.
    async fn start(address: &str) -> Self {
        let (queue, records) = sync_channel(1 << 10);
        let traces = TraceState::new(Sampling::OFF);
        let reporter = Rc::new(Reporter::new(queue, Arc::new(Shard::default()), traces));
        let pins = Arc::new(Pins::new(16, Instant::now()));
        let local = Rc::new(Local::new(Arc::new(limits()), pins, reporter, Arc::default()));
        local.intercepting.set(true);
        let listener = TcpListener::bind((address, 0)).await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let serving = local.clone();
        spawn_local(async move {
            loop {
                let (stream, peer) = listener.accept().await.expect("descriptors");
                let guard = serving.admit().expect("below the limit");
                spawn_local(listen::tcp::serve(serving.clone(), stream, peer, address, guard));
            }
        });
        Self { local, address, records }
    }

    /// Hands what comes to the agent at `port` of the exit node.
    fn enter(&self, backends: &[SocketAddr], keys: Arc<Keys>, port: u16) {
        let frontend = Frontend { kind: FrontendKind::NodePort, target: Some(Arc::new(target(backends))) };
        self.swap("entry", frontend, hop(keys, port));
    }

    /// Takes what is brought for these endpoints.
    fn leave(&self, backends: &[SocketAddr], keys: Arc<Keys>) {
        let target = Arc::new(target(backends));
        let exit = |address: &SocketAddr| {
            let key = ExitKey { service: target.service.clone(), endpoint: *address, transport: Transport::Tcp };
            (key, Exit { target: target.clone(), backend: backend(*address, Locality::Node) })
        };
        let hop = Hop { exits: backends.iter().map(exit).collect(), ..hop(keys, self.address.port()) };
        self.swap("exit", Frontend { kind: FrontendKind::Hop, target: None }, hop);
    }

    fn swap(&self, node: &str, frontend: Frontend, hop: Hop) {
        let location = Location { node: node.to_owned(), addresses: vec![self.address.ip()], ..Location::default() };
        let mut table = Table { location, hop: Some(Arc::new(hop)), ..Table::default() };
        table.frontends.insert(Destination { address: self.address, transport: Transport::Tcp }, frontend);
        self.local.swap(Arc::new(table), |_| true);
    }

    /// A client connects.
    async fn dial(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("descriptors");
        socket.bind(SocketAddr::new(ip(CLIENT), 0)).expect("loopback");
        socket.connect(self.address).await.expect("the agent listens")
    }

    /// The next record that is closed. Only one is expected.
    async fn record(&self) -> ConnectionRecord {
        loop {
            self.local.reporter.flush();
            let closed = |record| match record {
                Record::Connection(record) => Some(*record),
                Record::Request(_) => None,
            };
            if let Some(record) = self.records.try_iter().flatten().find_map(closed) {
                return record;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// An endpoint.
async fn pod() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((POD, 0)).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// An address where nobody listens, for as long as the socket lives.
fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("descriptors");
    socket.bind(SocketAddr::new(ip(POD), 0)).expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// A client says something, the endpoint answers, both end. Gives the address that the endpoint saw.
async fn exchange(entry: &Agent, listener: &TcpListener) -> IpAddr {
    let mut client = entry.dial().await;
    client.write_all(b"ping").await.expect("open");
    client.shutdown().await.expect("open");
    let (mut endpoint, peer) = listener.accept().await.expect("descriptors");
    let mut heard = Vec::new();
    endpoint.read_to_end(&mut heard).await.expect("ends in order");
    assert_eq!(heard, b"ping");
    endpoint.write_all(b"pong").await.expect("half-closed only");
    drop(endpoint);
    heard.clear();
    client.read_to_end(&mut heard).await.expect("ends in order");
    assert_eq!(heard, b"pong");
    peer.ip()
}

#[test]
fn the_endpoint_sees_the_client_and_both_agents_tell() {
    run(async {
        let (entry, exit, (listener, address)) = (Agent::start(ENTRY).await, Agent::start(EXIT).await, pod().await);
        exit.leave(&[address], keys(1));
        entry.enter(&[address], keys(1), exit.address.port());
        assert_eq!(exchange(&entry, &listener).await, ip(CLIENT));

        let (entered, left) = (entry.record().await, exit.record().await);
        assert_eq!((entered.outcome, entered.received, entered.sent), (Outcome::Complete, 4, 4));
        assert_eq!((left.outcome, left.received, left.sent), (Outcome::Complete, 4, 4));
        assert_eq!((entered.attempts.len(), entered.attempts[0].via), (1, Via::Hop));
        assert_eq!((&*entered.entry_node, &*left.entry_node), ("", "entry"));
        assert_eq!(
            (left.downstream.frontend, left.downstream.client_source),
            (FrontendKind::Hop, ClientSource::ProxyV2)
        );
        assert_eq!(left.downstream.client, entered.downstream.peer);
        assert_eq!(left.downstream.local, entry.address, "what the client dialled");
        assert_eq!((left.trace.trace, left.trace.parent), (entered.trace.trace, entered.attempts[0].span));
    });
}

#[test]
fn an_endpoint_that_refuses_is_followed_by_the_next_one() {
    run(async {
        let (entry, exit, (listener, address)) = (Agent::start(ENTRY).await, Agent::start(EXIT).await, pod().await);
        let (_socket, refusing) = refusing();
        let both = [refusing, address];
        exit.leave(&both, keys(1));
        entry.enter(&both, keys(1), exit.address.port());
        // In turn, so one of two begins with the endpoint that refuses; it is left out afterwards.
        let mut refused = 0;
        for _ in 0..2 {
            assert_eq!(exchange(&entry, &listener).await, ip(CLIENT));
            let record = entry.record().await;
            assert!(record.attempts.iter().all(|attempt| attempt.via == Via::Hop));
            refused += record.attempts.iter().filter(|attempt| attempt.outcome == Outcome::ConnectRefused).count();
        }
        assert_eq!(refused, 1);
    });
}

/// What cannot be handed over is dialled from the node, and says so.
async fn bypassed(entry: &Agent, listener: &TcpListener, expected: Bypass) {
    assert_ne!(exchange(entry, listener).await, ip(CLIENT));
    let record = entry.record().await;
    assert_eq!((record.outcome, record.attempts[0].via), (Outcome::Complete, Via::Bypassed(expected)));
}

#[test]
fn what_cannot_be_handed_over_is_served_from_the_node() {
    run(async {
        let (exit, (listener, address)) = (Agent::start(EXIT).await, pod().await);
        let port = exit.address.port();

        // The other agent has not heard of the endpoint yet.
        let entry = Agent::start(ENTRY).await;
        exit.leave(&[], keys(1));
        entry.enter(&[address], keys(1), port);
        bypassed(&entry, &listener, Bypass::Unknown).await;
        // That is no reason to leave it alone.
        exit.leave(&[address], keys(1));
        assert_eq!(exchange(&entry, &listener).await, ip(CLIENT));

        // It has other keys. For a while it is not asked again.
        let entry = Agent::start(ENTRY).await;
        entry.enter(&[address], keys(2), port);
        bypassed(&entry, &listener, Bypass::Refused).await;
        bypassed(&entry, &listener, Bypass::NoAgent).await;

        // There is none.
        let entry = Agent::start(ENTRY).await;
        let socket = TcpSocket::new_v4().expect("descriptors");
        socket.bind(SocketAddr::new(ip(EXIT), 0)).expect("loopback");
        entry.enter(&[address], keys(1), socket.local_addr().expect("bound").port());
        bypassed(&entry, &listener, Bypass::NoAgent).await;
    });
}

#[test]
fn what_is_overheard_cannot_be_said_again() {
    run(async {
        let (entry, exit, (listener, address)) = (Agent::start(ENTRY).await, Agent::start(EXIT).await, pod().await);
        exit.leave(&[address], keys(1));
        // Somebody between the two agents listens.
        let between = TcpListener::bind((EXIT, 0)).await.expect("loopback");
        entry.enter(&[address], keys(1), between.local_addr().expect("bound").port());
        let _client = entry.dial().await;
        let (mut overheard, _) = between.accept().await.expect("descriptors");
        let mut header = vec![0; 1024];
        let length = overheard.read(&mut header).await.expect("the header");
        header.truncate(length);

        let say = async |bytes: &[u8]| {
            let mut stream = TcpStream::connect(exit.address).await.expect("the agent listens");
            stream.write_all(bytes).await.expect("open");
            stream.read_u8().await.ok()
        };
        assert_eq!(say(&header).await, Some(Answer::Connected.byte()));
        listener.accept().await.expect("the client is brought");
        assert_eq!(say(&header).await, None);
        let mut changed = header.clone();
        changed[20] ^= 1;
        assert_eq!(say(&changed).await, None);
    });
}
