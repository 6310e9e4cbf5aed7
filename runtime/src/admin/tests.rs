//! The admin port over a real socket, and its timeouts over a pipe with a clock that stands still.

use super::*;
use crate::port::{AGE_GRACE, HEADER_TIMEOUT, MAX_AGE, MAX_CONNECTIONS, connection};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

struct Server {
    address: SocketAddr,
    readiness: Readiness,
    trigger: drain::Trigger,
    _serving: JoinSet<()>,
}

/// An admin port with one counter that stands at three and two dumps, of which one panics.
async fn server() -> Server {
    let readiness = Readiness::new();
    let registry = prometheus::Registry::new();
    let counter = prometheus::IntCounter::new("things_total", "Things.").unwrap();
    counter.inc_by(3);
    registry.register(Box::new(counter)).unwrap();
    let admin = Admin::new(readiness.clone(), registry)
        .debug("table", || r#"{"listeners":[]}"#.into())
        .debug("broken", || panic!("on purpose"));
    let (trigger, watch) = drain::channel();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(serve(listener, admin, watch));
    Server { address, readiness, trigger, _serving: serving }
}

impl Server {
    /// Sends one request with the given method and gives the status and everything after it.
    async fn request(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text)
    }

    async fn check(&self, path: &str, status: u16, ending: &str) {
        let (got, text) = self.request("GET", path).await;
        assert_eq!(got, status, "{path}: {text}");
        assert!(text.ends_with(ending), "{path}: {text}");
    }
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_ends_with_the_drain() {
    let server = server().await;
    let (snapshot, workers) = (server.readiness.latch("first snapshot"), server.readiness.latch("workers"));
    server.check("/livez", 200, "ok\n").await;
    server.check("/readyz", 503, "\r\n\r\nfirst snapshot\nworkers\n").await;
    snapshot.release();
    server.check("/readyz", 503, "\r\n\r\nworkers\n").await;
    workers.release();
    server.check("/readyz", 200, "ok\n").await;
    server.trigger.start();
    server.check("/readyz", 503, "\r\n\r\ndraining\n").await;
    server.check("/livez", 200, "ok\n").await;
}

#[tokio::test]
async fn metrics_are_the_text_of_the_registry() {
    let server = server().await;
    let (_, text) = server.request("GET", "/metrics").await;
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.ends_with("# TYPE things_total counter\nthings_total 3\n"), "{text}");
}

#[tokio::test]
async fn unknown_paths_are_answered_with_the_known_ones() {
    let server = server().await;
    let paths = "/livez\n/readyz\n/metrics\n/debug/broken\n/debug/table\n";
    for path in ["/", "/metrics/", "/debug/", "/debug/tables"] {
        server.check(path, 404, paths).await;
    }
}

#[tokio::test]
async fn dumps_are_json_if_they_look_like_it_and_a_panic_harms_nobody_else() {
    let server = server().await;
    let (status, text) = server.request("GET", "/debug/table").await;
    assert_eq!(status, 200);
    assert!(text.contains("application/json") && text.ends_with(r#"{"listeners":[]}"#), "{text}");
    server.check("/debug/broken", 500, "the dump panicked; see the log\n").await;
    server.check("/livez", 200, "ok\n").await;
}

#[tokio::test]
async fn only_reading_is_possible() {
    let server = server().await;
    let (status, text) = server.request("POST", "/readyz").await;
    assert_eq!(status, 405);
    assert!(text.contains("allow: GET, HEAD"), "{text}");
    let (status, text) = server.request("HEAD", "/livez").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("\r\n\r\n"), "{text}");
}

/// One connection over a pipe, as the given peer sees it.
fn pipe(peer: &str) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let admin = Admin::new(Readiness::new(), prometheus::Registry::new()).debug("table", || "rows".into());
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let watch = drain::channel().1;
    let task = tokio::spawn(connection(theirs, peer.parse().unwrap(), Arc::new(respond(admin, watch))));
    (ours, task)
}

#[tokio::test]
async fn dumps_are_for_loopback_peers() {
    for (peer, status) in [
        ("127.0.0.1", "200"),
        ("127.8.0.9", "200"),
        ("::1", "200"),
        ("::ffff:127.0.0.1", "200"),
        ("10.0.0.1", "403"),
        ("::ffff:10.0.0.1", "403"),
        ("2001:db8::1", "403"),
    ] {
        let (mut stream, _task) = pipe(peer);
        stream.write_all(b"GET /debug/table HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text.split(' ').nth(1), Some(status), "{peer}: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_cut_off() {
    let whole = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    for beginning in ["", "GET /livez HTTP/1.1\r\nhost:", whole] {
        let (mut stream, task) = pipe("127.0.0.1");
        let began = Instant::now();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        task.await.unwrap();
        let after = began.elapsed();
        assert!(after >= HEADER_TIMEOUT && after < HEADER_TIMEOUT * 2, "{beginning:?}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_used_is_closed_at_its_age() {
    let (mut stream, task) = pipe("127.0.0.1");
    let began = Instant::now();
    let mut answer = [0; 1024];
    // Each pause is shorter than the header timeout, so only the age can end this.
    while stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok() {
        if stream.read(&mut answer).await.unwrap() == 0 {
            break;
        }
        tokio::time::advance(HEADER_TIMEOUT / 2).await;
    }
    task.await.unwrap();
    let after = began.elapsed();
    assert!(after >= MAX_AGE && after <= MAX_AGE + AGE_GRACE, "{after:?}");
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let server = server().await;
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // An answer proves that this connection has its place.
        assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
        held.push(stream);
    }
    let waiting = server.request("GET", "/livez");
    let mut waiting = pin!(waiting);
    let early = tokio::select! {
        biased;
        answer = waiting.as_mut() => Some(answer),
        // Another round trip on a held connection: time in which a free place would have been given.
        () = async {
            let stream = &mut held[0];
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
        } => None,
    };
    assert_eq!(early, None);
    held.pop();
    assert_eq!(waiting.await.0, 200);
}
