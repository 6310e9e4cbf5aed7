//! TCP is passed on as it is: who speaks first, who stops first, and how it ends.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portico_cli::echo::pattern::Pattern;
use tests::{
    backend::Backend,
    manifests::node,
    services::{echo_pod, manual, service},
    stack::Stack,
    web::digest_of_pattern,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// An opaque port at 30090 with these endpoints.
async fn raw(endpoints: &[(&str, u16)]) -> Stack {
    let port = "{port: 90, nodePort: 30090}";
    Stack::start(&[("all.yaml", &[node("node-a", 1), manual("raw", "", port, endpoints)].concat())]).await
}

/// A connection through Portico, and the endpoint's end of it.
async fn pair(stack: &Stack) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(stack.at("2.1", 9000)).await.expect("a free address");
    let client = TcpStream::connect(stack.at("1.1", 30_090)).await.expect("the port is open");
    let accepted = timeout(PATIENCE, listener.accept()).await.expect("the endpoint is connected to at once");
    (client, accepted.expect("a connection").0)
}

async fn reads(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("bytes in time").expect("bytes");
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

async fn reads_end(stream: &mut TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.expect("the end in time");
    assert_eq!(read.expect("an orderly end"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_may_speak_first_and_stop_first() {
    let stack = raw(&[("2.1", 9000)]).await;
    // The endpoint greets, the client stops sending, and still gets its answer.
    let (mut client, mut endpoint) = pair(&stack).await;
    endpoint.write_all(b"220 hello").await.expect("it is connected");
    reads(&mut client, "220 hello").await;
    client.write_all(b"question").await.expect("it is connected");
    client.shutdown().await.expect("it is connected");
    reads(&mut endpoint, "question").await;
    reads_end(&mut endpoint).await;
    endpoint.write_all(b"answer").await.expect("the other direction is open");
    reads(&mut client, "answer").await;
    drop(endpoint);
    reads_end(&mut client).await;

    // The other way round.
    let (mut client, mut endpoint) = pair(&stack).await;
    endpoint.write_all(b"no more").await.expect("it is connected");
    endpoint.shutdown().await.expect("it is connected");
    reads(&mut client, "no more").await;
    reads_end(&mut client).await;
    client.write_all(b"but I have more").await.expect("the other direction is open");
    reads(&mut endpoint, "but I have more").await;
    client.shutdown().await.expect("it is connected");
    reads_end(&mut endpoint).await;
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_a_reset_on_the_other_side() {
    let stack = raw(&[("2.1", 9000)]).await;
    for endpoint_resets in [true, false] {
        let (mut client, mut endpoint) = pair(&stack).await;
        client.write_all(b"hello").await.expect("it is connected");
        reads(&mut endpoint, "hello").await;
        let (mut left, gone) = if endpoint_resets { (client, endpoint) } else { (endpoint, client) };
        socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).expect("an option of TCP");
        drop(gone);
        let read = timeout(PATIENCE, left.read(&mut [0])).await.expect("it is told in time");
        let error = read.expect_err("an orderly end would look as if all had arrived");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "endpoint resets: {endpoint_resets}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_back_as_they_were_sent() {
    let ports = "{port: 90, targetPort: 8080, nodePort: 30090}";
    let all = [node("node-a", 1), echo_pod("raw-1", "raw", "2.1"), service("raw", "", ports)].concat();
    let stack = Stack::start(&[("all.yaml", &all)]).await;
    const LENGTH: u64 = 30_000_007;
    let (mut read, mut write) = connect(stack.at("1.1", 30_090)).await.into_split();
    // A byte that begins no other protocol; the sample backend says first what it saw.
    write.write_all(b"\x01").await.expect("it is connected");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(read.read_u8().await.expect("a line"));
    }
    let seen: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!((seen["pod"].as_str(), seen["protocol"].as_str()), (Some("raw-1"), Some("tcp")), "{seen}");
    assert_eq!(read.read_u8().await.expect("the first byte comes back"), 1);
    let sending = tokio::spawn(async move {
        for chunk in Pattern::new(LENGTH) {
            write.write_all(&chunk).await.expect("it is connected");
        }
        write.shutdown().await.expect("it is connected");
    });
    let (mut hasher, mut length, mut buffer) = (blake3::Hasher::new(), 0, vec![0; 65_536]);
    loop {
        let read = timeout(PATIENCE, read.read(&mut buffer)).await.expect("bytes in time").expect("bytes");
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        length += read as u64;
    }
    sending.await.expect("all is sent");
    let expected = digest_of_pattern(LENGTH);
    assert_eq!((length, hasher.finalize().to_hex().to_string()), (LENGTH, expected.blake3));
    stack.stop().await;
}

async fn connect(to: SocketAddr) -> TcpStream {
    TcpStream::connect(to).await.unwrap_or_else(|error| panic!("{to}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_passed_over() {
    // Nobody listens at the first two.
    let stack = raw(&[("2.1", 9000), ("2.2", 9000), ("2.3", 9000)]).await;
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let _backend = Backend::start(stack.at("2.3", 9000), move |mut stream| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            // A client that has gone does not mind.
            let _ = stream.write_all(b"here").await;
        }
    })
    .await;
    for _ in 0..50 {
        let mut client = connect(stack.at("1.1", 30_090)).await;
        reads(&mut client, "here").await;
        reads_end(&mut client).await;
    }
    assert_eq!(served.load(Ordering::Relaxed), 50, "each connection is made once");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_the_connection_is_reset() {
    let stack = raw(&[]).await;
    let listening_nowhere = raw(&[("2.1", 9000)]).await;
    for stack in [&stack, &listening_nowhere] {
        let mut client = match TcpStream::connect(stack.at("1.1", 30_090)).await {
            Ok(client) => client,
            Err(error) => {
                // Nobody listens, or the reset came before the connection was looked at.
                assert!(matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{error}");
                continue;
            }
        };
        let read = timeout(PATIENCE, client.read(&mut [0])).await.expect("an end in time");
        assert_eq!(read.expect_err("no orderly end without an endpoint").kind(), ErrorKind::ConnectionReset);
    }
    stack.stop().await;
    listening_nowhere.stop().await;
}

/// The endpoint leaves the table: what is open goes on, what is new goes elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_changes_of_the_table() {
    let stack = raw(&[("2.1", 9000)]).await;
    let (mut client, mut endpoint) = pair(&stack).await;
    let port = "{port: 90, nodePort: 30090}";
    stack.write("all.yaml", &[node("node-a", 1), manual("raw", "", port, &[("2.2", 9000)])].concat());
    stack.until_ready("raw", &[stack.ip("2.2")]).await;
    let other = TcpListener::bind(stack.at("2.2", 9000)).await.expect("a free address");
    let _new = connect(stack.at("1.1", 30_090)).await;
    timeout(PATIENCE, other.accept()).await.expect("new connections go to the new endpoint").expect("a connection");
    client.write_all(b"still").await.expect("it is connected");
    reads(&mut endpoint, "still").await;
    endpoint.write_all(b"here").await.expect("it is connected");
    reads(&mut client, "here").await;
    drop((client, endpoint));
    stack.stop().await;
}
