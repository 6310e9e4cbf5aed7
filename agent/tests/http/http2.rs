//! HTTP/2 on either side or both.

use std::{cell::Cell, convert::Infallible, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use agent::report::outcome::Outcome;
use api::resource::service::AppProtocol;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http2::SendRequest,
    ext::Protocol,
    rt::Executor,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::spawn_local,
};

use crate::harness::{Proxy, answering, endpoint, limits, refusing, run, target};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[derive(Clone)]
pub struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(async move {
            task.await;
        });
    }
}

pub type Sent = BoxBody<Bytes, Infallible>;

pub fn full(bytes: &'static [u8]) -> Sent {
    Full::new(Bytes::from_static(bytes)).boxed()
}

pub fn frames(frames: Vec<Frame<Bytes>>) -> Sent {
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames.into_iter().map(Ok))))
}

/// A client of HTTP/2.
pub async fn client(address: SocketAddr) -> SendRequest<Sent> {
    let stream = TcpStream::connect(address).await.expect("the proxy listens");
    let handshake = hyper::client::conn::http2::Builder::new(Local).handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.expect("writing works");
    spawn_local(connection);
    sender
}

pub fn request(method: Method, body: Sent) -> Request<Sent> {
    let request = Request::builder().method(method).uri("http://web.shop/call").version(Version::HTTP_2);
    request.body(body).expect("valid")
}

pub fn grpc(body: Sent) -> Request<Sent> {
    let mut request = request(Method::POST, body);
    request.headers_mut().insert("content-type", "application/grpc".parse().expect("visible"));
    request.headers_mut().insert("te", "trailers".parse().expect("visible"));
    request
}

/// Data and trailers.
pub async fn collect(response: Response<Incoming>) -> (Bytes, HeaderMap) {
    let body = response.into_body().collect().await.expect("complete");
    let trailers = body.trailers().cloned().unwrap_or_default();
    (body.to_bytes(), trailers)
}

pub type Answer = Pin<Box<dyn Future<Output = Response<Sent>>>>;

/// An endpoint of HTTP/2, and how many connections it has seen.
pub async fn endpoint2(answer: impl Fn(Request<Incoming>) -> Answer + 'static) -> (SocketAddr, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (connections, answer) = (Rc::new(Cell::new(0)), Rc::new(answer));
    let seen = connections.clone();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            seen.set(seen.get() + 1);
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = hyper::server::conn::http2::Builder::new(Local)
                .max_concurrent_streams(50)
                .serve_connection(TokioIo::new(stream), service);
            spawn_local(connection);
        }
    });
    (address, connections)
}

/// Answers calls with what they sent and a status in the trailers.
pub fn echo(request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.uri().authority().map(|authority| authority.as_str()), Some("web.shop"));
        assert!(request.headers().contains_key("x-forwarded-for"));
        let data = request.into_body().collect().await.expect("complete").to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("visible"));
        Response::new(frames(vec![Frame::data(data), Frame::trailers(trailers)]))
    })
}

#[test]
fn http2_reaches_endpoints_of_http1() {
    run(async {
        let (address, heads) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        for _ in 0..3 {
            let response = client.send_request(request(Method::GET, full(b""))).await.expect("an answer");
            assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
            assert_eq!(collect(response).await.0, "hello");
        }
        let head = heads.borrow()[0].clone();
        assert!(head.starts_with("GET /call HTTP/1.1\r\n") && head.contains("host: web.shop\r\n"), "{head}");
        let records = proxy.closed(3).await;
        assert!(records.iter().all(|record| record.http2 && record.outcome == Outcome::Complete));
        assert!(records[2].attempts[0].reused);
    });
}

