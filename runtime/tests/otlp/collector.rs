//! A collector that speaks OTLP over gRPC and HTTP, with or without TLS, and misbehaves on request.
//!
//! It runs on threads of its own, as a real one would, so that a test may block or be on any runtime.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Status};

/// What is said to every export of spans.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Accept,
    /// Accepts the batch, but not this many of its spans.
    Reject(i64),
    Fail(Code),
    /// Never answers.
    Hang,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire {
    Grpc,
    Http,
}

/// What arrived.
#[derive(Default)]
pub struct Received {
    pub spans: Vec<ResourceSpans>,
    pub metrics: Vec<ExportMetricsServiceRequest>,
    pub logs: Vec<ExportLogsServiceRequest>,
    /// Exports of spans, whatever the answer.
    pub attempts: usize,
}

impl Received {
    pub fn all_spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
    }
}

pub struct Collector {
    pub wire: Wire,
    pub received: Arc<Mutex<Received>>,
    pub address: SocketAddr,
    /// The certificate to trust, in a file, if it speaks TLS.
    pub certificate: Option<PathBuf>,
    _files: Option<tempfile::TempDir>,
    runtime: Option<Runtime>,
}

struct Keys {
    certificate: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Keys {
    fn new() -> Self {
        Keys { certificate: rcgen::generate_simple_self_signed(["localhost".into()]).unwrap() }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = self.certificate.signing_key.serialize_der().try_into().unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.cert.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Collector {
    pub fn start(wire: Wire, answer: Answer) -> Self {
        Self::with_keys(wire, answer, None)
    }

    pub fn start_tls(wire: Wire) -> Self {
        Self::with_keys(wire, Answer::Accept, Some(Keys::new()))
    }

    fn with_keys(wire: Wire, answer: Answer, keys: Option<Keys>) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Received::default()));
        let service = Service { answer, received: received.clone() };
        let files = keys.as_ref().map(|keys| {
            let files = tempfile::tempdir().unwrap();
            std::fs::write(files.path().join("ca.pem"), keys.certificate.cert.pem()).unwrap();
            files
        });
        let certificate = files.as_ref().map(|files| files.path().join("ca.pem"));
        let listening = runtime.handle().enter();
        let listener = TcpListener::from_std(listener).unwrap();
        drop(listening);
        match wire {
            Wire::Grpc => drop(runtime.spawn(grpc(listener, service, keys))),
            Wire::Http => drop(runtime.spawn(http(listener, service, keys))),
        }
        Collector { wire, received, address, certificate, _files: files, runtime: Some(runtime) }
    }

    /// Ends it. When this returns, its listener is closed and its port refuses connections.
    pub fn stop(mut self) {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(60));
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Service {
    answer: Answer,
    received: Arc<Mutex<Received>>,
}

impl Service {
    async fn traces(&self, request: ExportTraceServiceRequest) -> Result<ExportTraceServiceResponse, Status> {
        self.received.lock().unwrap().attempts += 1;
        let mut response = ExportTraceServiceResponse::default();
        match self.answer {
            Answer::Accept => {}
            Answer::Reject(rejected_spans) => {
                response.partial_success =
                    Some(ExportTracePartialSuccess { rejected_spans, error_message: "over quota".into() });
            }
            Answer::Fail(code) => return Err(Status::new(code, "as the test asked")),
            Answer::Hang => std::future::pending().await,
        }
        self.received.lock().unwrap().spans.extend(request.resource_spans);
        Ok(response)
    }
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        self.traces(request.into_inner()).await.map(tonic::Response::new)
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        self.received.lock().unwrap().metrics.push(request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, Status> {
        self.received.lock().unwrap().logs.push(request.into_inner());
        Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
    }
}

async fn grpc(listener: TcpListener, service: Service, keys: Option<Keys>) {
    let mut server = Server::builder();
    if let Some(keys) = keys {
        let identity = Identity::from_pem(keys.certificate.cert.pem(), keys.certificate.signing_key.serialize_pem());
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    }
    let gzip = tonic::codec::CompressionEncoding::Gzip;
    server
        .add_service(TraceServiceServer::new(service.clone()).accept_compressed(gzip))
        .add_service(MetricsServiceServer::new(service.clone()))
        .add_service(LogsServiceServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .unwrap();
}

async fn http(listener: TcpListener, service: Service, keys: Option<Keys>) {
    let acceptor = keys.map(|keys| keys.acceptor());
    let mut incoming = TcpListenerStream::new(listener);
    while let Some(Ok(stream)) = incoming.next().await {
        let (service, acceptor) = (service.clone(), acceptor.clone());
        tokio::spawn(async move {
            match acceptor {
                Some(acceptor) => http_connection(acceptor.accept(stream).await.unwrap(), service).await,
                None => http_connection(stream, service).await,
            }
        });
    }
}

async fn http_connection(io: impl AsyncRead + AsyncWrite + Unpin, service: Service) {
    let handler = service_fn(move |request: Request<Incoming>| {
        let service = service.clone();
        async move { Ok::<_, std::convert::Infallible>(http_answer(request, service).await) }
    });
    // The client closes when it likes; that is no failure of the collector.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), handler).await;
}

async fn http_answer(request: Request<Incoming>, service: Service) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let answer = match path.as_str() {
        "/v1/traces" => {
            let answer = service.traces(ExportTraceServiceRequest::decode(body).unwrap()).await;
            answer.map(|response| response.encode_to_vec())
        }
        "/v1/metrics" => {
            let request = ExportMetricsServiceRequest::decode(body).unwrap();
            service.received.lock().unwrap().metrics.push(request);
            Ok(Vec::new())
        }
        "/v1/logs" => {
            let request = ExportLogsServiceRequest::decode(body).unwrap();
            service.received.lock().unwrap().logs.push(request);
            Ok(Vec::new())
        }
        other => panic!("unknown path {other}"),
    };
    let (status, body) = match answer {
        Ok(body) => (200, body),
        Err(status) if status.code() == Code::Unavailable => (503, Vec::new()),
        Err(_) => (400, Vec::new()),
    };
    Response::builder().status(status).body(Full::from(body)).unwrap()
}
