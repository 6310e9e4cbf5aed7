//! Two agents in one process, each with one worker, and what becomes of connections and flows that one hands to the other.
//! Their addresses are on the loopback interface. Needs root, because what agents dial is marked.

/// Flows.
mod flows;
/// Connections.
mod connections;

use std::{
    future::{Future, pending},
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
    hop::{State, seal::Keys},
    listen,
    local::{Limits, Local},
    report::{
        record::{ConnectionRecord, Record, Reporter, Shard},
        trace::{Sampling, TraceState},
    },
    table::{
        Backend, Balance, Candidates, Destination, Family, Frontend, FrontendKind, Locality, Location, Table, Target,
        hop::{Exit, ExitKey, Hop},
    },
};
use api::resource::{
    hop_keys::{HopKey, HopKeys},
    name::NamespacedName,
    service::{ClientAddress, Transport},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    task::{LocalSet, spawn_local},
};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

const CLIENT: &str = "127.5.0.100";
const ENTRY: &str = "127.5.0.1";
const EXIT: &str = "127.5.0.2";
const POD: &str = "127.5.1.1";

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

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
        upstream_user_timeout: LIMIT,
        response_timeout: LIMIT,
        tcp_idle_timeout: LIMIT,
        udp_idle_timeout: (LIMIT, LIMIT),
        load_bound: LoadBound { percent: None },
        drain_timeout: LIMIT,
        ..Limits::default()
    }
}

fn keys(byte: u8) -> Arc<Keys> {
    Arc::new(Keys::new(&HopKeys { current: HopKey([byte; 32]), accepted: vec![] }))
}

fn backend(address: SocketAddr, locality: Locality) -> Arc<Backend> {
    Arc::new(Backend { pod: "pod".into(), node: "exit".into(), locality, ..Backend::new(address) })
}

fn target(transport: Transport, backends: &[SocketAddr]) -> Target {
    let mut serving: Vec<SocketAddr> = backends.to_vec();
    serving.sort_unstable();
    let backends = backends.iter().map(|address| backend(*address, Locality::Cluster));
    Target {
        client_address: ClientAddress::Keep,
        balance: Balance::RoundRobin,
        cluster: Candidates::new(backends),
        any_endpoint: true,
        serving: serving.into(),
        external: true,
        ..Target::new(NamespacedName::new("default", "web"), 80, transport, Family::Ipv4)
    }
}

fn hop(keys: Arc<Keys>, port: u16) -> Hop {
    Hop {
        port: NonZeroU16::new(port).expect("not zero"),
        keys,
        nodes: [("exit".into(), ip(EXIT))].into_iter().collect(),
        node_addresses: [ip(ENTRY), ip(EXIT)].into_iter().collect(),
        exits: Default::default(),
        serving: Default::default(),
        state: Arc::new(State::new(SystemTime::now())),
    }
}

impl Agent {
    /// An agent that listens at an address of its own, with nothing in its table.
    async fn start(address: &str, is_exit: bool) -> Self {
        let (queue, records) = sync_channel(1 << 10);
        let traces = TraceState::new(Sampling::OFF);
        let reporter = Rc::new(Reporter::new(queue, Arc::new(Shard::default()), traces));
        let pins = Arc::new(Pins::new(16, Instant::now()));
        let local = Rc::new(Local::new(Arc::new(limits()), pins, reporter, Arc::default()));
        local.intercepting.set(true);
        let (listener, socket) = sockets(address).await;
        let address = listener.local_addr().expect("bound");
        let serving = local.clone();
        spawn_local(async move {
            loop {
                let (stream, peer) = listener.accept().await.expect("descriptors");
                let guard = serving.admit().expect("below the limit");
                spawn_local(listen::tcp::serve(serving.clone(), stream, peer, address, guard));
            }
        });
        if is_exit {
            spawn_local(listen::hop::datagrams::serve(local.clone(), socket, address, pending()));
        } else {
            spawn_local(listen::udp::serve(local.clone(), socket, address, pending()));
        }
        Self { local, address, records }
    }

    async fn entry() -> Self {
        Self::start(ENTRY, false).await
    }

    async fn exit() -> Self {
        Self::start(EXIT, true).await
    }

    /// Hands what comes to the agent at `port` of the exit node.
    fn enter(&self, backends: &[SocketAddr], keys: Arc<Keys>, port: u16) {
        let frontend =
            |transport| Frontend { kind: FrontendKind::NodePort, target: Some(Arc::new(target(transport, backends))) };
        self.swap("entry", frontend, hop(keys, port));
    }

    /// Takes what is brought for these endpoints.
    fn leave(&self, backends: &[SocketAddr], keys: Arc<Keys>) {
        let exit = |transport, address: SocketAddr| {
            let target = Arc::new(target(transport, backends));
            let key = ExitKey { service: target.service.clone(), endpoint: address, transport };
            (key, Exit { target, backend: backend(address, Locality::Node) })
        };
        let both = backends.iter().flat_map(|address| TRANSPORTS.map(|transport| exit(transport, *address)));
        let serving = backends.iter().copied().collect();
        let hop = Hop { exits: both.collect(), serving, ..hop(keys, self.address.port()) };
        self.swap("exit", |_| Frontend { kind: FrontendKind::Hop, target: None }, hop);
    }

    fn swap(&self, node: &str, frontend: impl Fn(Transport) -> Frontend, hop: Hop) {
        let location = Location { node: node.to_owned(), addresses: vec![self.address.ip()], ..Location::default() };
        let mut table = Table { location, hop: Some(Arc::new(hop)), ..Table::default() };
        for transport in TRANSPORTS {
            table.frontends.insert(Destination { address: self.address, transport }, frontend(transport));
        }
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

/// A listener and a socket at the same port.
async fn sockets(address: &str) -> (TcpListener, UdpSocket) {
    loop {
        let listener = TcpListener::bind((address, 0)).await.expect("loopback");
        // The port may be somebody's for datagrams only.
        if let Ok(socket) = UdpSocket::bind(listener.local_addr().expect("bound")).await {
            return (listener, socket);
        }
    }
}
