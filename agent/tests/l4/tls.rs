//! TLS that passes through, and TLS that ends at the worker.

use std::{io, sync::Arc, time::Duration};

use agent::{
    local::Limits,
    report::outcome::Outcome,
    table::{
        Target, Terminate,
        certificate::{Alpn, TlsContext},
    },
};
use api::resource::{
    certificate::Certificate,
    name::NamespacedName,
    service::{AppProtocol, Transport},
};
use rustls::{
    AlertDescription, ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::harness::{Worker, endpoint, limits, run, run_paused, target};

const NAME: &str = "web.example.com";

/// A certificate for [`NAME`], and the configuration that serves it.
struct Identity {
    certificate: CertificateDer<'static>,
    server: Arc<ServerConfig>,
}

fn identity() -> Identity {
    let pair = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    let certificate = pair.cert.der().clone();
    let resource = Certificate {
        name: NamespacedName::new("default", "tls"),
        chain: vec![certificate.to_vec().into()],
        private_key: pair.signing_key.serialize_pem().into_bytes().into(),
    };
    let context = TlsContext::new().expect("the system has randomness");
    Identity { certificate, server: context.server(&resource, Alpn::None).expect("a good certificate") }
}

/// Dials the worker as [`NAME`], trusting `root` only.
async fn handshake(worker: &Worker, root: &Identity) -> io::Result<TlsStream<TcpStream>> {
    handshake_on(worker.dial().await, root).await
}

async fn handshake_on(stream: TcpStream, root: &Identity) -> io::Result<TlsStream<TcpStream>> {
    let mut store = RootCertStore::empty();
    store.add(root.certificate.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Answers every connection with what it sends, until it ends.
fn echo(listener: TcpListener) {
    spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn_local(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await?;
                to.shutdown().await
            });
        }
    });
}

async fn round_trip(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("open");
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).await.expect("open");
    assert_eq!(answer, bytes);
}

async fn terminating(identity: &Identity, limits: Limits) -> Worker {
    let (listener, address) = endpoint().await;
    echo(listener);
    let tls = Terminate::With(identity.server.clone());
    Worker::start(limits, Target { tls, ..target(Transport::Tcp, &[address]) }).await
}

#[test]
fn what_passes_through_is_untouched_and_its_name_noted() {
    run(async {
        let identity = identity();
        let (listener, address) = endpoint().await;
        let acceptor = TlsAcceptor::from(identity.server.clone());
        spawn_local(async move {
            let (stream, _) = listener.accept().await.expect("the worker dials");
            let mut stream = acceptor.accept(stream).await.expect("a handshake");
            assert_eq!(stream.get_ref().1.server_name(), Some(NAME));
            let mut bytes = vec![0; 100_000];
            stream.read_exact(&mut bytes).await.expect("open");
            stream.write_all(&bytes).await.expect("open");
            stream.shutdown().await.expect("open");
            // Leaving before the client has said goodbye would reset the connection.
            assert_eq!(stream.read(&mut [0]).await.expect("close_notify"), 0);
        });
        let through = Target { protocol: AppProtocol::Tls, ..target(Transport::Tcp, &[address]) };
        let worker = Worker::start(limits(), through).await;
        let mut client = handshake(&worker, &identity).await.expect("a handshake");
        round_trip(&mut client, &vec![7; 100_000]).await;
        assert_eq!(client.read(&mut [0]).await.expect("close_notify"), 0);
        client.shutdown().await.expect("open");
        let record = worker.record().await;
        assert_eq!((record.protocol, record.outcome), ("tls", Outcome::Complete));
        assert_eq!(record.downstream.server_name.as_deref(), Some(NAME));
        assert!(!record.downstream.tls, "it was not terminated here");
        assert!(record.received > 100_000, "the ClientHello counts, too");
    });
}

#[test]
fn what_is_not_tls_passes_through_all_the_same() {
    run(async {
        let (listener, address) = endpoint().await;
        echo(listener);
        let through = Target { protocol: AppProtocol::Tls, ..target(Transport::Tcp, &[address]) };
        let worker = Worker::start(limits(), through).await;
        for bytes in [&b"STARTTLS\r\n"[..], b"\x16", b"\x16\x03\x01\x40\x00\x01", b""] {
            let mut client = worker.dial().await;
            client.write_all(bytes).await.expect("open");
            client.shutdown().await.expect("open");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.expect("no reset");
            assert_eq!(answer, bytes);
            let record = worker.record().await;
            assert_eq!((record.outcome, record.downstream.server_name.as_deref()), (Outcome::Complete, None));
        }
    });
}

