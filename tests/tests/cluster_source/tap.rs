//! A way to the API server that can be slow or closed, and that tells what passed. On one side it speaks plain HTTP, on the
//! other TLS with the certificate of the administrator.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tests::sandbox::{
    plan::{API_PORT, HOST},
    state::ROOT,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsConnector;

/// Bytes that are passed on at a time.
const CHUNK: usize = 2048;

/// What passed, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Targets of requests: paths with queries.
    pub requests: Vec<String>,
    /// Bookmarks: the target of the watch, and the version.
    pub bookmarks: Vec<(String, String)>,
}

/// How the way is.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Each change ends all connections.
    cuts: usize,
    closed: bool,
    /// Before each chunk.
    pause: Duration,
}

/// The way. It ends with the test's runtime.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    state: watch::Sender<State>,
    passed: Arc<Mutex<Passed>>,
}

// === impl Tap ===

impl Tap {
    /// Opens a way to the sandbox's API server.
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (state, passed) = (watch::Sender::new(State::default()), Arc::<Mutex<Passed>>::default());
        let (tls, from, to) = (connector(), state.clone(), passed.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut state, tls, passed) = (from.subscribe(), tls.clone(), to.clone());
                let begun = *state.borrow_and_update();
                if begun.closed {
                    continue;
                }
                tokio::spawn(async move {
                    let changes = state.clone();
                    tokio::select! {
                        _ = state.wait_for(|now| now.cuts != begun.cuts) => {}
                        () = carry(client, &tls, &changes, &passed) => {}
                    }
                });
            }
        });
        Self { address, state, passed }
    }

    /// A client that goes this way.
    pub fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(format!("http://{}", self.address).parse().expect("a URL"));
        config.proxy_url = None;
        config.default_retry = false;
        kube::Client::try_from(config).expect("a client")
    }

    /// Ends all connections. New ones are served.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Ends all connections, and new ones at once, or serves them again.
    pub fn close(&self, closed: bool) {
        self.state.send_modify(|state| (state.cuts, state.closed) = (state.cuts + 1, closed));
    }

    /// Makes every two KiB wait.
    pub fn slow(&self, pause: Duration) {
        self.state.send_modify(|state| state.pause = pause);
    }

    /// What passed so far.
    pub fn passed(&self) -> Passed {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// TLS 1.3 with the administrator's certificate. Nothing is agreed on by ALPN, so it is HTTP/1.1.
fn connector() -> TlsConnector {
    let pki = Path::new(ROOT).join("pki");
    let certificates = |name: &str| {
        let all = CertificateDer::pem_file_iter(pki.join(name)).and_then(Iterator::collect);
        all.unwrap_or_else(|error: rustls::pki_types::pem::Error| panic!("{name}: {error}"))
    };
    let mut roots = RootCertStore::empty();
    let authority: Vec<CertificateDer<'static>> = certificates("ca.crt");
    roots.add_parsable_certificates(authority);
    let key = PrivateKeyDer::from_pem_file(pki.join("admin.key")).expect("the administrator's key");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
    let config = config.with_client_auth_cert(certificates("admin.crt"), key).expect("a certificate and its key");
    TlsConnector::from(Arc::new(config))
}

/// Carries both directions until either ends.
async fn carry(client: TcpStream, tls: &TlsConnector, state: &watch::Receiver<State>, passed: &Mutex<Passed>) {
    let Ok(server) = TcpStream::connect((HOST[0], API_PORT)).await else { return };
    let Ok(server) = tls.connect(ServerName::IpAddress(HOST[0].into()), server).await else { return };
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = tokio::io::split(server);
    let target = Mutex::new(String::new());
    let note = |change: &mut dyn FnMut(&mut Passed, &mut String)| {
        let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut passed, &mut target.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let asked = |line: &str| {
        let Some(asked) = line.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()) else { return };
        note(&mut |passed, target| {
            passed.requests.push(asked.to_owned());
            asked.clone_into(target);
        });
    };
    let said = |line: &str| {
        if let Some(version) = bookmark(line) {
            note(&mut |passed, target| passed.bookmarks.push((target.clone(), version.clone())));
        }
    };
    // An end of one side is the end of both.
    tokio::select! {
        _ = copy(client_reader, server_writer, state, asked) => {}
        _ = copy(server_reader, client_writer, state, said) => {}
    }
}

/// Passes bytes on, and tells the lines among them.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: &watch::Receiver<State>,
    tell: impl Fn(&str),
) -> std::io::Result<()> {
    let (mut buffer, mut line) = (vec![0; CHUNK], Vec::new());
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let pause = state.borrow().pause;
        tokio::time::sleep(pause).await;
        for byte in &buffer[..length] {
            if *byte == b'\n' {
                tell(String::from_utf8_lossy(&line).trim_end());
                line.clear();
            } else {
                line.push(*byte);
            }
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}

/// The version of a bookmark, if the line of a watch is one.
fn bookmark(line: &str) -> Option<String> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    (event["type"] == "BOOKMARK").then_some(())?;
    Some(event["object"]["metadata"]["resourceVersion"].as_str()?.to_owned())
}
