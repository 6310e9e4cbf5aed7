//! What is wrong is refused with a reason, and harms nobody else: at HTTP, at TLS, at the ports of the gateway, and in options.

use std::{
    net::{IpAddr, SocketAddr},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tests::{
    binary,
    client::{self, Client},
    load::Load,
    manifests::{Pod, node, node_port},
    net::Net,
    standalone::Standalone,
    tools,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

/// Longer than any answer to garbage takes, shorter than the time limits of the data plane that would hide a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// Memory that may be held after garbage and was not before: buffers, one allocator arena more.
const GROWTH: u64 = 24 << 20;

const HEAD: &str = "GET /ok HTTP/1.1\r\nHost: web\r\n";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

/// Requests that two readers might read differently, or nobody can read. Each is refused with 400.
fn ambiguous() -> Vec<(String, Vec<u8>)> {
    let post = |headers: &str, body: &str| format!("POST /ok HTTP/1.1\r\nHost: web\r\n{headers}\r\n{body}");
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let mut cases: Vec<(String, Vec<u8>)> = [
        ("both lengths", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("both lengths, reversed", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n")),
        ("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello")),
        ("a list of lengths", post("Content-Length: 5, 6\r\n", "hello")),
        ("a signed length", post("Content-Length: +5\r\n", "hello")),
        ("a negative length", post("Content-Length: -5\r\n", "hello")),
        ("a hexadecimal length", post("Content-Length: 0x5\r\n", "hello")),
        ("an empty length", post("Content-Length:\r\n", "hello")),
        ("a length with a space", post("Content-Length: 5 5\r\n", "hello")),
        ("a length beyond numbers", post("Content-Length: 99999999999999999999999\r\n", "hello")),
        ("a space before the colon", post("Content-Length : 5\r\n", "hello")),
        ("a tab before the colon", post("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n")),
        ("an unknown coding", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
        ("chunked not last", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n")),
        (
            "two codings in two lines",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ),
        ("a coding with a vertical tab", post("Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n")),
        ("a coding in quotes", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n")),
        (
            "chunked in HTTP/1.0",
            "POST /ok HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("a folded header", format!("{HEAD}X-Long: a\r\n b\r\n\r\n")),
        ("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")),
        ("a first line that is folded", "GET /ok HTTP/1.1\r\n Host: web\r\n\r\n".to_owned()),
        ("a bare line feed", "GET /ok HTTP/1.1\nHost: web\n\n".to_owned()),
        ("a bare line feed in the middle", format!("{HEAD}X-A: b\nX-C: d\r\n\r\n")),
        ("a bare carriage return", format!("{HEAD}X-A: b\rX-C: d\r\n\r\n")),
        ("a NUL in a value", format!("{HEAD}X-A: b\0c\r\n\r\n")),
        ("a NUL in a name", format!("{HEAD}X\0A: b\r\n\r\n")),
        ("a NUL in the target", "GET /o\0k HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("no colon", format!("{HEAD}X-A b\r\n\r\n")),
        ("an empty name", format!("{HEAD}: b\r\n\r\n")),
        ("a name with a space", format!("{HEAD}X A: b\r\n\r\n")),
        ("a name in brackets", format!("{HEAD}[X]: b\r\n\r\n")),
        ("no host", "GET /ok HTTP/1.1\r\n\r\n".to_owned()),
        ("two hosts", format!("{HEAD}Host: other\r\n\r\n")),
        ("a host with a user", "GET /ok HTTP/1.1\r\nHost: user@web\r\n\r\n".to_owned()),
        ("a host with a path", "GET /ok HTTP/1.1\r\nHost: web/path\r\n\r\n".to_owned()),
        ("a host with a space", "GET /ok HTTP/1.1\r\nHost: we b\r\n\r\n".to_owned()),
        ("no version", "GET /ok\r\nHost: web\r\n\r\n".to_owned()),
        ("a version with words", "GET /ok HTTP/one\r\nHost: web\r\n\r\n".to_owned()),
        ("a version in lower case", "GET /ok http/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("three spaces", "GET  /ok  HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("a target with a space", "GET /o k HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("no target", "GET HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("a method with a bracket", "G[T /ok HTTP/1.1\r\nHost: web\r\n\r\n".to_owned()),
        ("CONNECT", "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n".to_owned()),
        ("words", "hello, is this the right place?\r\n\r\n".to_owned()),
        ("an empty chunk size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("a negative chunk size", chunked("-1\r\nhello\r\n0\r\n\r\n")),
        ("a chunk size with 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk size with a space", chunked("5 5\r\nhello\r\n0\r\n\r\n")),
        ("a chunk size beyond numbers", chunked("fffffffffffffffff\r\nhello\r\n0\r\n\r\n")),
        ("a chunk that is longer", chunked("5\r\nhello world\r\n0\r\n\r\n")),
        ("a chunk size with a bare line feed", chunked("5\nhello\r\n0\r\n\r\n")),
        ("a chunk that ends with a line feed", chunked("5\r\nhello\n0\r\n\r\n")),
        ("an extension with a line feed", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("a trailer with a NUL", chunked("5\r\nhello\r\n0\r\nX: a\0b\r\n\r\n")),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .collect();
    for byte in [0x01u8, 0x08, 0x0b, 0x0c, 0x1b, 0x7f] {
        let mut request = format!("{HEAD}X-A: b").into_bytes();
        request.extend_from_slice(&[byte, b'c', b'\r', b'\n', b'\r', b'\n']);
        cases.push((format!("byte {byte:#04x} in a value"), request));
    }
    for byte in *b"\"(),/;<=>?@[]\\{}" {
        let mut request = format!("{HEAD}X").into_bytes();
        request.extend_from_slice(&[byte, b'A', b':', b' ', b'b', b'\r', b'\n', b'\r', b'\n']);
        cases.push((format!("{:?} in a name", char::from(byte)), request));
    }
    cases
}

/// Heads that are too much. The first is longer than 64 KiB, the second has more than 100 headers.
fn oversized() -> Vec<(String, Vec<u8>)> {
    let long = format!("{HEAD}X-Long: {}\r\n\r\n", "a".repeat(70 << 10));
    let many: String = (0..150).map(|at| format!("X-{at}: b\r\n")).collect();
    let target = format!("GET /{} HTTP/1.1\r\nHost: web\r\n\r\n", "a".repeat(70 << 10));
    [("a long header", long), ("many headers", format!("{HEAD}{many}\r\n")), ("a long target", target)]
        .map(|(name, text)| (name.to_owned(), text.into_bytes()))
        .to_vec()
}

async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(from, 0)).expect("an address of the loopback range");
    socket.connect(to).await.unwrap_or_else(|error| panic!("connect to {to}: {error}"))
}

/// Sends bytes and reads until the other end closes. A reset ends the answer as well: what was unread when the other end
/// closed makes one.
async fn exchange(mut stream: TcpStream, bytes: &[u8], what: &str) -> Vec<u8> {
    let mut answer = Vec::new();
    let talk = async {
        // The other end may have refused before everything was sent.
        if stream.write_all(bytes).await.is_ok() {
            let mut buffer = [0; 16 << 10];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                answer.extend_from_slice(&buffer[..read]);
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, talk).await.is_ok();
    assert!(ended, "{what}: the connection stays open; answer so far: {:?}", String::from_utf8_lossy(&answer));
    answer
}

/// Clients that do nothing wrong, and must not notice.
fn innocent(portico: &Standalone) -> Load {
    let net = &portico.net;
    Load::start(50, "web", &[(net.ip("9.1"), net.at("1.1", 30_080)), (net.ip("9.2"), net.at("1.1", 30_080))])
}

async fn start() -> Standalone {
    let text = node("node-a", 1) + &Pod::new(1, "node-a").text() + &node_port("web", "http", 30_080);
    Standalone::start(Net::claim(), &[("all.yaml", &text)], &[], &[]).await
}

/// Nobody was harmed, and nothing is left behind.
async fn unharmed(mut portico: Standalone, mut load: Load, before: u64) {
    load.more(50).await;
    assert!(load.failures().is_empty(), "others were harmed: {:#?}", load.failures());
    drop(load);
    assert!(portico.process.is_running());
    let (after, _) = portico.process.memory();
    eprintln!("resident: {} MiB before, {} MiB after", before >> 20, after >> 20);
    assert!(after < before + GROWTH, "{before} bytes before, {after} after");
    assert_eq!(portico.terminate().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let portico = start().await;
    let mut load = innocent(&portico);
    load.more(20).await;
    let (before, _) = portico.process.memory();
    let (from, to) = (portico.net.ip("9.66"), portico.net.at("1.1", 30_080));
    let (mut sent, mut wrong) = (0, Vec::new());
    for (name, request) in ambiguous() {
        // As it is; with a second request behind it; and behind a first request that is answered.
        let behind = [&request[..], SMUGGLED.as_bytes()].concat();
        let after = [HEAD.as_bytes(), b"\r\n", &request[..], SMUGGLED.as_bytes()].concat();
        for (variant, bytes, answered) in [("alone", &request, 0), ("followed", &behind, 0), ("second", &after, 1)] {
            let what = format!("{name}, {variant}");
            let answer = exchange(connect(from, to).await, bytes, &what).await;
            sent += 1;
            let answer = String::from_utf8_lossy(&answer);
            let statuses: Vec<&str> =
                answer.split("HTTP/1.1 ").skip(1).map(|rest| rest.get(..3).unwrap_or(rest)).collect();
            let wanted = [&["200"; 1][..answered], &["400"]].concat();
            if statuses != wanted || answer.contains("smuggled") {
                wrong.push(format!("{what}: {statuses:?}, wanted {wanted:?}: {answer:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {sent}:\n{}", wrong.len(), wrong.join("\n"));
    for (name, request) in oversized() {
        let answer = exchange(connect(from, to).await, &request, &name).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "), "{name}: {answer:?}");
    }
    let refused = connect(from, to).await;
    let answer = exchange(refused, b"GET /ok HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "a reason").await;
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.contains("proxy-status: portico; error=http_request_error; details=\"malformed\""), "{answer}");
    eprintln!("{sent} malformed requests refused");
    unharmed(portico, load, before).await;
}

/// Bytes that look arbitrary and are the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Beginnings of connections of all kinds, each broken in another way.
fn broken_connections() -> Vec<(String, Vec<u8>)> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frame = |length: u32, kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let head = [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &head, payload].concat()
    };
    let hello = |length: u16, body: &[u8]| [&[0x16, 3, 1], &length.to_be_bytes()[..], body].concat();
    let mut cases = vec![
        ("a preface that ends".to_owned(), PREFACE[..20].to_vec()),
        ("a frame larger than allowed".to_owned(), frame(0xff_ffff, 0, 0, 1, &[0; 64])),
        ("data on stream 0".to_owned(), frame(4, 0, 0, 0, b"data")),
        ("headers on an even stream".to_owned(), frame(1, 1, 5, 2, &[0x82])),
        ("headers with an index beyond the table".to_owned(), frame(1, 1, 5, 1, &[0xff])),
        ("settings of five bytes".to_owned(), frame(5, 4, 0, 0, &[0; 5])),
        ("a window of zero more".to_owned(), frame(4, 8, 0, 0, &[0; 4])),
        ("a continuation of nothing".to_owned(), frame(1, 9, 4, 1, &[0x82])),
        ("a push by a client".to_owned(), frame(5, 5, 4, 1, &[0, 0, 0, 2, 0x82])),
        ("padding longer than its frame".to_owned(), frame(2, 0, 8, 1, &[9, 0])),
        ("a ClientHello of nothing".to_owned(), hello(0, b"")),
        ("a ClientHello that is too long".to_owned(), hello(0xffff, &noise(1, 512))),
        ("a ClientHello of noise".to_owned(), hello(256, &noise(2, 256))),
        (
            "a ClientHello whose length lies".to_owned(),
            hello(64, &[&[1, 0xff, 0xff, 0xff, 3, 3], &noise(3, 58)[..]].concat()),
        ),
        ("an SSL 2 hello".to_owned(), vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10, 0, 0, 1, 2, 3]),
        ("an alert".to_owned(), vec![0x15, 3, 3, 0, 2, 2, 40]),
        ("nothing".to_owned(), vec![]),
        ("a PROXY header".to_owned(), b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec()),
    ];
    cases.extend((0..60).map(|seed| (format!("noise {seed}"), noise(seed + 10, 1 + (seed as usize * 37) % 900))));
    cases
}

/// Sends bytes, closes that side, and reads until the other end closes too.
async fn half(from: IpAddr, to: SocketAddr, bytes: &[u8], what: &str) {
    let mut stream = connect(from, to).await;
    let talk = async {
        // The other end may refuse before everything was sent; that it ends is what is asked here.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    };
    assert!(tokio::time::timeout(PATIENCE, talk).await.is_ok(), "{what} at {to}: the connection stays open");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_end_and_harm_nobody() {
    let portico = start().await;
    let net = &portico.net;
    let mut load = innocent(&portico);
    load.more(20).await;
    let from = net.ip("9.66");
    let (key, certificate) = certificate();
    let tls = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cert}}\ntype: kubernetes.io/tls\nstringData:\n  \
         tls.crt: |\n{}  tls.key: |\n{}---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: secure, annotations: {{portico.dev/tls-secret: cert}}}}\n\
         spec:\n  type: NodePort\n  selector: {{app: web}}\n  \
         ports: [{{port: 443, targetPort: http, nodePort: 30443, appProtocol: https}}]\n",
        indent(&certificate),
        indent(&key)
    );
    portico.write("tls.yaml", tls);
    let secure = net.at("1.1", 30_443);
    let ca = portico.path("../ca.pem");
    std::fs::write(&ca, &certificate).expect("a file can be written");
    curl_until_served(&ca, secure).await;
    let (before, _) = portico.process.memory();
    let mut sent = 0;
    for round in 0..2 {
        for (name, bytes) in broken_connections() {
            let ports =
                [("1.1", 30_080), ("1.1", 30_443), ("1.1", 8080), ("0.1", 18_000), ("0.1", 18_001), ("0.1", 18_080)];
            let all = ports.map(|(host, port)| {
                let (to, bytes, what) = (net.at(host, port), bytes.clone(), format!("{name}, round {round}"));
                tokio::spawn(async move { half(from, to, &bytes, &what).await })
            });
            for one in all {
                one.await.expect("it ends");
                sent += 1;
            }
        }
    }
    eprintln!("{sent} broken connections ended");
    curl_until_served(&ca, secure).await;
    let answer = client::get(from, net.at("0.1", 18_080), "gateway", "/readyz").await;
    assert_eq!(answer.status, 200);
    portico.inspector.serving().await;
    unharmed(portico, load, before).await;
}

/// A key and a certificate for `secure.default`.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["secure.default".to_owned()]).expect("a certificate");
    (made.signing_key.serialize_pem(), made.cert.pem())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Asks with curl, which checks the certificate, until the port is open and answers.
async fn curl_until_served(ca: &std::path::Path, to: SocketAddr) {
    let mut command = tools::command("curl");
    let connect = format!("secure.default:{}:{}", to.port(), to.ip());
    command.args(["--silent", "--show-error", "--max-time", "20", "--retry", "40", "--retry-delay", "0"]);
    command.args(["--retry-all-errors", "--cacert"]).arg(ca).args(["--resolve", &connect]);
    let (status, out, err) = tools::run(command.arg(format!("https://secure.default:{}/", to.port()))).await;
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("\"pod\":\"web-1\""), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_garbage_gets_a_status() {
    let portico = start().await;
    let mut load = innocent(&portico);
    load.more(20).await;
    let (before, _) = portico.process.memory();
    let (discovery, health) = (portico.net.at("0.1", 18_000), portico.net.at("0.1", 18_001));
    let mut command = tools::python("grpc_garbage.py");
    let (status, out, err) = tools::run(command.arg(discovery.to_string()).arg(health.to_string())).await;
    assert_eq!(status, Some(0), "{err}");
    eprint!("{out}");
    portico.inspector.serving().await;
    unharmed(portico, load, before).await;
}

/// Every option that takes a value, with one that is wrong.
async fn refused(command: &str, options: &[(&str, &str)]) {
    let mut run = tokio::process::Command::new(binary::path());
    run.arg(command).stdin(Stdio::null()).kill_on_drop(true);
    run.args(options.iter().map(|(name, value)| format!("{name}={value}")));
    let (status, out, err) = tools::run(&mut run).await;
    assert_eq!(status, Some(2), "portico {command}: {err}");
    assert_eq!(out, "", "problems are not results");
    for (name, value) in options {
        let line = err.lines().find(|line| line.starts_with(&format!("error: {name}: ")));
        let line = line.unwrap_or_else(|| panic!("portico {command}: nothing about {name} in:\n{err}"));
        assert!(line.contains(&format!("{value:?}")), "the value is shown: {line}");
        assert!(line.len() > format!("error: {name}: {value:?} ").len() + 8, "a reason follows: {line}");
    }
    assert_eq!(err.lines().count(), options.len(), "one line for each, and nothing else:\n{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_option_is_reported_in_one_run() {
    let log = [("--log-format", "xml"), ("--log-level", "loud=")];
    let ports =
        [("--discovery-listen", "18000"), ("--health-listen", "localhost"), ("--admin-listen", "1.2.3.4:99999")];
    let cluster = [
        ("--service-cidr", "10.96.0.0/33"),
        ("--node-port-range", "32767-30000"),
        ("--load-balancer-pool", "everything"),
        ("--external-ips", "10.0.0.1/99"),
        ("--cluster-domain", "not_a domain"),
        ("--node-lease", "soon"),
    ];
    let data_plane = [
        ("--http-port", "70000"),
        ("--node-port-addresses", "10.0.0.0/x"),
        ("--workers", "0"),
        ("--drain-timeout", "30"),
        ("--trusted-proxies", "everybody"),
        ("--access-log", "some"),
        ("--max-connections", "-1"),
        ("--max-udp-flows", "many"),
        ("--header-timeout", "0s"),
        ("--idle-timeout", "10 parsecs"),
        ("--connect-timeout", "fast"),
        ("--response-timeout", "1x"),
        ("--tcp-idle-timeout", "-5s"),
        ("--attempts", "0"),
        ("--max-header-bytes", "1GiB"),
        ("--max-headers", "0"),
        ("--dns-listen", "0.0.0.0:53"),
        ("--dns-upstream", "dns.example.com"),
        ("--dns-pods", "insecure"),
    ];
    let manifests = [("--manifests", "/nonexistent/manifests")];
    refused("standalone", &[&log[..], &ports, &cluster, &data_plane, &manifests].concat()).await;
    let gateway = [("--drain-timeout", "30")];
    refused("gateway", &[&log[..], &ports, &cluster, &gateway, &manifests].concat()).await;
    let agent = [("--gateway", "localhost:18000"), ("--admin-listen", "18081")];
    refused("agent", &[&log[..], &agent, &data_plane].concat()).await;
    refused("echo", &[&log[..], &[("--listen", "8080")]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_do_not_keep_others_waiting() {
    let text = node("node-a", 1) + &Pod::new(1, "node-a").text() + &node_port("web", "http", 30_080);
    let portico = Standalone::start(Net::claim(), &[("all.yaml", &text)], &["--header-timeout=1s"], &[]).await;
    let (from, to) = (portico.net.ip("9.66"), portico.net.at("1.1", 30_080));
    let done = Arc::new(AtomicBool::new(false));
    let silent: Vec<_> = (0..300)
        .map(|at| {
            let done = done.clone();
            tokio::spawn(async move {
                let mut stream = connect(from, to).await;
                // A third says nothing, a third half a request line, a third all but the last line.
                let beginnings = [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: web\r\n"];
                stream.write_all(beginnings[at % 3]).await.expect("the connection is open");
                let mut answer = Vec::new();
                // A reset is an end as well.
                let _ = stream.read_to_end(&mut answer).await;
                assert!(!done.load(Ordering::Relaxed) || answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "));
            })
        })
        .collect();
    let mut client = Client::connect(portico.net.ip("9.1"), to).await.expect("others are served");
    for _ in 0..50 {
        assert_eq!(client.get("web", "/").await.expect("an answer").status, 200);
    }
    done.store(true, Ordering::Relaxed);
    for one in silent {
        tokio::time::timeout(PATIENCE, one).await.expect("the header timeout ends it").expect("as it should");
    }
    assert_eq!(portico.terminate().0, Some(0));
}
