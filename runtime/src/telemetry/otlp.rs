//! Settings to exporters: gRPC through tonic, HTTP through hyper, TLS through rustls for both.

use super::export::Reactor;
use super::settings::{Destination, Protocol, Tls};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol as OtlpProtocol, SpanExporter, WithExportConfig,
    WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::metrics::Temporality;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// The largest answer that is read, as the OTLP specification recommends.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

/// Why an exporter could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file named by one of the `OTEL_EXPORTER_OTLP_*` variables cannot be read.
    #[error("cannot read {}, which OTEL_EXPORTER_OTLP_{variable} names", path.display())]
    File {
        /// The end of the variable's name.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Its content is not what it should be.
    #[error("{} has no usable certificate or key in PEM form", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// One half of the client's identity is missing.
    #[error("set both OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY, or neither")]
    HalfIdentity,
    /// The TLS settings do not fit together.
    #[error("TLS to the collector cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The SDK refused the settings.
    #[error("exporter for {endpoint} cannot be built")]
    Build {
        /// Where it would have sent to.
        endpoint: String,
        /// Why not.
        #[source]
        source: ExporterBuildError,
    },
}

/// Applies a destination to a builder. The builders have their methods from traits of the crate that cannot be named
/// together in one bound, hence a macro and not a function.
macro_rules! build {
    ($builder:expr, $to:expr, $reactor:expr $(, $temporality:expr)?) => {{
        // tonic starts the task of its channel while it is built.
        let _context = $reactor.handle().enter();
        let result = match $to.protocol {
            Protocol::Grpc => {
                let mut builder = $builder.with_tonic().with_endpoint(&$to.endpoint).with_timeout($to.timeout);
                if $to.endpoint.starts_with("https:") {
                    builder = builder.with_tls_config(grpc_tls(&$to.tls)?);
                }
                if let Some(compression) = $to.compression {
                    builder = builder.with_compression(compression);
                }
                builder$(.with_temporality($temporality))?.build()
            }
            Protocol::Http => {
                let client = Sender::new(&$to.tls, $to.timeout)?;
                let mut builder = $builder
                    .with_http()
                    .with_protocol(OtlpProtocol::HttpBinary)
                    .with_endpoint(&$to.endpoint)
                    .with_timeout($to.timeout)
                    .with_http_client(client);
                if let Some(compression) = $to.compression {
                    builder = builder.with_compression(compression);
                }
                builder$(.with_temporality($temporality))?.build()
            }
        };
        result.map_err(|source| Error::Build { endpoint: $to.endpoint.clone(), source })
    }};
}

/// An exporter of spans. The name is the value of `otel.component.type`.
pub(super) fn spans(to: &Destination, reactor: &Reactor) -> Result<(SpanExporter, &'static str), Error> {
    let name = match to.protocol {
        Protocol::Grpc => "otlp_grpc_span_exporter",
        Protocol::Http => "otlp_http_span_exporter",
    };
    Ok((build!(SpanExporter::builder(), to, reactor)?, name))
}

/// An exporter of metrics.
pub(super) fn metrics(to: &Destination, temporality: Temporality, reactor: &Reactor) -> Result<MetricExporter, Error> {
    build!(MetricExporter::builder(), to, reactor, temporality)
}

/// An exporter of log records.
pub(super) fn logs(to: &Destination, reactor: &Reactor) -> Result<LogExporter, Error> {
    build!(LogExporter::builder(), to, reactor)
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { variable, path: path.to_owned(), source })
}

/// The files of the client's certificate chain and key, if it has any.
fn identity(tls: &Tls) -> Result<Option<(&Path, &Path)>, Error> {
    match (&tls.certificate, &tls.key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err(Error::HalfIdentity),
    }
}

fn grpc_tls(tls: &Tls) -> Result<ClientTlsConfig, Error> {
    let mut config = match &tls.authority {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("CERTIFICATE", path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some((certificate, key)) = identity(tls)? {
        let (certificate, key) = (read("CLIENT_CERTIFICATE", certificate)?, read("CLIENT_KEY", key)?);
        config = config.identity(Identity::from_pem(certificate, key));
    }
    Ok(config)
}

fn http_tls(tls: &Tls) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    match &tls.authority {
        Some(path) => {
            for certificate in chain("CERTIFICATE", path)? {
                roots.add(certificate)?;
            }
        }
        // Some systems have certificates that do not parse; the others still count.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match identity(tls)? {
        Some((certificate, key)) => {
            let pem = read("CLIENT_KEY", key)?;
            let parsed = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| Error::Pem { path: key.to_owned() })?;
            config.with_client_auth_cert(chain("CLIENT_CERTIFICATE", certificate)?, parsed)?
        }
        None => config.with_no_client_auth(),
    })
}

fn chain(variable: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(variable, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| Error::Pem { path: path.to_owned() })
}

/// Sends requests of the HTTP exporters. Its calls run in the reactor's context, see [`super::export::Watched`].
#[derive(Debug)]
struct Sender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl Sender {
    fn new(tls: &Tls, timeout: Duration) -> Result<Self, Error> {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(http_tls(tls)?).https_or_http().enable_http1().build();
        Ok(Sender { client: Client::builder(TokioExecutor::new()).build(connector), timeout })
    }
}

#[tonic::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let response = self.client.request(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        tokio::time::timeout(self.timeout, exchange).await?
    }
}
