//! WebSocket: a session is one connection for its whole life, whatever happens to the table meanwhile.

use std::net::SocketAddr;

use futures::{SinkExt as _, StreamExt as _};
use tests::{
    client::Client,
    manifests::node,
    services::{echo_pod, service},
    stack::Stack,
    tools,
};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{ClientRequestBuilder, Message, handshake::client::Response},
};

const PORT: &str = "{name: http, port: 80, targetPort: 8080, nodePort: 30080, appProtocol: kubernetes.io/ws}";

fn manifests(pods: &[(&str, &str)]) -> String {
    let pods: String = pods.iter().map(|(name, ip)| echo_pod(name, "web", ip)).collect();
    [node("node-a", 1), pods, service("web", "", PORT)].concat()
}

async fn open(address: SocketAddr) -> (WebSocketStream<TcpStream>, Response) {
    let stream = TcpStream::connect(address).await.expect("the port is open");
    let url = format!("ws://{address}/chat?room=1").parse().expect("a URL");
    let request = ClientRequestBuilder::new(url).with_sub_protocol("chat");
    client_async(request, stream).await.expect("the handshake is accepted")
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    let message = tokio::time::timeout(std::time::Duration::from_secs(20), socket.next()).await;
    message.expect("a message in time").expect("the session goes on").expect("a message")
}

async fn echoed(socket: &mut WebSocketStream<TcpStream>, text: &str) {
    socket.send(Message::text(text)).await.expect("the session goes on");
    assert_eq!(next(socket).await, Message::text(text));
}

/// The first message of a sample backend says what it saw.
async fn greeting(socket: &mut WebSocketStream<TcpStream>) -> serde_json::Value {
    serde_json::from_str(next(socket).await.to_text().expect("text")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_changes_of_the_table() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("web-1", "2.1")]))]).await;
    let (mut socket, response) = open(stack.at("1.1", 30_080)).await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    let seen = greeting(&mut socket).await;
    assert_eq!((seen["pod"].as_str(), seen["query"].as_str()), (Some("web-1"), Some("room=1")), "{seen}");
    assert_eq!(seen["client"], "127.0.0.1", "{seen}");
    echoed(&mut socket, "before").await;

    // Another Pod comes, and the one that serves the session stops being ready: it gets nothing new.
    let unready = manifests(&[("web-1", "2.1"), ("web-2", "2.2")]).replacen("status: \"True\"", "status: \"False\"", 1);
    stack.write("all.yaml", &unready);
    stack.until_ready("web", &[stack.ip("2.2")]).await;
    // Its manifest says that it is ready; here it is started because the manifest came.
    while TcpStream::connect((stack.ip("2.2"), 8080)).await.is_err() {
        tokio::task::yield_now().await;
    }
    let (mut later, _) = open(stack.at("1.1", 30_080)).await;
    assert_eq!(greeting(&mut later).await["pod"], "web-2");
    echoed(&mut socket, "while the Pod is not ready").await;

    // The port moves; the old one is closed for new clients.
    stack.write("all.yaml", &unready.replace("30080", "30090"));
    let moved = async {
        while TcpStream::connect(stack.at("1.1", 30_090)).await.is_err()
            || TcpStream::connect(stack.at("1.1", 30_080)).await.is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), moved).await.expect("the port moves");
    echoed(&mut socket, "at a port that is gone").await;

    let large = "x".repeat(3_000_000);
    echoed(&mut socket, &large).await;
    socket.close(None).await.expect("the session goes on");
    assert!(matches!(next(&mut socket).await, Message::Close(_)), "the endpoint closes as well");
    assert!(socket.next().await.is_none());
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_send_at_the_same_time() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("web-1", "2.1")]))]).await;
    let (mut socket, _) = open(stack.at("1.1", 30_080)).await;
    greeting(&mut socket).await;
    let (mut send, mut receive) = socket.split();
    // More than fits in the buffers of either direction, so each has to move while the other does.
    let sending = tokio::spawn(async move {
        for at in 0..200u8 {
            send.send(Message::binary(vec![at; 100_000])).await.expect("the session goes on");
        }
        send
    });
    for at in 0..200u8 {
        let message = receive.next().await.expect("the session goes on").expect("a message").into_data();
        assert!(message.len() == 100_000 && message.iter().all(|byte| *byte == at), "message {at}");
    }
    let _send = sending.await.expect("all is sent");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_handshake_is_the_endpoints_answer() {
    let stack = Stack::start(&[("all.yaml", &manifests(&[("web-1", "2.1")]))]).await;
    let mut client = Client::connect(stack.ip("9.1"), stack.at("1.1", 30_080)).await.expect("the port is open");
    let request = http::Request::get("/")
        .header("host", "web")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "7")
        .body(http_body_util::Full::default());
    let answer = client.send(request.expect("a valid request")).await.expect("an answer");
    assert_eq!(answer.status, 426, "{answer:?}");
    assert_eq!(answer.header("sec-websocket-version"), "13");
    stack.stop().await;
}

/// The Python library `websockets`, with compression, against the shared HTTP port, by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_talks_by_name() {
    let pods = manifests(&[("web-1", "2.1"), ("web-2", "2.2")]);
    let stack = Stack::start_with(&[("all.yaml", &pods)], &["--http-port=8080"]).await;
    let node = stack.at("1.1", 8080);
    let (code, output, log) =
        tools::run(tools::python("websocket.py").arg(node.to_string()).arg("web.default.svc")).await;
    assert_eq!(code, Some(0), "{output}{log}");
    assert_eq!(output.trim(), "50 messages, closed with 1000", "{log}");
    stack.stop().await;
}
