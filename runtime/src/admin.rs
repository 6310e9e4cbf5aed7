//! The admin port: HTTP/1.1 for probes, metrics and a look inside.
//!
//! | path | answer |
//! | --- | --- |
//! | `/livez` | 200 as long as the process answers at all |
//! | `/readyz` | 200, or 503 with what is missing, one name per line; `draining` from the start of a drain |
//! | `/metrics` | the component's registry in Prometheus' text format |
//! | `/debug/NAME` | state as text or JSON, to loopback peers only |
//!
//! It has no authentication and changes nothing. It survives the drain, because that is when people look.

use crate::{drain, ready::Readiness};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at a time. Further ones wait in the kernel's backlog: probes are short, and a scraper needs one.
const MAX_CONNECTIONS: usize = 256;
/// From the end of one request (or the accept) to the end of the head of the next. Longer than the usual scrape
/// interval of 30 s would keep idle connections for nothing; a scraper simply connects again.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this age a connection is closed between two requests, so that a peer that never reads cannot hold its place.
const MAX_AGE: Duration = Duration::from_secs(300);
/// How long a request may still run when its connection has reached its age.
const AGE_GRACE: Duration = Duration::from_secs(10);
/// The pause after `accept` failed for want of a resource, such as file descriptors. Trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A request head larger than this is answered with 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Writes a piece of state. It runs on a thread that may block.
pub type Dump = Box<dyn Fn() -> String + Send + Sync>;

/// What one component shows.
pub struct Admin {
    readiness: Readiness,
    registry: prometheus::Registry,
    dumps: BTreeMap<String, Dump>,
}

impl Admin {
    /// Readiness and metrics, without dumps.
    pub fn new(readiness: Readiness, registry: prometheus::Registry) -> Self {
        Admin { readiness, registry, dumps: BTreeMap::new() }
    }

    /// Adds `/debug/NAME`. A later dump of the same name replaces the earlier.
    pub fn debug(mut self, name: impl Into<String>, dump: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.dumps.insert(name.into(), Box::new(dump));
        self
    }

    fn paths(&self) -> String {
        let mut paths = String::from("/livez\n/readyz\n/metrics\n");
        for name in self.dumps.keys() {
            paths.push_str(&format!("/debug/{name}\n"));
        }
        paths
    }
}

/// Serves until it is dropped, also during the drain, which it shows but does not hold up. Dropping it closes its
/// connections.
pub async fn serve(listener: TcpListener, admin: Admin, drain: drain::Watch) {
    let admin = Arc::new(admin);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed, so there always is a place in the end.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (admin, drain) = (admin.clone(), drain.clone());
                connections.spawn(async move {
                    connection(stream, peer.ip(), admin, drain).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin port cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        // Finished tasks are collected here, so the set does not grow with the number of connections ever made.
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection until it closes, times out, or has reached its age.
async fn connection<IO>(io: IO, peer: IpAddr, admin: Arc<Admin>, drain: drain::Watch)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (admin, draining) = (admin.clone(), drain.is_draining());
        async move { Ok::<_, Infallible>(answer(request, peer, admin, draining).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_header_size(MAX_HEADER_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    // Errors are those of the peer: a reset, a timeout, a malformed request that hyper has answered.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(MAX_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(AGE_GRACE, connection).await;
}

async fn answer(request: Request<Incoming>, peer: IpAddr, admin: Arc<Admin>, draining: bool) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this port answers GET and HEAD\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let path = request.uri().path();
    match path {
        "/livez" => response(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => readyz(&admin.readiness, draining),
        "/metrics" => metrics(admin).await,
        _ => match path.strip_prefix("/debug/") {
            Some(name) if admin.dumps.contains_key(name) => debug(name.to_owned(), peer, admin).await,
            _ => response(StatusCode::NOT_FOUND, TEXT, format!("no such path; there are:\n{}", admin.paths())),
        },
    }
}

fn readyz(readiness: &Readiness, draining: bool) -> Response<Full<Bytes>> {
    let pending = readiness.pending();
    if draining {
        response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
    } else if pending.is_empty() {
        response(StatusCode::OK, TEXT, "ok\n")
    } else {
        response(StatusCode::SERVICE_UNAVAILABLE, TEXT, pending.join("\n") + "\n")
    }
}

async fn metrics(admin: Arc<Admin>) -> Response<Full<Bytes>> {
    // Gathering walks every series and runs the callbacks of observed instruments: not on a thread that polls.
    let text =
        tokio::task::spawn_blocking(move || prometheus::TextEncoder::new().encode_to_string(&admin.registry.gather()));
    match text.await {
        Ok(Ok(text)) => response(StatusCode::OK, PROMETHEUS, text),
        Ok(Err(error)) => failed(format!("metrics cannot be written: {error}\n")),
        Err(_) => failed("a metric panicked while it was read; see the log\n"),
    }
}

async fn debug(name: String, peer: IpAddr, admin: Arc<Admin>) -> Response<Full<Bytes>> {
    // A listener on [::] sees IPv4 peers as mapped addresses.
    if !peer.to_canonical().is_loopback() {
        return response(
            StatusCode::FORBIDDEN,
            TEXT,
            "/debug answers to loopback peers only; use kubectl port-forward\n",
        );
    }
    let dump = tokio::task::spawn_blocking(move || admin.dumps.get(&name).map(|dump| dump()));
    match dump.await {
        Ok(Some(text)) => {
            let kind = if text.starts_with(['{', '[']) { JSON } else { TEXT };
            response(StatusCode::OK, kind, text)
        }
        _ => failed("the dump panicked; see the log\n"),
    }
}

fn failed(message: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, message)
}

fn response(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
