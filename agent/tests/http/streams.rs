//! Streams of HTTP/2 that do not simply come and go: cancelled, stalled, long, silent.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use agent::{local::Limits, report::outcome::Outcome};
use api::resource::service::AppProtocol;
use bytes::Bytes;
use http::{Method, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::{spawn_local, yield_now},
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    harness::{Proxy, answering, endpoint, limits, run, target},
    http2::{Sent, client, collect, endpoint2, full, grpc, request},
};

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>;

/// A body that is sent piece by piece.
fn pieces() -> (Frames, Sent) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, BodyExt::boxed(StreamBody::new(UnboundedReceiverStream::new(receiver))))
}

fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(bytes.into()))
}

#[test]
fn a_length_is_told_once_to_endpoints_of_http1() {
    run(async {
        let (address, heads) = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        let response = client.send_request(request(Method::PUT, full(b""))).await.expect("an answer");
        assert_eq!(collect(response).await.0, "hello");
        assert_eq!(heads.borrow()[0].matches("content-length: 0\r\n").count(), 1, "{heads:?}");

        let address = endpoint(|mut endpoint, _| async move {
            let head = endpoint.head().await;
            assert_eq!(head.matches("content-length: 4\r\n").count(), 1, "{head}");
            assert_eq!(endpoint.until("ping").await, "ping");
            endpoint.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = crate::http2::client(proxy.address).await;
        let response = client.send_request(request(Method::PUT, full(b"ping"))).await.expect("an answer");
        assert_eq!(response.status().as_u16(), 204);
    });
}

#[test]
fn a_cancelled_body_is_not_a_complete_one() {
    run(async {
        let (complete, ended) = (Rc::new(Cell::new(true)), Rc::new(Notify::new()));
        let (seen, tell) = (complete.clone(), ended.clone());
        let (address, _) = endpoint2(move |request| {
            let (seen, tell) = (seen.clone(), tell.clone());
            // The answer begins at once, so only the body can tell.
            spawn_local(async move {
                seen.set(request.into_body().collect().await.is_ok());
                tell.notify_one();
            });
            Box::pin(async {
                let (sender, body) = pieces();
                sender.send(data("begun")).expect("open");
                // It stays open as long as the endpoint lives.
                std::mem::forget(sender);
                Response::new(body)
            })
        })
        .await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let mut client = client(proxy.address).await;
        let (sender, body) = pieces();
        sender.send(data("half")).expect("open");
        let mut response = client.send_request(grpc(body)).await.expect("an answer");
        response.body_mut().frame().await.expect("open").expect("no error");
        drop((response, sender));
        // What the client's library makes of dropping both: the stream is taken back.
        drop(client);
        ended.notified().await;
        assert!(!complete.get());
        let records = proxy.closed(1).await;
        assert_eq!(records[0].outcome, Outcome::ClientClosed);
    });
}

#[test]
fn a_request_goes_on_while_its_answer_is_not_read() {
    run(async {
        let received = Rc::new(Cell::new(0));
        let (count, all) = (received.clone(), Rc::new(Notify::new()));
        let tell = all.clone();
        let (address, _) = endpoint2(move |request| {
            let (count, tell) = (count.clone(), tell.clone());
            spawn_local(async move {
                count.set(request.into_body().collect().await.expect("complete").to_bytes().len());
                tell.notify_one();
            });
            // More than every window on the way.
            Box::pin(async { Response::new(Full::new(Bytes::from(vec![b'x'; 8 << 20])).boxed()) })
        })
        .await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let mut client = client(proxy.address).await;
        let (sender, body) = pieces();
        let response = client.send_request(grpc(body)).await.expect("an answer");
        for _ in 0..64 {
            sender.send(data(vec![b'y'; 64 << 10])).expect("open");
        }
        drop(sender);
        all.notified().await;
        assert_eq!(received.get(), 4 << 20);
        assert_eq!(collect(response).await.0.len(), 8 << 20);
    });
}

#[test]
fn an_answer_that_takes_long_survives_draining() {
    run(async {
        let (sender, body) = pieces();
        let body = RefCell::new(Some(body));
        let (address, _) = endpoint2(move |_| {
            let body = body.take().expect("one request");
            Box::pin(async { Response::new(body) })
        })
        .await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let mut client = client(proxy.address).await;
        let mut response = client.send_request(grpc(full(b"x"))).await.expect("an answer");
        proxy.local.drain.begin();
        for seconds in [6, 12] {
            proxy.pass(Duration::from_secs(seconds));
            sender.send(data("more")).expect("open");
            let frame = response.body_mut().frame().await.expect("open").expect("no error");
            assert_eq!(frame.into_data().ok(), Some(Bytes::from_static(b"more")));
        }
        assert_eq!(proxy.ended.get(), 0);
        drop(sender);
        assert_eq!(collect(response).await.0, "");
        while proxy.ended.get() == 0 {
            yield_now().await;
        }
    });
}

/// What a client says first: the preface and empty settings.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Type and payload of the next frame; `None` at the end.
async fn frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

/// The payload of the next frame of a type.
async fn next(stream: &mut TcpStream, wanted: u8) -> Vec<u8> {
    loop {
        let (kind, payload) = frame(stream).await.expect("open");
        if kind == wanted {
            return payload;
        }
    }
}

#[test]
fn silent_clients_are_asked_and_given_up() {
    const PING: u8 = 6;
    run(async {
        let (address, _) = answering("").await;
        let proxy = Proxy::start(
            Limits { header_timeout: Duration::from_secs(3600), ..limits() },
            target(AppProtocol::Http, &[address]),
        )
        .await;
        let mut stream = TcpStream::connect(proxy.address).await.expect("the proxy listens");
        stream.write_all(BEGIN).await.expect("open");
        while frame(&mut stream).await.expect("settings").0 != 4 {}
        proxy.pass(Duration::from_secs(161));
        let asked = next(&mut stream, PING).await;
        stream.write_all(&[b"\0\0\x08\x06\x01\0\0\0\0", &asked[..]].concat()).await.expect("open");
        // A question of its own, whose answer shows that the first answer was read.
        stream.write_all(b"\0\0\x08\x06\0\0\0\0\0question").await.expect("open");
        assert_eq!(next(&mut stream, PING).await, b"question");
        proxy.pass(Duration::from_secs(182));
        yield_now().await;
        proxy.pass(Duration::from_secs(243));
        next(&mut stream, PING).await;
        assert_eq!(proxy.ended.get(), 0);
        proxy.pass(Duration::from_secs(264));
        while frame(&mut stream).await.is_some() {}
    });
}

/// An endpoint of HTTP/2 that answers the first request on its first connection, says `words` to the second, and leaves. On
/// later connections it answers calls with what they sent.
async fn leaving(words: &'static [u8]) -> SocketAddr {
    let (endpoint, _) = endpoint2(crate::http2::echo).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    spawn_local(async move {
        let (mut first, _) = listener.accept().await.expect("the proxy connects");
        // Its settings, which are none, and those of the client acknowledged.
        first.write_all(b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0").await.expect("open");
        let mut seen = Vec::new();
        // DATA of four bytes that ends its stream, and what is said to it: `:status: 200` and no more, to the first one.
        let calls = [(b"\0\0\x04\0\x01\0\0\0\x01ping", b"\0\0\x01\x01\x05\0\0\0\x01\x88" as &[u8])];
        for (call, answer) in calls.into_iter().chain([(b"\0\0\x04\0\x01\0\0\0\x03ping", words)]) {
            while !seen.windows(call.len()).any(|bytes| bytes == call) {
                assert_ne!(first.read_buf(&mut seen).await.expect("open"), 0, "{seen:?}");
            }
            first.write_all(answer).await.expect("open");
        }
        first.shutdown().await.expect("open");
        while let Ok((mut later, _)) = listener.accept().await {
            let mut onward = TcpStream::connect(endpoint).await.expect("listens");
            spawn_local(async move {
                let ((mut calls, mut back), (mut answers, mut on)) = (later.split(), onward.split());
                tokio::join!(tokio::io::copy(&mut calls, &mut on), tokio::io::copy(&mut answers, &mut back))
            });
        }
    });
    address
}

/// How the second call to such an endpoint ends: its gRPC status, its answer's body, and how many attempts there were.
async fn second_call(words: &'static [u8], method: Method) -> (u16, Bytes, usize) {
    let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[leaving(words).await])).await;
    let mut client = client(proxy.address).await;
    let mut call = || {
        let mut call = grpc(full(b"ping"));
        *call.method_mut() = method.clone();
        client.send_request(call)
    };
    let first = call().await.expect("an answer");
    assert_eq!(collect(first).await.0, "");
    let second = call().await.expect("an answer");
    let status = second.headers().get("grpc-status").map_or(0, |status| status.to_str().unwrap().parse().unwrap());
    let body = collect(second).await.0;
    (status, body, proxy.closed(2).await[1].attempts.len())
}

/// The status of a call whose endpoint is gone.
const UNAVAILABLE: u16 = 14;

#[test]
fn what_an_endpoint_has_not_acted_on_is_repeated() {
    run(async {
        // GOAWAY after stream 1, and RST_STREAM of stream 3 with REFUSED_STREAM.
        let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0";
        let refused = b"\0\0\x04\x03\0\0\0\0\x03\0\0\0\x07";
        for words in [&goaway[..], refused] {
            let ended = second_call(words, Method::POST).await;
            assert_eq!(ended, (0, Bytes::from_static(b"ping"), 2), "{words:?}");
        }
    });
}

#[test]
fn what_may_have_been_acted_on_is_repeated_if_that_is_safe() {
    run(async {
        assert_eq!(second_call(b"", Method::POST).await, (UNAVAILABLE, Bytes::new(), 1));
        assert_eq!(second_call(b"", Method::PUT).await, (0, Bytes::from_static(b"ping"), 2));
        // RST_STREAM with INTERNAL_ERROR: the endpoint has looked at it.
        let failed = b"\0\0\x04\x03\0\0\0\0\x03\0\0\0\x02";
        assert_eq!(second_call(failed, Method::PUT).await, (UNAVAILABLE, Bytes::new(), 1));
    });
}
