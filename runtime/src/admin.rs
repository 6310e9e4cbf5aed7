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

use crate::{drain, port, ready::Readiness};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

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
    port::serve(listener, "admin", respond(admin, drain)).await;
}

/// The answers of a port.
fn respond(admin: Admin, drain: drain::Watch) -> impl port::Answer {
    let admin = Arc::new(admin);
    move |request: Request<Incoming>, peer: IpAddr| answer(request, peer, admin.clone(), drain.is_draining())
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
