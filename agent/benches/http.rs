//! What a worker spends on a request, in time of its processor: only the proxy's thread is counted, so clients, endpoints
//! and whatever else runs on the machine do not matter much.
//!
//!     cargo bench -p portico-agent --bench http

use std::{
    convert::Infallible,
    fs,
    future::pending,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use agent::{
    balance::{pick::LoadBound, pin::Pins},
    listen::http::{self, HttpRoute},
    local::{Limits, Local},
    report::{
        record::{ClientSource, Downstream, Reporter, Shard},
        trace::TraceState,
    },
    table::{Backend, Balance, Candidates, Destination, Family, Frontend, FrontendKind, Locality, Table, Target},
};
use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, Transport},
};
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Frame, rt::Executor, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

/// Clients at once; over HTTP/2 they share a connection.
const CLIENTS: u64 = 32;

/// Runs `serve` on a thread of its own; gives the address that it listens on, and the thread's time.
fn spawn<F: Future<Output = ()>>(serve: impl FnOnce(TcpListener) -> F + Send + 'static) -> (SocketAddr, Cpu) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let thread = fs::read_link("/proc/thread-self").expect("Linux");
            let cpu = Cpu(format!("/proc/{}/schedstat", thread.display()));
            sender.send((listener.local_addr().expect("bound"), cpu)).expect("the bench waits");
            serve(listener).await;
        });
    });
    receiver.recv().expect("the thread starts")
}

/// The time that a thread has spent on a processor.
struct Cpu(String);

impl Cpu {
    fn spent(&self) -> Duration {
        let text = fs::read_to_string(&self.0).expect("the thread lives");
        Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
    }
}

/// An endpoint that answers each request without a body with `size` bytes.
fn endpoint(size: usize) -> SocketAddr {
    let head =
        format!("HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n");
    let answer: Arc<[u8]> = [head.into_bytes(), vec![b'x'; size]].concat().into();
    let serve = |listener: TcpListener| async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("loopback");
            stream.set_nodelay(true).expect("open");
            let answer = answer.clone();
            spawn_local(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    };
    spawn(serve).0
}

#[derive(Clone)]
struct OnThread;

impl<F: Future + 'static> Executor<F> for OnThread {
    fn execute(&self, task: F) {
        spawn_local(async move {
            task.await;
        });
    }
}

/// An endpoint that answers calls with `size` bytes and trailers.
fn grpc_endpoint(size: usize) -> SocketAddr {
    let data = Bytes::from(vec![b'x'; size]);
    let serve = |listener: TcpListener| async move {
        loop {
            let (stream, _) = listener.accept().await.expect("loopback");
            stream.set_nodelay(true).expect("open");
            let data = data.clone();
            let service = service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
                let data = data.clone();
                async move {
                    let _ = request.into_body().collect().await;
                    let mut trailers = ::http::HeaderMap::new();
                    trailers.insert("grpc-status", ::http::HeaderValue::from_static("0"));
                    let frames = [Ok::<_, Infallible>(Frame::data(data)), Ok(Frame::trailers(trailers))];
                    Ok::<_, Infallible>(::http::Response::new(StreamBody::new(futures::stream::iter(frames))))
                }
            });
            let connection =
                hyper::server::conn::http2::Builder::new(OnThread).serve_connection(TokioIo::new(stream), service);
            spawn_local(connection);
        }
    };
    spawn(serve).0
}

fn proxy(protocol: AppProtocol, endpoint: SocketAddr) -> (SocketAddr, Cpu) {
    spawn(move |listener| async move {
        let address = listener.local_addr().expect("bound");
        let (queue, records) = mpsc::sync_channel(64);
        thread::spawn(move || records.into_iter().for_each(drop));
        let reporter = Reporter::new(queue, Arc::new(Shard::default()), TraceState::off()).with_detail(false);
        let pins = Arc::new(Pins::new(1024, Instant::now()));
        let local =
            Rc::new(Local::new(Arc::new(limits()), pins, Rc::new(reporter), table(address, protocol, endpoint)));
        spawn_local({
            let local = local.clone();
            async move {
                let mut tick = tokio::time::interval(Duration::from_millis(100));
                loop {
                    local.tick(tick.tick().await.into_std());
                }
            }
        });
        loop {
            let (stream, peer) = listener.accept().await.expect("loopback");
            stream.set_nodelay(true).expect("open");
            let downstream = Downstream {
                peer,
                local: address,
                client: peer,
                client_source: ClientSource::Peer,
                frontend: FrontendKind::ClusterIp,
                server_name: None,
                tls: false,
            };
            spawn_local(http::serve(local.clone(), stream, Arc::new(downstream), HttpRoute::Shared, None));
        }
    })
}

fn limits() -> Limits {
    Limits { connections: 1024, load_bound: LoadBound { percent: None }, ..Limits::default() }
}

fn table(address: SocketAddr, protocol: AppProtocol, endpoint: SocketAddr) -> Arc<Table> {
    let backend = Backend { locality: Locality::Node, ..Backend::new(endpoint) };
    let target = Target {
        protocol,
        balance: Balance::LeastRequest,
        cluster: Candidates::new([Arc::new(backend)]),
        any_endpoint: true,
        serving: [endpoint].into(),
        external: true,
        ..Target::new(NamespacedName::new("shop", "web"), 80, Transport::Tcp, Family::Ipv4)
    };
    let mut table = Table::default();
    let frontend = Frontend { kind: FrontendKind::ClusterIp, target: Some(Arc::new(target)) };
    table.frontends.insert(Destination { address, transport: Transport::Tcp }, frontend);
    Arc::new(table)
}