#[test]
fn calls_and_their_trailers_pass() {
    run(async {
        let (address, connections) = endpoint2(echo).await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let mut client = client(proxy.address).await;
        for size in [0, 10, 300, 20_000, 200_000] {
            let body = vec![b'x'; size];
            let response =
                client.send_request(grpc(Full::new(Bytes::from(body.clone())).boxed())).await.expect("an answer");
            let (data, trailers) = collect(response).await;
            assert_eq!((data.len(), &trailers["grpc-status"]), (size, &"0".parse().expect("visible")));
        }
        let records = proxy.closed(5).await;
        assert!(records.iter().all(|record| record.grpc && record.grpc_status == Some(0)));
        assert_eq!((records[4].received, records[4].sent), (200_000, 200_000));
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn many_calls_at_once_share_few_connections() {
    run(async {
        let (address, connections) = endpoint2(echo).await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let client = client(proxy.address).await;
        let calls = (0..150).map(|_| {
            let mut client = client.clone();
            async move { collect(client.send_request(grpc(full(b"hello"))).await.expect("an answer")).await.0 }
        });
        assert!(futures::future::join_all(calls).await.iter().all(|data| data == "hello"));
        assert!(connections.get() <= 4, "{}", connections.get());
        assert!(proxy.closed(150).await.iter().all(|record| record.outcome == Outcome::Complete));
    });
}

#[test]
fn old_clients_reach_endpoints_of_http2() {
    run(async {
        let (address, _) = endpoint2(echo).await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Http2, &[address])).await;
        let mut client = proxy.client().await;
        client.say("POST /call HTTP/1.1\r\nHost: web.shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.say("hello").await;
        let answer = client.until("\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("transfer-encoding: chunked\r\n"),
            "{answer}"
        );
        assert_eq!(client.until("\r\n\r\n").await, "5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n");
    });
}

#[test]
fn messages_stream_in_both_directions_at_once() {
    run(async {
        let (address, _) = endpoint2(|request| {
            Box::pin(async move {
                let incoming = request.into_body();
                let echoed = incoming.into_data_stream();
                let frames = futures::StreamExt::map(echoed, |data| Ok(Frame::data(data.unwrap_or_default())));
                Response::new(BodyExt::boxed(SyncBody(std::sync::Mutex::new(Box::pin(StreamBody::new(frames))))))
            })
        })
        .await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let mut client = client(proxy.address).await;
        let (sender, receiver) = mpsc::unbounded_channel::<Result<Frame<Bytes>, Infallible>>();
        let sent = StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver));
        let response = client.send_request(grpc(BodyExt::boxed(sent))).await.expect("an answer before the end");
        let mut body = response.into_body();
        for message in ["one", "two", "three"] {
            sender.send(Ok(Frame::data(Bytes::from_static(message.as_bytes())))).expect("open");
            let frame = body.frame().await.expect("open").expect("no error");
            assert_eq!(frame.into_data().ok(), Some(Bytes::from_static(message.as_bytes())));
        }
        drop(sender);
        // The end may come in a frame of its own.
        assert_eq!(body.collect().await.expect("complete").to_bytes(), "");
    });
}

/// Makes a body `Sync`, as boxing wants it.
struct SyncBody<B>(std::sync::Mutex<Pin<Box<B>>>);

impl<B: Body<Data = Bytes, Error = Infallible>> Body for SyncBody<B> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0.get_mut().expect("not poisoned").as_mut().poll_frame(cx)
    }
}

#[test]
fn failed_calls_get_a_status_of_grpc() {
    run(async {
        let (address, _socket) = refusing();
        let proxy = Proxy::start(limits(), target(AppProtocol::Grpc, &[address])).await;
        let mut client = client(proxy.address).await;
        let response = client.send_request(grpc(full(b"x"))).await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["grpc-status"]),
            (200, &"14".parse().expect("visible"))
        );
        assert!(response.headers()["proxy-status"].to_str().expect("text").contains("CONNECT_REFUSED"));
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::ConnectRefused);
    });
}

#[test]
fn an_endpoint_that_does_not_speak_http2_is_told_apart() {
    run(async {
        let (address, _) = answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Http2, &[address])).await;
        let mut client = client(proxy.address).await;
        let response = client.send_request(request(Method::GET, full(b""))).await.expect("an answer");
        assert_eq!(response.status().as_u16(), 502);
    });
}

#[test]
fn a_connection_that_the_endpoint_closed_is_replaced() {
    run(async {
        let (address, connections) = endpoint2(|_| Box::pin(async { Response::new(full(b"hello")) })).await;
        let proxy = Proxy::start(limits(), target(AppProtocol::Http2, &[address])).await;
        let mut client = client(proxy.address).await;
        for _ in 0..2 {
            let response = client.send_request(request(Method::POST, full(b""))).await.expect("an answer");
            assert_eq!(collect(response).await.0, "hello");
            proxy.local.upstream(address).pool.clear();
        }
        assert_eq!(connections.get(), 2);
    });
}

