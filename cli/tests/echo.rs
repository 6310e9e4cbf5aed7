//! The sample backend over real sockets, asked by clients of its own and other making.

use api::proto::echo::echo_service_client::EchoServiceClient;
use api::proto::echo::{EchoRequest, EchoStreamRequest};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cli::echo::pattern::Pattern;
use portico_cli::echo::{self, EchoConfig, EchoError};
use runtime::drain;
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// A backend of its own for each test.
struct Echo {
    address: SocketAddr,
    trigger: drain::Trigger,
    served: JoinHandle<Result<(), EchoError>>,
}

impl Echo {
    fn start() -> Echo {
        Echo::at("127.0.0.1:0")
    }

    fn at(listen: &str) -> Echo {
        let bound = echo::bind(config(listen.parse().unwrap())).unwrap();
        let address = bound.addresses()[0];
        let (trigger, watch) = drain::channel();
        Echo { address, trigger, served: tokio::spawn(bound.serve(watch)) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let (client, connection) = http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    async fn http2(&self) -> http2::SendRequest<Full<Bytes>> {
        let io = TokioIo::new(self.connect().await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Sends one request over a connection of its own.
    async fn ask(&self, version: Version, request: Request<Full<Bytes>>) -> Response<Incoming> {
        match version {
            Version::HTTP_2 => self.http2().await.send_request(request).await.unwrap(),
            _ => self.http1().await.send_request(request).await.unwrap(),
        }
    }
}

fn config(listen: SocketAddr) -> EchoConfig {
    EchoConfig { listen: vec![listen], pod: "web-0".into(), namespace: "shop".into(), node: "one".into() }
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let uri = format!("http://echo.test{path}");
    Request::builder().method(method).uri(uri).header("te", "trailers").body(Full::new(body.into())).unwrap()
}

async fn collect(response: Response<Incoming>) -> (Bytes, Option<HeaderMap>) {
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned();
    (body.to_bytes(), trailers)
}

async fn json(response: Response<Incoming>) -> Value {
    serde_json::from_slice(&collect(response).await.0).unwrap()
}

/// The JSON line at the start of a raw connection.
async fn line(stream: &mut TcpStream) -> Value {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await.unwrap());
    }
    serde_json::from_slice(&line).unwrap()
}

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

#[tokio::test]
async fn requests_are_described_over_both_versions_of_http() {
    let echo = Echo::start();
    for (version, protocol) in [(Version::HTTP_11, "http/1.1"), (Version::HTTP_2, "http/2")] {
        let mut request = request("POST", "/a?b=c", "hello");
        request.headers_mut().insert("x-forwarded-for", "192.0.2.1, 10.0.0.1".parse().unwrap());
        let seen = json(echo.ask(version, request).await).await;
        assert_eq!((&seen["protocol"], &seen["method"]), (&protocol.into(), &"POST".into()));
        assert_eq!((&seen["path"], &seen["query"], &seen["host"]), (&"/a".into(), &"b=c".into(), &"echo.test".into()));
        assert_eq!((&seen["pod"], &seen["namespace"], &seen["node"]), (&"web-0".into(), &"shop".into(), &"one".into()));
        assert_eq!((&seen["client"], &seen["clientSource"]), (&"192.0.2.1".into(), &"x-forwarded-for".into()));
        assert_eq!((&seen["bodyBytes"], &seen["local"]), (&5.into(), &echo.address.to_string().into()));
    }
}

#[tokio::test]
async fn bytes_are_the_pattern_with_and_without_a_length() {
    let echo = Echo::start();
    let length = 300_001;
    let expected: Vec<u8> = Pattern::new(length).flatten().collect();
    for version in VERSIONS {
        for (path, announced) in [("/bytes/300001", Some("300001")), ("/bytes/300001?chunked", None)] {
            let response = echo.ask(version, request("GET", path, "")).await;
            let header = response.headers().get("content-length").map(|value| value.to_str().unwrap());
            assert_eq!(header, announced, "{version:?} {path}");
            assert!(collect(response).await.0 == expected, "{version:?} {path}");
            let head = echo.ask(version, request("HEAD", path, "")).await;
            let header = head.headers().get("content-length").map(|value| value.to_str().unwrap());
            assert_eq!(header, announced, "HEAD {version:?} {path}");
            assert!(collect(head).await.0.is_empty(), "HEAD {version:?} {path}");
        }
    }
}

#[tokio::test]
async fn uploads_are_counted_and_digested() {
    let echo = Echo::start();
    let body: Vec<u8> = Pattern::new(1_000_000).flatten().collect();
    for version in VERSIONS {
        let seen = json(echo.ask(version, request("PUT", "/upload", body.clone())).await).await;
        assert_eq!(seen["bodyBytes"], 1_000_000);
        assert_eq!(seen["blake3"], blake3::hash(&body).to_hex().as_str());
    }
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let echo = Echo::start();
    for version in VERSIONS {
        let (body, trailers) = collect(echo.ask(version, request("GET", "/trailers", "")).await).await;
        let trailers = trailers.expect("the answer has trailers");
        assert_eq!(trailers["x-echo-blake3"], blake3::hash(&body).to_hex().as_str());
        assert_eq!(trailers["x-echo-pod"], "web-0");
    }
    let mut stream = echo.connect().await;
    let request = "POST / HTTP/1.1\r\nhost: x\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                   3\r\nabc\r\n0\r\nx-end: yes\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let seen: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&seen["bodyBytes"], &seen["trailers"]["x-end"][0]), (&3.into(), &"yes".into()));
}

#[tokio::test]
async fn statuses_are_those_asked_for() {
    let echo = Echo::start();
    for version in VERSIONS {
        for (status, has_body) in [(200, true), (204, false), (304, false), (418, true), (503, true)] {
            let response = echo.ask(version, request("GET", &format!("/status/{status}"), "")).await;
            assert_eq!(response.status(), status);
            assert_eq!(!collect(response).await.0.is_empty(), has_body, "{version:?} {status}");
        }
        let response = echo.ask(version, request("GET", "/status/abc", "")).await;
        assert_eq!(response.status(), 400);
        let text = "/status: \"abc\" is not a number; give a number from 200 to 999\n";
        assert_eq!(collect(response).await.0, text);
    }
}

#[tokio::test]
async fn closing_without_an_answer_ends_the_connection_or_the_stream() {
    let echo = Echo::start();
    assert!(echo.http1().await.send_request(request("GET", "/close", "")).await.is_err());
    let mut client = echo.http2().await;
    assert!(client.send_request(request("GET", "/close", "")).await.is_err());
    let after = client.send_request(request("GET", "/", "")).await.unwrap();
    assert_eq!(after.status(), 200, "other streams of the connection live on");
}

#[tokio::test]
async fn a_malformed_body_is_refused() {
    let echo = Echo::start();
    let mut stream = echo.connect().await;
    let request = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn websockets_say_what_was_seen_and_then_repeat() {
    let echo = Echo::start();
    let mut request = format!("ws://{}/chat", echo.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "one, two".parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "one");
    let greeting = socket.next().await.unwrap().unwrap().into_text().unwrap();
    let seen: Value = serde_json::from_str(&greeting).unwrap();
    assert_eq!((&seen["protocol"], &seen["path"]), (&"websocket".into(), &"/chat".into()));
    for message in [Message::text("hello"), Message::binary(vec![7; 100_000])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    echo.trigger.start();
    let Message::Close(Some(frame)) = socket.next().await.unwrap().unwrap() else { panic!("the drain closes it") };
    assert_eq!(frame.code, CloseCode::Away);
    assert!(socket.next().await.is_none());
    echo.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn handshakes_that_cannot_work_are_refused() {
    let echo = Echo::start();
    let handshake = |name: &str, value: &str| {
        let mut request = request("GET", "/", "");
        request.headers_mut().insert("connection", "upgrade".parse().unwrap());
        request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
        request.headers_mut().insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        request
    };
    let response = echo.ask(Version::HTTP_11, handshake("sec-websocket-version", "8")).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["sec-websocket-version"]),
        (426, &"13".parse().unwrap())
    );
    let response = echo.ask(Version::HTTP_11, handshake("sec-websocket-version", "13")).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn websockets_work_over_http2() {
    let echo = Echo::start();
    let mut client = echo.http2().await;
    // The server's settings, which allow extended CONNECT, have arrived once it has answered anything.
    collect(client.send_request(request("GET", "/", "")).await.unwrap()).await;
    let mut connect = request("CONNECT", "/chat", "");
    connect.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    connect.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let response = client.send_request(connect).await.unwrap();
    assert_eq!(response.status(), 200);
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(io, role, None).await;
    let greeting = socket.next().await.unwrap().unwrap().into_text().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&greeting).unwrap()["protocol"], "websocket");
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
}

#[tokio::test]
async fn grpc_calls_are_answered_with_what_was_seen() {
    let echo = Echo::start();
    let mut client = EchoServiceClient::connect(format!("http://{}", echo.address)).await.unwrap();
    let mut request = tonic::Request::new(EchoRequest { payload: Bytes::from_static(b"hi") });
    request.metadata_mut().insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
    let seen = client.echo(request).await.unwrap().into_inner();
    assert_eq!((&seen.payload[..], seen.pod.as_str(), seen.node.as_str()), (&b"hi"[..], "web-0", "one"));
    assert_eq!(seen.client, "192.0.2.1");
    assert!(seen.peer.starts_with("127.0.0.1:"));
    assert!(seen.headers.iter().any(|header| header.name == "x-forwarded-for" && header.value == "192.0.2.1"));

    let (messages, inbound) = tokio::sync::mpsc::channel(1);
    let inbound = tokio_stream::wrappers::ReceiverStream::new(inbound);
    let mut answers = client.echo_stream(inbound).await.unwrap().into_inner();
    for number in 0..3u8 {
        // Each is answered before the next is sent.
        messages.send(EchoStreamRequest { payload: vec![number].into() }).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().payload[..], [number]);
    }
    drop(messages);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn raw_bytes_come_back_after_one_line_until_both_sides_are_closed() {
    let echo = Echo::start();
    let mut stream = echo.connect().await;
    let peer = stream.local_addr().unwrap().to_string();
    stream.write_all(b"ping").await.unwrap();
    let seen = line(&mut stream).await;
    assert_eq!(
        (&seen["protocol"], &seen["peer"], &seen["clientSource"]),
        (&"tcp".into(), &peer.into(), &"peer".into())
    );
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");

    let sent: Bytes = Pattern::new(3_000_000).flatten().collect();
    let (mut read, mut write) = stream.into_split();
    let sending = tokio::spawn({
        let sent = sent.clone();
        async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
            write
        }
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    sending.await.unwrap();
}

#[tokio::test]
async fn a_proxy_header_names_the_client_of_what_follows() {
    let echo = Echo::start();
    let mut stream = echo.connect().await;
    stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\nping").await.unwrap();
    let seen = line(&mut stream).await;
    assert_eq!((&seen["client"], &seen["clientSource"]), (&"192.0.2.1".into(), &"proxy-protocol".into()));

    let mut stream = echo.connect().await;
    stream.write_all(b"PROXY TCP6 2001:db8::1 2001:db8::2 1000 80\r\n").await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let seen = json(client.send_request(request("GET", "/", "")).await.unwrap()).await;
    assert_eq!((&seen["client"], &seen["clientSource"]), (&"2001:db8::1".into(), &"proxy-protocol".into()));

    let mut stream = echo.connect().await;
    stream.write_all(b"PROXY nonsense\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "a malformed header ends the connection");
}

#[tokio::test]
async fn datagrams_are_answered_from_the_address_they_were_sent_to() {
    let echo = Echo::at("0.0.0.0:0");
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for address in [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 9, 8, 7)] {
        let dialled = SocketAddr::from((address, echo.address.port()));
        let mut datagram = vec![b'x'; 2000];
        datagram[1] = 0xff;
        client.send_to(&datagram, dialled).await.unwrap();
        let mut buffer = vec![0; 65_536];
        let (length, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(from, dialled);
        let seen: Value = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!((&seen["protocol"], &seen["local"]), (&"udp".into(), &dialled.to_string().into()));
        assert_eq!(seen["peer"], client.local_addr().unwrap().to_string());
        assert_eq!(seen["bodyBytes"], 2000);
        assert_eq!(seen["payload"], format!("x\u{fffd}{}", "x".repeat(1022)));
    }
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    // An address of its own: the port must not be taken by another test once it is free.
    let echo = Echo::at("127.77.0.1:0");
    let mut silent = echo.connect().await;
    let mut idle = echo.http1().await;
    collect(idle.send_request(request("GET", "/", "")).await.unwrap()).await;
    let mut busy = echo.http2().await;
    let mut events = busy.send_request(request("GET", "/sse?count=3&interval=10", "")).await.unwrap().into_body();
    events.frame().await.expect("the first event").unwrap();

    echo.trigger.start();
    let rest = events.collect().await.unwrap().to_bytes();
    assert!(rest.windows(5).any(|window| window == b"id: 2"), "the last event arrives");
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    echo.served.await.unwrap().unwrap();
    assert!(idle.send_request(request("GET", "/", "")).await.is_err());
    assert!(TcpStream::connect(echo.address).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_reported_with_its_address() {
    let echo = Echo::start();
    let error = echo::bind(config(echo.address)).unwrap_err();
    assert!(error.to_string().contains(&echo.address.to_string()), "{error}");
    let EchoError::Listen { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
}
