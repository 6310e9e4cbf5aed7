//! Much at once: bodies larger than memory should be, readers that do not read, and connections that wait.

use std::{net::SocketAddr, time::Duration};

use http::Request;
use portico_cli::echo::{self, EchoConfig, pattern::Pattern};
use runtime::drain;
use tests::{
    binary::Portico,
    client::Client,
    deployment::Deployment,
    manifests::node,
    services::manual,
    web::{Digest, Version, Web, digest, digest_of_pattern, empty, pattern},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes in either direction, unless `PORTICO_TEST_BYTES` says otherwise.
const LENGTH: u64 = 256 << 20;

/// Idle connections, unless `PORTICO_TEST_CONNECTIONS` says otherwise.
const CONNECTIONS: u64 = 2_000;

/// The most that memory may grow by while bodies pass, in bytes: a window of flow control for each connection that is not
/// read from, and what the allocator keeps back. One body of those here is larger.
const GROWTH: u64 = 32 << 20;

/// The most that an idle connection of HTTP/1.1 may take, in bytes.
const PER_CONNECTION: u64 = 10 << 10;

/// An agent in a process of its own, with one sample backend behind HTTP/1.1, HTTP/2 and TCP. The backend runs in the
/// process of the test.
struct Site {
    deployment: Deployment,
    agent: Portico,
    pods: drain::Trigger,
}

// === impl Site ===

impl Site {
    async fn start() -> Self {
        raise_descriptors();
        let service = |name: &str, protocol: &str, port: u16| {
            let port = format!("{{port: {}, nodePort: {port}{protocol}}}", port - 30_000);
            manual(name, "", &port, &[("2.1", 8080)])
        };
        let all = [
            node("node-a", 1),
            service("web", ", appProtocol: http", 30_080),
            service("h2c", ", appProtocol: kubernetes.io/h2c", 30_081),
            service("raw", "", 30_090),
        ];
        let deployment = Deployment::start(&[("all.yaml", &all.concat())], &[]);
        let agent = deployment.agent("node-a", &[]);
        deployment.inspector.serving().await;
        let (pods, watch) = drain::channel();
        let config = EchoConfig {
            listen: vec![deployment.net.at("2.1", 8080)],
            pod: "web-1".to_owned(),
            namespace: "default".to_owned(),
            node: "node-a".to_owned(),
        };
        tokio::spawn(echo::bind(config).expect("a free address").serve(watch));
        Self { deployment, agent, pods }
    }

    fn at(&self, port: u16) -> SocketAddr {
        self.deployment.net.at("1.1", port)
    }

    /// Does something, and says by how much the agent grew meanwhile at most.
    async fn growth(&self, work: impl Future<Output = ()>) -> u64 {
        self.agent.forget_peak();
        let (before, _) = self.agent.memory();
        work.await;
        let (_, peak) = self.agent.memory();
        peak.saturating_sub(before)
    }

    fn stop(self) {
        self.pods.start();
        assert_eq!(self.agent.terminate(), Some(0), "the agent drains and ends with 0");
        assert_eq!(self.deployment.gateway.terminate(), Some(0), "the gateway ends with 0");
    }
}

/// Thousands of connections have both ends here.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits can be read");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be raised to the hard one");
}