#[test]
fn tls_ends_here_and_both_ends_are_passed_on() {
    run(async {
        let identity = identity();
        let worker = terminating(&identity, limits()).await;
        let mut client = handshake(&worker, &identity).await.expect("a handshake");
        round_trip(&mut client, b"hello").await;
        round_trip(&mut client, &vec![3; 300_000]).await;
        client.shutdown().await.expect("open");
        assert_eq!(client.read(&mut [0]).await.expect("close_notify"), 0);
        let record = worker.record().await;
        assert_eq!((record.outcome, record.received, record.sent), (Outcome::Complete, 300_005, 300_005));
        assert_eq!(record.downstream.server_name.as_deref(), Some(NAME));
        assert!(record.downstream.tls);
    });
}

#[test]
fn a_client_that_forgets_close_notify_still_ends() {
    run(async {
        let identity = identity();
        let worker = terminating(&identity, limits()).await;
        let mut client = handshake(&worker, &identity).await.expect("a handshake");
        round_trip(&mut client, b"hello").await;
        client.get_mut().0.shutdown().await.expect("open");
        assert_eq!(client.read(&mut [0]).await.expect("close_notify"), 0);
        assert_eq!(worker.record().await.outcome, Outcome::Complete);
    });
}

#[test]
fn a_new_certificate_serves_the_next_handshake() {
    run(async {
        let (old, new) = (identity(), identity());
        let worker = terminating(&old, limits()).await;
        let mut before = handshake(&worker, &old).await.expect("a handshake");
        // Connected, but silent until the certificate has changed.
        let waiting = worker.dial().await;
        let (listener, address) = endpoint().await;
        echo(listener);
        let tls = Terminate::With(new.server.clone());
        worker.swap(Target { tls, ..target(Transport::Tcp, &[address]) });
        handshake(&worker, &old).await.expect_err("the old certificate is gone");
        assert_eq!(worker.record().await.outcome, Outcome::TlsHandshake);
        for stream in [waiting, worker.dial().await] {
            let mut after = handshake_on(stream, &new).await.expect("a handshake");
            round_trip(&mut after, b"new").await;
        }
        round_trip(&mut before, b"old").await;
    });
}

#[test]
fn without_a_certificate_the_client_is_told() {
    run(async {
        let identity = identity();
        let (_listener, address) = endpoint().await;
        let tls = Terminate::Missing(NamespacedName::new("default", "tls"));
        let worker = Worker::start(limits(), Target { tls, ..target(Transport::Tcp, &[address]) }).await;
        let error = handshake(&worker, &identity).await.expect_err("there is no certificate");
        let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).expect("an error of TLS");
        assert_eq!(*error, rustls::Error::AlertReceived(AlertDescription::HandshakeFailure));
        let record = worker.record().await;
        assert_eq!(record.outcome, Outcome::NoCertificate);
        assert_eq!(record.downstream.server_name.as_deref(), Some(NAME));
    });
}

#[test]
fn plain_http_gets_a_readable_answer() {
    run(async {
        let worker = terminating(&identity(), limits()).await;
        for request in [&b"GET / HTTP/1.1\r\nhost: web\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut client = worker.dial().await;
            client.write_all(request).await.expect("open");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("no reset");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            drop(client);
            assert!(matches!(worker.record().await.outcome, Outcome::Malformed(_)));
        }
    });
}

#[test]
fn what_is_neither_is_closed() {
    run(async {
        let worker = terminating(&identity(), limits()).await;
        for (bytes, expected) in [
            (&b"\0\0\0\0"[..], Outcome::TlsHandshake),
            (b"\x16\x03\x01\x00\x04junk", Outcome::TlsHandshake),
            (b"", Outcome::ClientClosed),
            (b"GE", Outcome::ClientClosed),
        ] {
            let mut client = worker.dial().await;
            client.write_all(bytes).await.expect("open");
            client.shutdown().await.expect("open");
            assert_eq!(worker.record().await.outcome, expected, "{bytes:?}");
        }
    });
}

#[test]
fn a_handshake_has_a_deadline() {
    run_paused(async {
        let limits = Limits { header_timeout: Duration::from_secs(5), ..limits() };
        let worker = terminating(&identity(), limits).await;
        for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
            let mut client = worker.dial().await;
            client.write_all(bytes).await.expect("open");
            let _ = client.read(&mut [0]).await;
            assert_eq!(worker.record().await.outcome, Outcome::HeaderTimeout);
        }
    });
}
