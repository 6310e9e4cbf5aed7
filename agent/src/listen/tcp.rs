//! An accepted connection: what it dialled decides who serves it.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use api::resource::service::{AppProtocol, Transport};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{
    hop,
    http::{self, HttpRoute},
    tls,
};
use crate::{
    forward::{
        socket::reset_on_close,
        tcp::{
            connect::{candidates, connect},
            copy::{self, Copied},
        },
    },
    local::{Busy, ConnectionGuard, Local},
    report::{
        outcome::Outcome,
        record::{ClientSource, Downstream, OpenConnection},
    },
    table::{Frontend, FrontendKind, Target, Terminate},
};

/// Serves a connection that was accepted at `destination`, until it is over. `guard` counts it for as long.
pub async fn serve(
    local: Rc<Local>,
    stream: TcpStream,
    peer: SocketAddr,
    destination: SocketAddr,
    guard: ConnectionGuard,
) {
    let _guard = guard;
    let Some(frontend) = local.table().0.frontend(destination, Transport::Tcp).cloned() else {
        // The Service went while the connection waited to be accepted: the answer of a port that nobody listens on.
        return reset_on_close(&stream);
    };
    if frontend.kind == FrontendKind::Hop {
        return Box::pin(hop::serve(local, stream, peer)).await;
    }
    let downstream = Downstream {
        peer,
        local: destination,
        client: peer,
        client_source: ClientSource::Peer,
        frontend: frontend.kind,
        server_name: None,
        tls: false,
    };
    // Each is boxed, so that an idle connection takes the memory of its own kind instead of that of the largest one.
    match frontend.target.clone() {
        None => Box::pin(http::serve(local, stream, Arc::new(downstream), HttpRoute::Shared, None)).await,
        Some(target) => match (&target.tls, target.protocol) {
            (Terminate::With(_) | Terminate::Missing(_), _) => {
                Box::pin(terminated(local, stream, downstream, frontend, target)).await;
            }
            (Terminate::No, AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc) => {
                let route = HttpRoute::Frontend(frontend);
                Box::pin(http::serve(local, stream, Arc::new(downstream), route, None)).await;
            }
            (Terminate::No, AppProtocol::Opaque) => {
                Box::pin(pass_through(local, stream, downstream, "tcp", Vec::new(), target)).await;
            }
            (Terminate::No, AppProtocol::Tls) => Box::pin(sniffed(local, stream, downstream, target)).await,
        },
    }
}

/// TLS that ends here.
async fn terminated(
    local: Rc<Local>,
    stream: TcpStream,
    mut downstream: Downstream,
    frontend: Frontend,
    target: Arc<Target>,
) {
    let opaque = !target.protocol.is_http();
    if opaque && let Err(outcome) = candidates(&local, &target, &downstream) {
        reset_on_close(&stream);
        return open(&local, Arc::new(downstream), "tls", &target).close(outcome);
    }
    let certificate = || {
        let table = local.table();
        let current = table.0.frontend(downstream.local, Transport::Tcp).and_then(|frontend| frontend.target.as_ref());
        current.unwrap_or(&target).tls.clone()
    };
    let mut server_name = None;
    let handshake = tls::terminate(&local, stream, &mut server_name, certificate).await;
    downstream.server_name = server_name;
    downstream.tls = handshake.is_ok();
    match handshake {
        Err(outcome) => open(&local, Arc::new(downstream), "tls", &target).close(outcome),
        Ok(stream) if opaque => inside_tls(local, stream, downstream, target).await,
        Ok(stream) => {
            let http2 = stream.get_ref().1.alpn_protocol().map(|protocol| protocol == b"h2");
            http::serve(local, stream, Arc::new(downstream), HttpRoute::Frontend(frontend), http2).await;
        }
    }
}

/// TLS that ends at the endpoint.
async fn sniffed(local: Rc<Local>, mut stream: TcpStream, mut downstream: Downstream, target: Arc<Target>) {
    if let Err(outcome) = candidates(&local, &target, &downstream) {
        reset_on_close(&stream);
        return open(&local, Arc::new(downstream), "tls", &target).close(outcome);
    }
    let (first, server_name) = tls::sniff(&local, &mut stream).await;
    downstream.server_name = server_name;
    pass_through(local, stream, downstream, "tls", first, target).await;
}

/// Bytes that are not looked at; `first` was read already.
async fn pass_through(
    local: Rc<Local>,
    stream: TcpStream,
    downstream: Downstream,
    protocol: &'static str,
    first: Vec<u8>,
    target: Arc<Target>,
) {
    let downstream = Arc::new(downstream);
    let mut record = open(&local, downstream.clone(), protocol, &target);
    match connect(&local, &target, &downstream, &mut record).await {
        Ok((upstream, busy)) => {
            drop(target);
            let copied = copy::sockets(&local, &stream, &upstream, first, local.limits.tcp_idle_timeout).await;
            close(record, copied, busy);
        }
        Err(outcome) => {
            reset_on_close(&stream);
            record.close(outcome);
        }
    }
}

/// Bytes that are not looked at, after their encryption has ended here.
async fn inside_tls(local: Rc<Local>, mut stream: TlsStream<TcpStream>, downstream: Downstream, target: Arc<Target>) {
    let downstream = Arc::new(downstream);
    let mut record = open(&local, downstream.clone(), "tls", &target);
    match connect(&local, &target, &downstream, &mut record).await {
        Ok((mut upstream, busy)) => {
            drop(target);
            let copied = copy::streams(&local, &mut stream, &mut upstream, local.limits.tcp_idle_timeout).await;
            if copied.outcome != Outcome::Complete {
                reset_on_close(stream.get_ref().0);
                reset_on_close(&upstream);
            }
            close(record, copied, busy);
        }
        Err(outcome) => {
            reset_on_close(stream.get_ref().0);
            record.close(outcome);
        }
    }
}

fn open(
    local: &Rc<Local>,
    downstream: Arc<Downstream>,
    protocol: &'static str,
    target: &Arc<Target>,
) -> OpenConnection {
    let mut record = local.reporter.connection(downstream, protocol);
    record.note(|record| record.target = Some(target.for_long()));
    record
}

fn close(mut record: OpenConnection, copied: Copied, busy: Busy) {
    drop(busy);
    record.note(|record| (record.received, record.sent) = (copied.received, copied.sent));
    record.close(copied.outcome);
}