#[test]
fn a_client_that_resets_its_stream_ends_its_request() {
    run(async {
        let (asked, left) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (tell_asked, tell_left) = (asked.clone(), left.clone());
        let address = endpoint(move |mut client, _| {
            let (asked, left) = (tell_asked.clone(), tell_left.clone());
            async move {
                client.head().await;
                asked.notify_one();
                client.closed().await;
                left.notify_one();
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        let answer = spawn_local(client.send_request(request(Method::GET, full(b""))));
        asked.notified().await;
        answer.abort();
        left.notified().await;
        assert_eq!(proxy.closed(1).await[0].outcome, Outcome::ClientClosed);
        assert_eq!(proxy.ended.get(), 0, "the connection lives on");
    });
}

#[test]
fn websockets_come_through_http2() {
    run(async {
        let address = endpoint(|mut client, _| async move {
            let head = client.head().await;
            for part in ["GET /call HTTP/1.1\r\n", "upgrade: websocket\r\n", "connection: upgrade\r\n", "sec-websocket-key: "] {
                assert!(head.contains(part), "{part:?} in {head}");
            }
            client.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n").await;
            client.until("ping").await;
            client.say("pong").await;
            client.closed().await;
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        // Extended CONNECT is allowed once the settings of the other end have come, which an answer shows.
        let mut connect = request(Method::CONNECT, frames(vec![]));
        connect.extensions_mut().insert(Protocol::from_static("websocket"));
        let head = client.send_request(request(Method::from_bytes(b"NONE").expect("a token"), full(b"")));
        drop(head);
        let response = client.send_request(connect).await;
        let response = match response {
            Ok(response) => response,
            Err(error) => panic!("{error:?}"),
        };
        assert_eq!(response.status().as_u16(), 200);
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.expect("switched"));
        socket.write_all(b"ping").await.expect("open");
        let mut pong = [0; 4];
        socket.read_exact(&mut pong).await.expect("open");
        assert_eq!(&pong, b"pong");
        socket.shutdown().await.expect("open");
        drop(socket);
        let records = proxy.closed(1).await;
        assert!(records.iter().any(|record| record.status == 101), "{records:?}");
    });
}

#[test]
fn requests_that_cannot_be_passed_on_are_refused() {
    run(async {
        let (address, heads) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        let mut connect = request(Method::CONNECT, full(b""));
        *connect.uri_mut() = "web.shop:80".parse().expect("an authority");
        let mut user = request(Method::GET, full(b""));
        *user.uri_mut() = "http://admin@web.shop/".parse().expect("a URI");
        let mut many = request(Method::GET, full(b""));
        for number in 0..60 {
            let name = http::HeaderName::from_bytes(format!("h{number}").as_bytes()).expect("a token");
            many.headers_mut().insert(name, "v".parse().expect("visible"));
        }
        for (request, status) in [(connect, 400), (user, 400), (many, 431)] {
            let response = client.send_request(request).await.expect("an answer");
            assert_eq!(response.status().as_u16(), status);
        }
        assert!(heads.borrow().is_empty());
    });
}

#[test]
fn a_tunnel_that_the_endpoint_declines_is_no_success() {
    run(async {
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        collect(client.send_request(request(Method::GET, full(b""))).await.expect("an answer")).await;
        let mut connect = request(Method::CONNECT, frames(vec![]));
        connect.extensions_mut().insert(Protocol::from_static("websocket"));
        let response = client.send_request(connect).await.expect("an answer");
        assert_eq!(response.status().as_u16(), 501);
    });
}

#[test]
fn draining_sends_goaway_and_finishes_streams() {
    run(async {
        let (asked, go) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (tell, wait) = (asked.clone(), go.clone());
        let address = endpoint(move |mut client, _| {
            let (tell, wait) = (tell.clone(), wait.clone());
            async move {
                client.head().await;
                tell.notify_one();
                wait.notified().await;
                client.say(HELLO).await;
            }
        })
        .await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        let answer = spawn_local(client.send_request(request(Method::GET, full(b""))));
        asked.notified().await;
        proxy.local.drain.begin();
        go.notify_one();
        let response = answer.await.expect("not aborted").expect("an answer");
        assert_eq!(collect(response).await.0, "hello");
        while proxy.ended.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(client.send_request(request(Method::GET, full(b""))).await.is_err());
    });
}

#[test]
fn idle_connections_are_closed() {
    run(async {
        let (address, _) = answering(HELLO).await;
        let proxy = Proxy::http(&[address]).await;
        let mut client = client(proxy.address).await;
        let response = client.send_request(request(Method::GET, full(b""))).await.expect("an answer");
        collect(response).await;
        // The first alarm finds that something was asked since it was set.
        proxy.pass(Duration::from_secs(16));
        tokio::task::yield_now().await;
        proxy.pass(Duration::from_secs(700));
        while proxy.ended.get() == 0 {
            tokio::task::yield_now().await;
        }
    });
}
