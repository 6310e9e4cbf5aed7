//! The kubelet's own server, which the API server asks for `kubectl logs` and `kubectl exec`.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{
    Config,
    node::PORT,
    running::{Name, Running},
};

/// Commands in containers.
mod exec;
/// What containers have said.
mod logs;

type Body = BoxBody<Bytes, Infallible>;

/// Which certificate the server has, and whose clients it serves.
#[derive(Debug, Clone)]
pub struct Serving {
    /// File in PEM.
    pub certificate: PathBuf,
    /// File in PEM.
    pub key: PathBuf,
    /// File in PEM: clients need a certificate of this authority.
    pub authority: PathBuf,
}

/// What is asked for cannot be had; the text is for who typed the command.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
}

/// Serves at every address of the node, for ever.
///
/// # Errors
/// When the certificate cannot be used, or the port is taken.
pub async fn run(config: Config, running: Running) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&config.serving)?));
    let serve =
        config.addresses.iter().map(|address| accept(*address, acceptor.clone(), config.state.clone(), &running));
    futures::future::try_join_all(serve).await.map(drop)
}

fn tls(serving: &Serving) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificates = |path: &Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        all.with_context(|| format!("certificates in {}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&serving.authority)?);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let key =
        PrivateKeyDer::from_pem_file(&serving.key).with_context(|| format!("key in {}", serving.key.display()))?;
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_client_cert_verifier(clients).with_single_cert(certificates(&serving.certificate)?, key)?)
}

async fn accept(address: IpAddr, acceptor: TlsAcceptor, state: PathBuf, running: &Running) -> anyhow::Result<()> {
    let to = SocketAddr::new(address, PORT);
    let listener = TcpListener::bind(to).await.with_context(|| format!("cannot listen on {to}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, state, running) = (acceptor.clone(), state.clone(), running.clone());
        tokio::spawn(async move {
            // Who has no certificate is turned away here.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let answer = service_fn(move |request| {
                let (state, running) = (state.clone(), running.clone());
                async move { Ok::<_, Infallible>(answer(&state, &running, request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            // Its end is of no interest: who asked has the answer, or has gone.
            let _ = connection.with_upgrades().await;
        });
    }
}

fn answer(state: &Path, running: &Running, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    let name = |namespace: &str, pod: &str, container: &str| Name {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
    };
    let answer = match words[..] {
        ["containerLogs", namespace, pod, container] => {
            logs::answer(state, running, name(namespace, pod, container), request.uri().query().unwrap_or_default())
        }
        ["exec", namespace, pod, container] => exec::answer(running, &name(namespace, pod, container), request),
        _ => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("the sandbox's kubelets serve logs and exec, and not {path}; see docs/sandbox.md"),
        )),
    };
    answer.unwrap_or_else(Refusal::response)
}

/// The values of a query, decoded, in their order.
fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    let decoded = form_urlencoded::parse(query.as_bytes());
    decoded.map(|(name, value)| (name.into_owned(), value.into_owned()))
}

// === impl Refusal ===

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    fn response(self) -> Response<Body> {
        let mut response = Response::new(Full::new(Bytes::from(self.text)).boxed());
        *response.status_mut() = self.status;
        response
    }
}