/// A size from the environment, for runs by hand that go further than a test should.
fn size(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |text| text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole_and_take_no_memory() {
    let site = Site::start().await;
    let length = size("PORTICO_TEST_BYTES", LENGTH);
    let expected = tokio::task::spawn_blocking(move || digest_of_pattern(length)).await.expect("a digest");
    for (version, port) in [(Version::Http1, 30_080), (Version::Http2, 30_081)] {
        let mut client = Web::connect(version, site.at(port)).await.expect("the port is open");
        assert_eq!(client.get("/").await.expect("an answer").0.status(), 200);
        let down = site.growth(async {
            let request = Request::get(format!("http://web/bytes/{length}")).body(empty()).expect("a valid request");
            let answer = client.send(request).await.expect("an answer");
            assert_eq!(digest(answer.into_body()).await.expect("a body"), expected, "{version:?}");
        });
        let down = down.await;
        let up = site.growth(async {
            let request = Request::put("http://web/upload").body(pattern(length, None)).expect("a valid request");
            let answer = client.send(request).await.expect("an answer");
            let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
            let seen: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(seen["blake3"], expected.blake3, "{version:?}: {seen}");
        });
        let up = up.await;
        println!("{version:?}: {length} bytes; memory grew by {down} bytes downwards, {up} upwards");
        assert!(down < GROWTH && up < GROWTH, "{version:?}: memory grew by {down} bytes downwards, {up} upwards");
    }
    let both = site.growth(async { assert_eq!(through_tcp(site.at(30_090), length).await, expected) }).await;
    println!("TCP: {length} bytes; memory grew by {both} bytes");
    assert!(both < GROWTH, "TCP: memory grew by {both} bytes");
    site.stop();
}

/// Sends bytes through the echo, both ways at once.
async fn through_tcp(to: SocketAddr, length: u64) -> Digest {
    let (mut read, mut write) = TcpStream::connect(to).await.expect("the port is open").into_split();
    // A byte that begins no other protocol.
    write.write_all(b"\x01").await.expect("it is connected");
    while read.read_u8().await.expect("the line of the backend") != b'\n' {}
    assert_eq!(read.read_u8().await.expect("the first byte comes back"), 1);
    let sending = tokio::spawn(async move {
        for chunk in Pattern::new(length) {
            write.write_all(&chunk).await.expect("it is connected");
        }
        write.shutdown().await.expect("it is connected");
    });
    let (mut received, mut hasher, mut buffer) = (0, blake3::Hasher::new(), vec![0; 256 << 10]);
    loop {
        let read = timeout(PATIENCE, read.read(&mut buffer)).await.expect("bytes in time").expect("bytes");
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        received += read as u64;
    }
    sending.await.expect("all is sent");
    Digest { length: received, blake3: hasher.finalize().to_hex().to_string() }
}

/// Somebody asks for much and reads nothing. Others are served as before, memory stays, and in the end it all arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_itself_only() {
    const EACH: u64 = 32 << 20;
    let site = Site::start().await;
    let expected = digest_of_pattern(EACH);
    let mut others = Client::connect([127, 0, 0, 1].into(), site.at(30_080)).await.expect("the port is open");
    assert_eq!(others.get("web", "/").await.expect("an answer").status, 200);
    let mut slow = Vec::new();
    let growth = site.growth(async {
        for at in 0..16 {
            let (version, port) = [(Version::Http1, 30_080), (Version::Http2, 30_081)][at % 2];
            let mut client = Web::connect(version, site.at(port)).await.expect("the port is open");
            let request = Request::get(format!("http://web/bytes/{EACH}")).body(empty()).expect("a valid request");
            let answer = client.send(request).await.expect("the head comes without the body being read");
            slow.push((client, answer));
        }
        for _ in 0..500 {
            assert_eq!(others.get("web", "/").await.expect("an answer").status, 200);
        }
    });
    let growth = growth.await;
    println!("16 readers that do not read: memory grew by {growth} bytes");
    assert!(growth < GROWTH, "memory grew by {growth} bytes");
    for (_client, answer) in slow {
        assert_eq!(digest(answer.into_body()).await.expect("a body"), expected);
    }
    site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_cost_little_and_stay() {
    let site = Site::start().await;
    let count = size("PORTICO_TEST_CONNECTIONS", CONNECTIONS);
    let mut first = Client::connect([127, 0, 0, 1].into(), site.at(30_080)).await.expect("the port is open");
    assert_eq!(first.get("web", "/").await.expect("an answer").status, 200);
    let mut idle = Vec::new();
    let growth = site.growth(async {
        for at in 0..count {
            // Ports of one address would run out.
            let from = [127, 0, 9, (at % 200) as u8 + 1].into();
            let mut client = Client::connect(from, site.at(30_080)).await.expect("the port is open");
            assert_eq!(client.get("web", "/").await.expect("an answer").status, 200);
            idle.push(client);
        }
    });
    let growth = growth.await;
    println!("{count} idle connections: {} bytes each", growth / count);
    assert!(growth / count < PER_CONNECTION, "{} bytes for each of {count} idle connections", growth / count);
    for client in &mut idle {
        assert_eq!(client.get("web", "/").await.expect("an idle connection is kept").status, 200);
    }
    site.stop();
}
