//! TLS: ended with the certificate of a Secret, or passed through with nothing touched.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use api::proto::inspect::{ObjectKind, object::Kind as Content};
use tests::{
    backend::Backend,
    certificate::Issued,
    manifests::node,
    services::{echo_pod, manual, service},
    stack::Stack,
    tools,
    web::{Version, Web},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Nothing that is waited for takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

const NAME: &str = "shop.example.com";

const PORTS: &str = "{name: https, port: 443, targetPort: 8080, nodePort: 30443, appProtocol: https}, \
                     {name: tls, port: 444, targetPort: 8080, nodePort: 30444, appProtocol: tls}";

/// A sample backend behind ports that end TLS, as HTTPS and as bytes, with the certificate of Secret `cert`.
fn terminating(secret: &str) -> String {
    let service = service("web", "portico.dev/tls-secret: cert", PORTS);
    [&node("node-a", 1), &echo_pod("web-1", "web", "2.1"), &service, secret].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_the_secret_is_used_with_the_protocol_of_the_client() {
    let issued = Issued::new(NAME);
    let stack = Stack::start(&[("all.yaml", &terminating(&issued.secret("cert")))]).await;
    let https = stack.at("1.1", 30_443);
    for (offered, agreed, version) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..]), Version::Http2),
        (&["http/1.1"], Some(b"http/1.1"), Version::Http1),
        (&[], None, Version::Http1),
    ] {
        let stream = issued.connect(https, NAME, offered).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed, "{offered:?}");
        let mut client = Web::over(version, stream).await.expect("a connection");
        let (answer, _) = client.get("/").await.expect("an answer");
        let seen: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
        assert_eq!(answer.status(), 200, "{seen}");
        assert_eq!(seen["headers"]["x-forwarded-proto"][0], "https", "{seen}");
    }

    // curl is OpenSSL, with either version of TLS.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &issued.certificate).expect("a file can be written");
    for flags in [["--http2", "--tls-max", "1.3"], ["--http1.1", "--tls-max", "1.2"]] {
        let mut curl = tools::command("curl");
        curl.args(["-sS", "-w", "%{http_version} %{http_code}", "-o", "/dev/null", "--cacert"]).arg(&ca).args(flags);
        curl.args(["--resolve", &format!("{NAME}:30443:{}", stack.ip("1.1"))]).arg(format!("https://{NAME}:30443/"));
        let (code, output, log) = tools::run(&mut curl).await;
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(output, if flags[0] == "--http2" { "2 200" } else { "1.1 200" });
    }

    // Inside TLS that is not HTTPS, bytes are passed on as they are.
    let mut raw = issued.connect(stack.at("1.1", 30_444), NAME, &[]).await.expect("a handshake");
    raw.write_all(b"\x01hello").await.expect("it is connected");
    raw.shutdown().await.expect("it is connected");
    let mut echoed = Vec::new();
    timeout(PATIENCE, raw.read_to_end(&mut echoed)).await.expect("in time").expect("an orderly end");
    assert!(echoed.ends_with(b"\n\x01hello"), "{:?}", String::from_utf8_lossy(&echoed));
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_without_a_restart() {
    let (old, new) = (Issued::new(NAME), Issued::new(NAME));
    let stack = Stack::start(&[("all.yaml", &terminating("")), ("secret.yaml", &old.secret("cert"))]).await;
    let https = stack.at("1.1", 30_443);
    let stream = old.connect(https, NAME, &["http/1.1"]).await.expect("a handshake");
    let mut before = Web::over(Version::Http1, stream).await.expect("a connection");
    assert_eq!(before.get("/").await.expect("an answer").0.status(), 200);
    assert!(new.connect(https, NAME, &[]).await.is_err(), "the new certificate is not there yet");

    stack.write("secret.yaml", &new.secret("cert"));
    let replaced = async { while new.connect(https, NAME, &[]).await.is_err() {} };
    timeout(PATIENCE, replaced).await.expect("the new certificate is used");
    assert!(old.connect(https, NAME, &[]).await.is_err(), "the old certificate is not used any more");
    assert_eq!(before.get("/").await.expect("connections go on").0.status(), 200);

    // What is no certificate replaces none, and is reported where people look.
    stack.write("secret.yaml", &new.secret("cert").replace("BEGIN CERTIFICATE", "BEGIN NONSENSE"));
    stack
        .until(ObjectKind::Service, "the broken Secret is reported", |objects| {
            objects.iter().any(|object| match &object.kind {
                Some(Content::Service(_)) => format!("{object:?}").contains("tls-secret"),
                _ => false,
            })
        })
        .await;
    new.connect(https, NAME, &[]).await.expect("the last good certificate is used");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_the_handshake_fails_with_an_alert() {
    let stack = Stack::start(&[("all.yaml", &terminating(""))]).await;
    let error = Issued::new(NAME).connect(stack.at("1.1", 30_443), NAME, &[]).await.expect_err("no certificate");
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_speaks_http_to_an_https_port_is_told_so() {
    let stack = Stack::start(&[("all.yaml", &terminating(&Issued::new(NAME).secret("cert")))]).await;
    let url = format!("http://{}/", stack.at("1.1", 30_443));
    let (_, output, log) = tools::run(tools::command("curl").args(["-sS", "-w", " %{http_code}", &url])).await;
    assert!(output.ends_with(" 400") && output.contains("use https"), "{output}{log}");
    stack.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_passed_through_to_the_endpoint() {
    let issued = Issued::new(NAME);
    let port = "{port: 443, nodePort: 30443, appProtocol: https}";
    let all = node("node-a", 1) + &manual("web", "", port, &[("2.1", 9443)]);
    let stack = Stack::start(&[("all.yaml", &all)]).await;
    let acceptor = TlsAcceptor::from(issued.server());
    let (asked, mut names) = mpsc::unbounded_channel();
    let asked = Arc::new(asked);
    let _backend = Backend::start(stack.at("2.1", 9443), move |stream| {
        let (acceptor, asked) = (acceptor.clone(), asked.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let name = stream.get_ref().1.server_name().map(ToOwned::to_owned);
            asked.send(name).expect("the test waits for it");
            let (mut read, mut write) = tokio::io::split(&mut stream);
            // It ends as the client does.
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let mut stream = issued.connect(stack.at("1.1", 30_443), NAME, &[]).await.expect("the endpoint's certificate");
    assert_eq!(timeout(PATIENCE, names.recv()).await.expect("in time"), Some(Some(NAME.to_owned())));
    stream.write_all(b"secret").await.expect("it is connected");
    stream.shutdown().await.expect("it is connected");
    let mut echoed = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut echoed)).await.expect("in time").expect("an orderly end");
    assert_eq!(echoed, b"secret");

    // The first bytes of a client are not always whole, and not always TLS: the endpoint judges.
    let mut slow = TcpStream::connect(stack.at("1.1", 30_443)).await.expect("the port is open");
    slow.write_all(b"\x16\x03\x01").await.expect("it is connected");
    slow.shutdown().await.expect("it is connected");
    let end = timeout(PATIENCE, slow.read(&mut [0])).await.expect("an end in time");
    assert!(end.as_ref().map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |read| *read == 0), "{end:?}");
    stack.stop().await;
}
