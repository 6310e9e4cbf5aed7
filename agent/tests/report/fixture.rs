//! Records as plain values.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use agent::{
    report::{
        clock::Clock,
        outcome::Outcome,
        record::{Attempt, ClientSource, ConnectionRecord, Downstream, RequestRecord},
        trace::SpanContext,
        via::Via,
    },
    table::{Backend, Balance, Family, FrontendKind, HashKey, Locality, Target},
};
use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, Transport},
};
use http::{HeaderValue, Method};

/// When everything in these tests begins: 2026-11-21T11:45:00Z.
pub const EPOCH: Duration = Duration::from_secs(1_795_261_500);
pub const TRACE: u128 = 0x0af7651916cd43dd8448eb211c80319c;

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The beginning on both clocks.
pub fn begin() -> (Instant, Clock) {
    let instant = Instant::now();
    (instant, Clock::at(instant, UNIX_EPOCH + EPOCH))
}

pub fn at(offset: u64) -> SystemTime {
    UNIX_EPOCH + EPOCH + millis(offset)
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn target(name: &str, balance: Balance) -> Arc<Target> {
    Arc::new(Target {
        port_name: "http".into(),
        protocol: AppProtocol::Http,
        balance,
        any_endpoint: true,
        external: true,
        ..Target::new(NamespacedName::new("shop", name), 80, Transport::Tcp, Family::Ipv4)
    })
}

pub fn downstream(kind: FrontendKind) -> Arc<Downstream> {
    Arc::new(Downstream {
        peer: address("203.0.113.7:40000"),
        local: address("192.0.2.1:30080"),
        client: address("203.0.113.7:40000"),
        client_source: ClientSource::Peer,
        frontend: kind,
        server_name: None,
        tls: false,
    })
}

/// An attempt at pod `web-N`, begun `offset` milliseconds after the beginning.
pub fn attempt(number: u8, started: Instant, outcome: Outcome) -> Attempt {
    let reached = !outcome.is_before_send();
    let backend = Backend {
        key: format!("web-{number}").into(),
        pod: format!("web-{number}").into(),
        node: "worker-1".into(),
        locality: Locality::Node,
        ..Backend::new(address(&format!("10.1.0.{number}:8080")))
    };
    Attempt {
        backend: Arc::new(backend),
        started,
        connected: reached.then(|| millis(2)),
        reused: false,
        via: Via::Direct,
        took: millis(9),
        status: (reached && outcome == Outcome::Complete).then_some(200),
        outcome,
        span: 0xb0 + u64::from(number),
    }
}

/// GET /cart?id=7&sig=secret of web.shop through a NodePort, answered with 200 by pod web-1 in 10 ms.
pub fn request(started: Instant) -> RequestRecord {
    RequestRecord {
        downstream: downstream(FrontendKind::NodePort),
        client: address("198.51.100.9:0"),
        client_source: ClientSource::XForwardedFor,
        untrusted_chain: false,
        target: Some(target("web", Balance::Hash(HashKey::Client))),
        started,
        took: millis(10),
        first_byte: Some(millis(8)),
        method: Method::GET,
        uri: "/cart?id=7&sig=secret".parse().unwrap(),
        authority: Some(HeaderValue::from_static("web.shop:8080")),
        user_agent: Some(HeaderValue::from_static("curl/8.5")),
        http2: false,
        grpc: false,
        status: 200,
        grpc_status: None,
        received: 0,
        sent: 1024,
        attempts: vec![attempt(1, started, Outcome::Complete)],
        outcome: Outcome::Complete,
        trace: SpanContext { trace: TRACE, span: 0xa1, parent: 0xf1, sampled: true, random: true },
        link: None,
    }
}

/// A TCP connection to db.shop through a ClusterIP that lived for 1.5 s.
pub fn connection(started: Instant) -> ConnectionRecord {
    ConnectionRecord {
        downstream: downstream(FrontendKind::ClusterIp),
        protocol: "tcp",
        entry_node: "".into(),
        target: Some(target("db", Balance::Random)),
        started,
        took: millis(1500),
        received: 300,
        sent: 7000,
        attempts: vec![
            attempt(1, started, Outcome::ConnectRefused),
            attempt(2, started + millis(9), Outcome::Complete),
        ],
        outcome: Outcome::Complete,
        trace: SpanContext { trace: TRACE, span: 0xa2, parent: 0, sampled: true, random: true },
    }
}
