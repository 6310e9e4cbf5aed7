//! HTTP/1.1 and HTTP/2 arrive as they were sent: bodies, trailers, informational answers, and a reason where there is
//! no answer.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Request, header};
use http_body_util::BodyExt as _;
use tests::{
    backend::{Backend, read_head},
    binary::Portico,
    client::{self, Client},
    manifests::node,
    server::Server,
    services::{echo_pod, manual, service},
    stack::Stack,
    tools,
    web::{Version, Web, digest, digest_of_pattern, empty, pattern},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

/// No answer of a test takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the port of each version has.
const VERSIONS: [(Version, u16); 2] = [(Version::Http1, 30_080), (Version::Http2, 30_081)];

/// Two sample backends behind a port that is declared as HTTP and one that is declared as HTTP/2.
async fn web() -> Stack {
    let pods = [echo_pod("web-1", "web", "2.1"), echo_pod("web-2", "web", "2.2")].concat();
    let ports = "{name: http, port: 80, targetPort: 8080, nodePort: 30080, appProtocol: http}, \
                 {name: h2c, port: 81, targetPort: 8080, nodePort: 30081, appProtocol: kubernetes.io/h2c}";
    Stack::start(&[("all.yaml", &[node("node-a", 1), pods, service("web", "", ports)].concat())]).await
}

/// One port of HTTP at 30080 with a backend at 2.1:9000 that the test plays itself.
async fn played(endpoints: &[(&str, u16)]) -> Stack {
    let port = "{port: 80, nodePort: 30080, appProtocol: http}";
    Stack::start(&[("all.yaml", &[node("node-a", 1), manual("web", "", port, endpoints)].concat())]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_connection_share_connections_to_endpoints() {
    let stack = web().await;
    for (version, port) in VERSIONS {
        let mut client = Web::connect(version, stack.at("1.1", port)).await.expect("the port is open");
        let (mut peers, mut pods) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..100 {
            let (answer, _) = client.get("/").await.expect("an answer");
            assert_eq!(answer.status(), 200);
            let seen: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
            peers.insert(seen["peer"].to_string());
            pods.insert(seen["pod"].to_string());
        }
        assert_eq!(pods.len(), 2, "each request is balanced: {pods:?}");
        assert_eq!(peers.len(), 2, "{version:?}: one connection to each endpoint is enough: {peers:?}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_those_of_the_endpoint() {
    let stack = web().await;
    for (version, port) in VERSIONS {
        let mut client = Web::connect(version, stack.at("1.1", port)).await.expect("the port is open");
        for (method, path, status, length) in [
            ("HEAD", "/bytes/123456", 200, Some("123456")),
            ("GET", "/status/204", 204, None),
            ("GET", "/status/304", 304, None),
            ("HEAD", "/bytes/2147483648", 200, Some("2147483648")),
        ] {
            let request = Request::builder().method(method).uri(format!("http://web{path}")).body(empty());
            let answer = client.send(request.expect("a valid request")).await.expect("an answer");
            let case = format!("{version:?} {method} {path}: {answer:?}");
            assert_eq!(answer.status(), status, "{case}");
            let announced = answer.headers().get(header::CONTENT_LENGTH).map(|value| value.to_str().expect("text"));
            assert_eq!(announced, length, "{case}");
            let body = answer.into_body().collect().await.expect("the body ends");
            assert_eq!(body.to_bytes().len(), 0, "{case}");
        }
        for status in [200, 404, 418, 500, 503, 599] {
            let (answer, _) = client.get(&format!("/status/{status}")).await.expect("an answer");
            assert_eq!(answer.status(), status);
            assert!(answer.headers().get("proxy-status").is_none(), "it is the endpoint's: {answer:?}");
        }
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_unknown_length_and_their_trailers_arrive() {
    let stack = web().await;
    for (version, port) in VERSIONS {
        let mut client = Web::connect(version, stack.at("1.1", port)).await.expect("the port is open");
        for length in [1, 65_537, 3_000_005] {
            let expected = digest_of_pattern(length);
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", expected.blake3.parse().expect("hexadecimal"));
            let request = Request::put("http://web/upload").header(header::TRAILER, "x-sum");
            let request = request.body(pattern(length, Some(trailers))).expect("a valid request");
            let answer = client.send(request).await.expect("an answer").into_body().collect().await.expect("a body");
            let seen: serde_json::Value = serde_json::from_slice(&answer.to_bytes()).expect("JSON");
            assert_eq!(seen["bodyBytes"], length, "{version:?}: {seen}");
            assert_eq!(seen["blake3"], expected.blake3, "{version:?} {length}");
            assert_eq!(seen["trailers"]["x-sum"][0], expected.blake3, "{version:?}: {seen}");

            let request = Request::get(format!("http://web/bytes/{length}?chunked")).body(empty());
            let answer = client.send(request.expect("a valid request")).await.expect("an answer");
            assert_eq!(answer.headers().get(header::CONTENT_LENGTH), None, "{answer:?}");
            assert_eq!(digest(answer.into_body()).await.expect("a body"), expected, "{version:?}");
        }
        let (answer, trailers) = client.get("/trailers").await.expect("an answer");
        let sum = blake3::hash(answer.body()).to_hex();
        let trailers = trailers.unwrap_or_else(|| panic!("{version:?}: trailers come with the answer"));
        assert_eq!(trailers["x-echo-blake3"], sum.as_str(), "{version:?}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_sends_its_body_after_it() {
    let stack = web().await;
    let mut stream = TcpStream::connect(stack.at("1.1", 30_080)).await.expect("the port is open");
    let head = "PUT /upload HTTP/1.1\r\nhost: web\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the head is sent");
    let first = tokio::time::timeout(PATIENCE, read_head(&mut stream)).await.expect("an answer in time");
    assert_eq!(first.expect("a head"), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello world").await.expect("the body is sent");
    let answer = tokio::time::timeout(PATIENCE, read_head(&mut stream)).await.expect("an answer in time");
    assert!(answer.as_ref().expect("a head").starts_with("HTTP/1.1 200 "), "{answer:?}");

    // curl waits for it, and sends what it would rather not send twice.
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let bytes: Vec<u8> = portico_cli::echo::pattern::Pattern::new(5_000_001).flatten().collect();
    std::fs::write(&file, bytes).expect("a file can be written");
    for (flag, port) in [("--http1.1", 30_080), ("--http2-prior-knowledge", 30_081)] {
        let url = format!("http://{}/upload", stack.at("1.1", port));
        let mut curl = tools::command("curl");
        curl.args(["-sS", "-v", flag, "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-T"]);
        let (code, body, log) = tools::run(curl.arg(file.path()).arg(url)).await;
        assert_eq!(code, Some(0), "{log}");
        assert!(flag != "--http1.1" || log.contains("< HTTP/1.1 100 Continue"), "{log}");
        let seen: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(seen["blake3"], digest_of_pattern(5_000_001).blake3, "{flag}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_may_refuse_a_body_before_it_is_sent() {
    let stack = played(&[("2.1", 9000)]).await;
    let refusal = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let _backend = Backend::answering(stack.at("2.1", 9000), refusal).await;
    let mut stream = TcpStream::connect(stack.at("1.1", 30_080)).await.expect("the port is open");
    let head = "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 1000000\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the head is sent");
    // Not one byte of the body is sent, so whoever waits for one never answers.
    let mut heads = Vec::new();
    while !heads.last().is_some_and(|head: &String| head.starts_with("HTTP/1.1 417 ")) {
        let head = tokio::time::timeout(PATIENCE, read_head(&mut stream)).await;
        heads.push(head.unwrap_or_else(|_| panic!("no answer after {heads:?}")).expect("a head"));
    }
    assert_eq!(heads.len(), 1, "the client is not asked for a body that nobody wants");
    stack.stop().await;
}

/// An address where connecting takes for ever, as that of a Pod that is gone may: its queue is full and nobody accepts.
async fn silent(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an option of every socket");
    socket.bind(address).expect("the address is free");
    let listener = socket.listen(1).expect("it can listen");
    let mut queued = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(connected.expect("nobody refuses"));
    }
    (listener, queued)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_endpoints_are_replaced_meanwhile_goes_to_a_new_one() {
    let stack = played(&[("2.1", 9000), ("2.2", 9000)]).await;
    let _gone = [silent(stack.at("2.1", 9000)).await, silent(stack.at("2.2", 9000)).await];
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    let _backend = Backend::answering(stack.at("2.3", 9000), answer).await;
    let mut stream = TcpStream::connect(stack.at("1.1", 30_080)).await.expect("the port is open");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.expect("the request is sent");
    let port = "{port: 80, nodePort: 30080, appProtocol: http}";
    let replaced = [node("node-a", 1), manual("web", "", port, &[("2.3", 9000)])].concat();
    stack.write("all.yaml", &replaced);
    let head = tokio::time::timeout(PATIENCE, read_head(&mut stream)).await.expect("an answer").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_answers_come_before_the_answer() {
    let stack = played(&[("2.1", 9000)]).await;
    let answers = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n\
        HTTP/1.1 102 Processing\r\n\r\n\
        HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    let _backend = Backend::answering(stack.at("2.1", 9000), answers).await;
    let url = format!("http://{}/", stack.at("1.1", 30_080));
    // Over HTTP/2 only the answer arrives: the library that serves it cannot send any before.
    for (flag, expected) in [("--http1.1", &["103", "102", "200"][..]), ("--http2-prior-knowledge", &["200"])] {
        let (code, output, log) = tools::run(tools::command("curl").args(["-sS", "-i", flag, &url])).await;
        assert_eq!(code, Some(0), "{log}");
        let statuses = output.lines().filter(|line| line.starts_with("HTTP/"));
        let statuses: Vec<&str> = statuses.filter_map(|line| line.split(' ').nth(1)).collect();
        assert_eq!(statuses, expected, "{flag}: {output}");
        let hinted = output.contains("link: </style.css>; rel=preload");
        assert_eq!(hinted, expected.len() > 1, "{output}");
        assert!(output.ends_with("hello"), "{output}");
    }
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let stack = played(&[("2.1", 9000)]).await;
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
    let _backend = Backend::answering(stack.at("2.1", 9000), half).await;
    let url = format!("http://{}/", stack.at("1.1", 30_080));
    // curl: 18 is a partial file, 56 a reset, 92 a stream of HTTP/2 that was not closed cleanly.
    for (flag, codes) in [("--http1.1", [18, 56]), ("--http2-prior-knowledge", [18, 92])] {
        let (code, output, log) = tools::run(tools::command("curl").args(["-sS", flag, &url])).await;
        assert!(code.is_some_and(|code| codes.contains(&code)), "{flag}: {code:?} {output} {log}");
    }
    stack.stop().await;
}

/// One endpoint closes each connection under its second request, as those do that have just decided that it was idle.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_a_connection_that_closes_is_sent_again_if_that_is_safe() {
    let stack = played(&[("2.1", 9000)]).await;
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let closing = Backend::start(stack.at("2.1", 9000), move |mut stream| {
        let count = count.clone();
        async move {
            if read_head(&mut stream).await.is_err() {
                return;
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
            if stream.write_all(answer).await.is_ok() && read_head(&mut stream).await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let _closing = closing.await;
    let request = |method: &str| {
        let request = Request::builder().method(method).uri("/").header("host", "web");
        request.body(http_body_util::Full::default()).expect("a valid request")
    };
    let mut client = Client::connect(stack.ip("9.1"), stack.at("1.1", 30_080)).await.expect("the port is open");
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        for _ in 0..10 {
            let answer = client.send(request(method)).await.expect("an answer");
            assert_eq!(answer.status, 200, "{method}: {answer:?}");
        }
    }
    assert!(closed.load(Ordering::Relaxed) >= 20, "{closed:?} connections were closed under a request");
    // A POST may have had its effect, so its client is told.
    let mut refused = 0;
    for _ in 0..10 {
        let answer = client.send(request("POST")).await.expect("an answer");
        if answer.status != 200 {
            assert_eq!(answer.status, 502, "{answer:?}");
            let reason = answer.header("proxy-status");
            assert!(
                reason.starts_with("portico; error=connection_terminated; details=\"UPSTREAM_CLOSED\""),
                "{reason}"
            );
            refused += 1;
        }
    }
    assert!((4..=6).contains(&refused), "each connection serves one POST and loses one: {refused} of 10");
    stack.stop().await;
}

/// One of two endpoints reads each request and is gone, as a process that is killed at that moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_endpoint_answers_what_a_dying_one_did_not() {
    let stack = played(&[("2.1", 9000), ("2.2", 9000)]).await;
    let died = Arc::new(AtomicUsize::new(0));
    let count = died.clone();
    let dying = Backend::start(stack.at("2.1", 9000), move |mut stream| {
        let count = count.clone();
        async move {
            if read_head(&mut stream).await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let good = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
    let (_dying, _good) = (dying.await, Backend::answering(stack.at("2.2", 9000), good).await);
    for _ in 0..40 {
        let answer = client::get(stack.ip("9.1"), stack.at("1.1", 30_080), "web", "/").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert!(died.load(Ordering::Relaxed) > 0, "the endpoint that dies was asked");
    stack.stop().await;
}

/// Load goes on while the process of one endpoint is killed, and while another takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_when_an_endpoint_is_killed() {
    let stack = played(&[("2.1", 9000), ("2.2", 9000), ("2.3", 9000)]).await;
    let echo = |ip: &str| {
        let listen = stack.at(ip, 9000).to_string();
        Portico::start(&["echo", "--listen", &listen, "--pod", ip])
    };
    let mut pods: Vec<Portico> = ["2.1", "2.2", "2.3"].map(echo).into();
    for pod in ["2.1", "2.2", "2.3"] {
        while TcpStream::connect(stack.at(pod, 9000)).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
    let mut client = Web::connect(Version::Http1, stack.at("1.1", 30_080)).await.expect("the port is open");
    let mut answered = async |requests: usize| {
        let mut by = BTreeSet::new();
        for _ in 0..requests {
            let (answer, _) = client.get("/").await.expect("the connection of the client outlives the endpoint");
            assert_eq!(answer.status(), 200, "{answer:?}");
            let seen: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
            by.insert(seen["pod"].as_str().expect("a name").to_owned());
        }
        by
    };
    assert_eq!(answered(60).await.len(), 3);
    drop(pods.remove(0));
    let by = answered(300).await;
    assert_eq!(by, BTreeSet::from(["2.2".to_owned(), "2.3".to_owned()]));
    drop(pods.remove(0));
    assert_eq!(answered(100).await, BTreeSet::from(["2.3".to_owned()]));
    drop(pods.remove(0));
    let (answer, _) = client.get("/").await.expect("an answer");
    assert_eq!(answer.status(), 502, "{answer:?}");
    let reason = answer.headers().get("proxy-status").map(|value| value.to_str().expect("text"));
    assert_eq!(reason, Some("portico; error=connection_refused; details=\"CONNECT_REFUSED\""));
    pods.push(echo("2.1"));
    // Endpoints that failed are left out for a while, unless all have failed.
    let back = tokio::time::timeout(PATIENCE, async {
        while client.get("/").await.expect("an answer").0.status() != 200 {
            tokio::task::yield_now().await;
        }
    });
    back.await.expect("the endpoint that came back is found");
    stack.stop().await;
}

/// nginx from Debian as the endpoint: files, ranges, compression, and HTTP/1.0 clients.
#[tokio::test(flavor = "multi_thread")]
async fn nginx_serves_files_through_portico() {
    let stack = played(&[("2.1", 9000)]).await;
    let root = tempfile::tempdir().expect("a temporary directory");
    let bytes: Vec<u8> = portico_cli::echo::pattern::Pattern::new(20_000_003).flatten().collect();
    std::fs::write(root.path().join("file"), &bytes).expect("a file can be written");
    std::fs::write(root.path().join("page.html"), "<p>again and again</p>\n".repeat(1000)).expect("a file");
    let listen = stack.at("2.1", 9000);
    let config = format!(
        "worker_processes 1; user root; pid {0}/pid; error_log stderr notice; events {{ worker_connections 256; }}\n\
         http {{ access_log off; gzip on; client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c; \
         uwsgi_temp_path {0}/d; scgi_temp_path {0}/e; default_type text/html; \
         server {{ listen {listen}; root {0}; }} }}\n",
        root.path().display()
    );
    let config_path = root.path().join("nginx.conf");
    let config = if nix::unistd::geteuid().is_root() { config } else { config.replace("user root; ", "") };
    std::fs::write(&config_path, config).expect("a file can be written");
    let mut nginx = std::process::Command::new(tools::find("nginx"));
    let nginx = nginx.arg("-p").arg(root.path()).arg("-c").arg(config_path).args(["-g", "daemon off;"]);
    let _nginx = Server::start(nginx, "start worker process ", "-TERM");

    let url = |path: &str| format!("http://{}/{path}", stack.at("1.1", 30_080));
    let curl = async |args: &[&str], path: &str| {
        let output = root.path().join("output");
        let mut curl = tools::command("curl");
        curl.args(["-sS", "-w", "%{http_code}", "-o"]).arg(&output).args(args).arg(url(path));
        let (code, status, log) = tools::run(&mut curl).await;
        assert_eq!(code, Some(0), "{log}");
        (status, std::fs::read(output).expect("curl writes a file"))
    };
    for flag in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let (status, body) = curl(&[flag], "file").await;
        assert_eq!(status, "200", "{flag}");
        assert!(body == bytes, "{flag}: the file is the same");
    }
    let (status, body) = curl(&["-r", "1000000-1999999"], "file").await;
    assert_eq!(status, "206");
    assert!(body == bytes[1_000_000..2_000_000], "the range is the same");
    let (status, body) = curl(&["--compressed"], "page.html").await;
    assert_eq!((status.as_str(), body.len()), ("200", 23_000), "chunks of gzip arrive");
    let (status, _) = curl(&[], "none").await;
    assert_eq!(status, "404", "nginx's own");
    stack.stop().await;
}

/// h2load keeps many streams in flight on few connections.
#[tokio::test(flavor = "multi_thread")]
async fn h2load_has_no_failed_request() {
    let stack = web().await;
    for (port, path) in [(30_081, ""), (30_080, ""), (30_081, "bytes/20000")] {
        let url = format!("http://{}/{path}", stack.at("1.1", port));
        let mut h2load = tools::command("h2load");
        let (code, output, log) = tools::run(h2load.args(["-n", "3000", "-c", "6", "-m", "40", &url])).await;
        assert_eq!(code, Some(0), "{output}{log}");
        let done = "3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(output.contains(done), "{output}");
        assert!(output.contains("status codes: 3000 2xx"), "{output}");
    }
    stack.stop().await;
}

/// What clients that are not libraries of ours send: two requests in one segment, and one byte at a time.
#[tokio::test(flavor = "multi_thread")]
async fn requests_arrive_however_they_are_cut() {
    let stack = web().await;
    let mut stream = TcpStream::connect(stack.at("1.1", 30_080)).await.expect("the port is open");
    let two =
        "GET /bytes/3 HTTP/1.1\r\nhost: web\r\n\r\nGET /bytes/4 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    stream.write_all(two.as_bytes()).await.expect("requests are sent");
    let mut answers = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await;
    read.expect("answers in time").expect("answers");
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");

    let mut stream = TcpStream::connect(stack.at("1.1", 30_080)).await.expect("the port is open");
    stream.set_nodelay(true).expect("an option of TCP");
    let chunked = "PUT /upload HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                   5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n";
    for byte in chunked.bytes() {
        stream.write_u8(byte).await.expect("a byte is sent");
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("an answer in time").expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains(&blake3::hash(b"hello world").to_hex().to_string()), "{answer}");
    stack.stop().await;
}
