//! A proxy with a table, endpoints that are written by hand, and clients that say exactly what they are told.

use std::{
    cell::{Cell, RefCell},
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
    listen::http::{self, HttpRoute},
    local::{Limits, Local},
    report::{
        outcome::Outcome,
        record::{ClientSource, Downstream, Record, Reporter, RequestRecord, Shard},
        trace::{Sampling, TraceState},
    },
    table::{Backend, Balance, Candidates, Destination, Family, Frontend, FrontendKind, Table, Target},
};
use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, Transport},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
    time::timeout,
};

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a test on one thread.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let test = async { timeout(LIMIT, test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, test);
}

pub fn limits() -> Limits {
    Limits {
        header_bytes: 16 << 10,
        headers: 50,
        connections: 1024,
        load_bound: LoadBound { percent: None },
        ..Limits::default()
    }
}

/// A port of `protocol` that is served by `endpoints` in turn.
pub fn target(protocol: AppProtocol, endpoints: &[SocketAddr]) -> Target {
    let backend = |address: &SocketAddr| Arc::new(Backend::new(*address));
    Target {
        protocol,
        balance: Balance::RoundRobin,
        any_endpoint: !endpoints.is_empty(),
        cluster: Candidates::new(endpoints.iter().map(backend)).with_ring(),
        serving: endpoints.into(),
        external: true,
        ..Target::new(NamespacedName::new("shop", "web"), 80, Transport::Tcp, Family::Ipv4)
    }
}

/// A proxy at an address of its own.
pub struct Proxy {
    pub address: SocketAddr,
    pub local: Rc<Local>,
    /// Connections that were served to their end.
    pub ended: Rc<Cell<usize>>,
    records: RefCell<Receiver<Vec<Record>>>,
    seen: RefCell<Vec<RequestRecord>>,
}

impl Proxy {
    /// Serves `target`.
    pub async fn start(limits: Limits, target: Target) -> Self {
        Self::with(limits, |_| Some(target)).await
    }

    /// HTTP/1.1 or HTTP/2 to `endpoints` of HTTP/1.1.
    pub async fn http(endpoints: &[SocketAddr]) -> Self {
        Self::start(limits(), target(AppProtocol::Http, endpoints)).await
    }

    /// Serves what `make` gives for the address.
    pub async fn with(limits: Limits, make: impl FnOnce(SocketAddr) -> Option<Target>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (queue, records) = sync_channel(1 << 16);
        let reporter = Rc::new(Reporter::new(queue, Arc::new(Shard::default()), TraceState::new(Sampling::OFF)));
        let pins = Arc::new(Pins::new(limits.affinity_clients, Instant::now()));
        let local = Rc::new(Local::new(Arc::new(limits), pins, reporter, table(address, make(address))));
        let ended: Rc<Cell<usize>> = Rc::default();
        spawn_local({
            let (local, ended) = (local.clone(), ended.clone());
            async move {
                while let Ok((stream, peer)) = listener.accept().await {
                    let (local, ended) = (local.clone(), ended.clone());
                    let downstream = Downstream {
                        peer,
                        local: address,
                        client: peer,
                        client_source: ClientSource::Peer,
                        frontend: FrontendKind::LoadBalancer,
                        server_name: None,
                        tls: false,
                    };
                    spawn_local(async move {
                        http::serve(local, stream, Arc::new(downstream), HttpRoute::Shared, None).await;
                        ended.set(ended.get() + 1);
                    });
                }
            }
        });
        Self { address, local, ended, records: RefCell::new(records), seen: RefCell::default() }
    }

    /// Gives the worker another table.
    pub fn serve(&self, target: Option<Target>) {
        self.local.swap(table(self.address, target), |_| true);
    }

    /// Moves the worker's clock.
    pub fn pass(&self, time: Duration) {
        self.local.tick(Instant::now() + time);
    }

    /// A client.
    pub async fn client(&self) -> Client {
        Client(TcpStream::connect(self.address).await.expect("the proxy listens"))
    }

    /// What one client gets who sends `request` and reads until the connection ends.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.client().await;
        client.say(request).await;
        client.rest().await
    }

    /// Records of requests closed so far.
    pub fn records(&self) -> Vec<RequestRecord> {
        self.local.reporter.flush();
        let mut seen = self.seen.borrow_mut();
        while let Ok(batch) = self.records.borrow().try_recv() {
            seen.extend(batch.into_iter().filter_map(|record| match record {
                Record::Request(record) => Some(*record),
                Record::Connection(_) => None,
            }));
        }
        seen.clone()
    }

    /// Waits until so many requests were closed.
    pub async fn closed(&self, count: usize) -> Vec<RequestRecord> {
        loop {
            let records = self.records();
            if records.len() >= count {
                return records;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Outcomes of the requests closed so far.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.records().iter().map(|record| record.outcome).collect()
    }
}

fn table(address: SocketAddr, target: Option<Target>) -> Arc<Table> {
    let mut table = Table::default();
    if let Some(target) = target {
        let frontend = Frontend { kind: FrontendKind::LoadBalancer, target: Some(Arc::new(target)) };
        table.frontends.insert(Destination { address, transport: Transport::Tcp }, frontend);
    }
    Arc::new(table)
}

/// A client, or an endpoint's end of a connection.
pub struct Client(pub TcpStream);

impl Client {
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("the other end reads");
    }

    /// Reads up to and with `end`.
    pub async fn until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            match self.0.read_u8().await {
                Ok(byte) => read.push(byte),
                Err(error) => panic!("{error} after {:?}, waiting for {end:?}", String::from_utf8_lossy(&read)),
            }
        }
        String::from_utf8(read).expect("text")
    }

    /// Reads the head of a message.
    pub async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Reads until the other end closes or resets.
    pub async fn rest(&mut self) -> String {
        let mut read = Vec::new();
        // A reset ends what is read as well as a close.
        let _ = self.0.read_to_end(&mut read).await;
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Waits until the other end closes or resets, having sent nothing more.
    pub async fn closed(&mut self) {
        assert_eq!(self.rest().await, "");
    }
}

/// An endpoint whose connections are served by `serve`, which gets the number of the connection.
pub async fn endpoint<F: Future<Output = ()> + 'static>(serve: impl Fn(Client, usize) -> F + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    spawn_local(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            number += 1;
            spawn_local(serve(Client(stream), number));
        }
    });
    address
}

/// An endpoint that gives the same answer to each request without a body, and the heads it has seen.
pub async fn answering(answer: &'static str) -> (SocketAddr, Rc<RefCell<Vec<String>>>) {
    let heads: Rc<RefCell<Vec<String>>> = Rc::default();
    let seen = heads.clone();
    let address = endpoint(move |mut client, _| {
        let seen = seen.clone();
        async move {
            let mut head = Vec::new();
            while let Ok(byte) = client.0.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    seen.borrow_mut().push(String::from_utf8(std::mem::take(&mut head)).expect("text"));
                    client.say(answer).await;
                }
            }
        }
    })
    .await;
    (address, heads)
}

/// An address that refuses connections as long as the socket is kept.
pub fn refusing() -> (SocketAddr, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().expect("descriptors");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
    (socket.local_addr().expect("bound"), socket)
}
