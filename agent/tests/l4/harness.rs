//! A worker with a table, and what a test sees of it.

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    time::{Duration, Instant},
};

use agent::{
    balance::{pick::LoadBound, pin::Pins},
    listen,
    local::{Limits, Local},
    report::{
        record::{ConnectionRecord, Record, Reporter, Shard},
        trace::{Sampling, TraceState},
    },
    table::{Backend, Balance, Candidates, Destination, Family, Frontend, FrontendKind, Table, Target},
};
use api::resource::{name::NamespacedName, service::Transport};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    task::{JoinHandle, LocalSet, spawn_local},
};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A worker that serves one destination.
pub struct Worker {
    pub local: Rc<Local>,
    pub destination: SocketAddr,
    records: Receiver<Vec<Record>>,
    /// Dropping it closes the listener.
    pub listener: Option<oneshot::Sender<()>>,
    pub serving: JoinHandle<()>,
}

/// Runs a test on one thread.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let test = async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, test);
}

/// Runs a test on one thread, whose clock jumps to the next timer whenever nothing else is left to do.
pub fn run_paused(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

pub fn limits() -> Limits {
    Limits { connections: 1024, flows: 1024, load_bound: LoadBound { percent: None }, ..Limits::default() }
}

/// An opaque port whose connections go to `backends` in turn.
pub fn target(transport: Transport, backends: &[SocketAddr]) -> Target {
    let mut serving: Vec<SocketAddr> = backends.to_vec();
    serving.sort_unstable();
    Target {
        balance: Balance::RoundRobin,
        cluster: candidates(backends),
        any_endpoint: true,
        serving: serving.into(),
        external: true,
        ..Target::new(NamespacedName::new("default", "web"), 80, transport, Family::Ipv4)
    }
}

pub fn candidates(backends: &[SocketAddr]) -> Candidates {
    let backend = |address: &SocketAddr| Arc::new(Backend::new(*address));
    Candidates::new(backends.iter().map(backend)).with_ring()
}

pub fn table(destination: SocketAddr, target: Target) -> Arc<Table> {
    let mut table = Table::default();
    let frontend = Frontend { kind: FrontendKind::LoadBalancer, target: Some(Arc::new(target)) };
    table.frontends.insert(Destination { address: destination, transport: transport(&frontend) }, frontend);
    Arc::new(table)
}

fn transport(frontend: &Frontend) -> Transport {
    frontend.target.as_ref().map_or(Transport::Tcp, |target| target.transport)
}

impl Worker {
    /// Serves `target` at an address of its own.
    pub async fn start(limits: Limits, target: Target) -> Self {
        let (queue, records) = sync_channel(1 << 16);
        let reporter = Rc::new(Reporter::new(queue, Arc::new(Shard::default()), TraceState::new(Sampling::OFF)));
        let pins = Arc::new(Pins::new(limits.affinity_clients, Instant::now()));
        let local = Rc::new(Local::new(Arc::new(limits), pins, reporter, Arc::default()));
        let (listener, closed) = oneshot::channel::<()>();
        let closed = async {
            // An error is the message: the sender was dropped.
            let _ = closed.await;
        };
        let (destination, serving) = match target.transport {
            Transport::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
                let destination = socket.local_addr().expect("bound");
                (destination, spawn_local(listen::udp::serve(local.clone(), socket, destination, closed)))
            }
            _ => {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
                let destination = listener.local_addr().expect("bound");
                (destination, spawn_local(accept(local.clone(), listener, destination, closed)))
            }
        };
        let worker = Self { local, destination, records, listener: Some(listener), serving };
        worker.swap(target);
        worker
    }

    /// Puts another target in force.
    pub fn swap(&self, target: Target) {
        self.local.swap(table(self.destination, target), |_| true);
    }

    /// Lets the coarse clock of the worker follow the clock of the runtime.
    pub fn tick(&self) {
        let local = self.local.clone();
        spawn_local(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(100));
            loop {
                local.tick(interval.tick().await.into_std());
            }
        });
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.destination).await.expect("the worker listens")
    }

    /// The records that were closed since the last call.
    pub fn closed(&self) -> Vec<ConnectionRecord> {
        self.local.reporter.flush();
        let closed = |record| match record {
            Record::Connection(record) => Some(*record),
            Record::Request(_) => None,
        };
        self.records.try_iter().flatten().filter_map(closed).collect()
    }

    /// The next record that is closed. Only one is expected.
    pub async fn record(&self) -> ConnectionRecord {
        loop {
            if let Some(record) = self.closed().pop() {
                return record;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn accept(local: Rc<Local>, listener: TcpListener, destination: SocketAddr, closed: impl Future<Output = ()>) {
    let accept = async {
        loop {
            let (stream, peer) = listener.accept().await.expect("descriptors");
            let guard = local.admit().expect("below the limit");
            spawn_local(listen::tcp::serve(local.clone(), stream, peer, destination, guard));
        }
    };
    tokio::select! {
        () = closed => {}
        () = accept => {}
    }
}

/// An address of this host at which nothing listens, for as long as the socket lives.
pub fn refusing() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().expect("descriptors");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// An address of this host that answers no attempt to connect, for as long as the sockets live: a listener whose queue is
/// full.
pub fn full() -> ((TcpListener, std::net::TcpStream), SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().expect("descriptors");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
    // Linux takes one more than it is told.
    let listener = socket.listen(0).expect("bound");
    let address = listener.local_addr().expect("bound");
    let waiting = std::net::TcpStream::connect(address).expect("the only place in the queue");
    ((listener, waiting), address)
}

/// A listener of an endpoint.
pub async fn endpoint() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}