/// The clients' side: a runtime that lives as long as the bench, and so do its connections.
struct Clients(tokio::runtime::Runtime, LocalSet);

impl Clients {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self(runtime, LocalSet::new())
    }

    fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.1.block_on(&self.0, task)
    }
}

const GET: &[u8] =
    b"GET /index.html HTTP/1.1\r\nHost: web.shop.svc.cluster.local\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n";

async fn get(stream: &mut TcpStream, buffer: &mut [u8], length: &mut usize) {
    stream.write_all(GET).await.expect("the proxy reads");
    if *length == 0 {
        let mut seen = 0;
        let head = loop {
            seen += stream.read(&mut buffer[seen..]).await.expect("the proxy answers");
            if let Some(end) = buffer[..seen].windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let size =
            text.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse::<usize>().ok());
        *length = head + size.expect("the endpoint gives a length");
        stream.read_exact(&mut buffer[seen..*length]).await.expect("the proxy answers");
    } else {
        stream.read_exact(&mut buffer[..*length]).await.expect("the proxy answers");
    }
}

fn http1(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http");
    for size in [1 << 10, 64 << 10] {
        let (address, cpu) = proxy(AppProtocol::Http, endpoint(size));
        let clients = Clients::new();
        let mut streams = clients.run(async {
            let mut streams = Vec::new();
            for _ in 0..CLIENTS {
                let stream = TcpStream::connect(address).await.expect("the proxy listens");
                stream.set_nodelay(true).expect("open");
                streams.push((stream, vec![0; size + 4096], 0));
            }
            streams
        });
        group.bench_function(format!("1.1, {size} bytes"), |bench| {
            bench.iter_custom(|iterations| {
                let each = iterations.div_ceil(CLIENTS);
                let before = cpu.spent();
                clients.run(futures::future::join_all(streams.iter_mut().map(|(stream, buffer, length)| async move {
                    for _ in 0..each {
                        get(stream, buffer, length).await;
                    }
                })));
                scale(cpu.spent() - before, each * CLIENTS, iterations)
            });
        });
    }
}

fn http2(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("http");
    let endpoints = [
        ("2 to 1.1, 1024 bytes", AppProtocol::Http, endpoint(1 << 10)),
        ("2 to 2 with trailers, 1024 bytes", AppProtocol::Grpc, grpc_endpoint(1 << 10)),
    ];
    for (name, protocol, endpoint) in endpoints {
        let (address, cpu) = proxy(protocol, endpoint);
        let clients = Clients::new();
        let sender = clients.run(async {
            let stream = TcpStream::connect(address).await.expect("the proxy listens");
            stream.set_nodelay(true).expect("open");
            let handshake = hyper::client::conn::http2::Builder::new(OnThread).handshake(TokioIo::new(stream));
            let (sender, connection) = handshake.await.expect("writing works");
            spawn_local(connection);
            sender
        });
        group.bench_function(name, |bench| {
            bench.iter_custom(|iterations| {
                let each = iterations.div_ceil(CLIENTS);
                let before = cpu.spent();
                clients.run(futures::future::join_all((0..CLIENTS).map(|_| {
                    let mut sender = sender.clone();
                    async move {
                        for _ in 0..each {
                            let body = Full::new(Bytes::from_static(&[b'x'; 100]));
                            let empty = protocol == AppProtocol::Http;
                            let body = if empty { Full::default() } else { body };
                            let mut request = ::http::Request::new(body);
                            *request.uri_mut() = ::http::Uri::from_static("http://web.shop/pkg.Service/Method");
                            if !empty {
                                *request.method_mut() = ::http::Method::POST;
                                let grpc = ::http::HeaderValue::from_static("application/grpc");
                                request.headers_mut().insert("content-type", grpc);
                            }
                            let response = sender.send_request(request).await.expect("the proxy answers");
                            assert_eq!(response.status(), 200);
                            response.into_body().collect().await.expect("complete");
                        }
                    }
                })));
                scale(cpu.spent() - before, each * CLIENTS, iterations)
            });
        });
    }
}

/// Time for as many requests as were asked for, of which somewhat more were made.
fn scale(spent: Duration, made: u64, asked: u64) -> Duration {
    spent.mul_f64(asked as f64 / made as f64)
}

/// Memory and time of connections that idle: how many fit, and that they cost nothing.
fn idle(criterion: &mut Criterion) {
    let (address, cpu) = proxy(AppProtocol::Http, endpoint(1 << 10));
    let clients = Clients::new();
    let idle = 2_000u64;
    let streams = clients.run(async {
        let mut streams = Vec::new();
        for _ in 0..idle {
            let mut stream = TcpStream::connect(address).await.expect("the proxy listens");
            get(&mut stream, &mut vec![0; 8192], &mut 0).await;
            streams.push(stream);
        }
        streams
    });
    criterion.bench_function("http/a second of 2000 idle connections", |bench| {
        bench.iter_custom(|iterations| {
            let (before, start) = (cpu.spent(), Instant::now());
            clients.run(async {
                let _ = tokio::time::timeout(Duration::from_millis(500), pending::<()>()).await;
            });
            (cpu.spent() - before).mul_f64(iterations as f64 / start.elapsed().as_secs_f64())
        });
    });
    drop(streams);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(4));
    targets = http1, http2, idle
}
criterion_main!(benches);
