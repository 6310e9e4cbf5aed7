//! TCP: accepting, and one connection from its first byte to its last.

use super::detect::{self, Opened, Speaks};
use super::grpc::Rpc;
use super::raw;
use super::replay::Replay;
use super::seen::{Connection, Identity};
use super::tasks::Tasks;
use super::web::{self, Session};
use bytes::BytesMut;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// How long accepting rests after a failure. The usual one is too many open files, which only time mends.
const REST: Duration = Duration::from_millis(50);

/// Room for the first read: a request with the usual headers, or the preface and settings of HTTP/2.
const FIRST_READ: usize = 4096;

/// The most header bytes of one HTTP/2 request: generous, since nothing behind a gateway should fail here first.
const HTTP2_HEADERS: u32 = 256 << 10;

/// What all connections of a backend share.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Who answers.
    pub identity: Arc<Identity>,
    /// Where gRPC calls go.
    pub rpc: Rpc,
    /// Where connections run.
    pub tasks: Tasks,
}

/// How long the first bytes of a connection may be under way. Whoever has been silent for longer has nothing in flight.
const MOMENT: Duration = Duration::from_secs(1);

/// Accepts until the drain starts, and then what the kernel has accepted already, which would be reset. Closing the
/// listener makes it refuse what comes later.
pub async fn accept(backend: Backend, listener: TcpListener) {
    let mut drain = backend.tasks.drain();
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                backend.tasks.spawn(serve_or_log(backend.clone(), stream, peer));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn serve_or_log(backend: Backend, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = serve(backend, stream, peer).await {
        tracing::debug!(%peer, error, "a connection ended early");
    }
}

async fn serve(backend: Backend, mut stream: TcpStream, peer: SocketAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    let mut drain = backend.tasks.drain();
    let opened = tokio::select! {
        biased;
        opened = detect::open(&mut stream, &mut buffer) => opened?,
        _ = async { tokio::join!(drain.started(), tokio::time::sleep(MOMENT)) } => return Ok(()),
    };
    let (speaks, proxied) = match opened {
        Opened::Speaks(speaks, proxied) => (speaks, proxied),
        Opened::Closed => return Ok(()),
        Opened::Malformed => return Err("the PROXY header is malformed".into()),
    };
    let connection = Connection { identity: backend.identity, peer, local, proxied };
    if speaks == Speaks::Raw {
        return Ok(raw::serve(&connection, buffer, stream).await?);
    }
    let session = Session { connection: Arc::new(connection), rpc: backend.rpc, tasks: backend.tasks };
    let io = TokioIo::new(Replay::new(buffer, stream));
    let service = service_fn(|request| web::answer(session.clone(), request));
    // Each arm: serve until the end, or until the drain starts, and then finish what is in flight.
    if speaks == Speaks::Http1 {
        let mut connection = pin!(http1().serve_connection(io, service).with_upgrades());
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = drain.started() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    } else {
        let mut connection = pin!(http2().serve_connection(io, service));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = drain.started() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The same timer bounds idle connections, and a proxy that keeps connections must be the one to close them: a
    // backend that does so first turns requests into failures.
    builder.header_read_timeout(None);
    // `nc` and the like close their side once the request is sent and still want the answer.
    builder.half_close(true);
    builder
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).enable_connect_protocol().max_header_list_size(HTTP2_HEADERS);
    builder
}
