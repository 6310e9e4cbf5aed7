//! A small HTTP/1.1 port for probes and scrapers: few connections, short waits, nothing that a peer can hold on to.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
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
pub(crate) const MAX_CONNECTIONS: usize = 256;
/// From the end of one request (or the accept) to the end of the head of the next. Longer than the usual scrape
/// interval of 30 s would keep idle connections for nothing; a scraper simply connects again.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this age a connection is closed between two requests, so that a peer that never reads cannot hold its place.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(300);
/// How long a request may still run when its connection has reached its age.
pub(crate) const AGE_GRACE: Duration = Duration::from_secs(10);
/// The pause after `accept` failed for want of a resource, such as file descriptors. Trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A request head larger than this is answered with 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Answers a request of a peer.
pub trait Answer: Send + Sync + 'static {
    /// Never fails; what goes wrong is an answer too.
    fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

impl<F, R> Answer for F
where
    F: Fn(Request<Incoming>, IpAddr) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send,
{
    fn answer(&self, request: Request<Incoming>, peer: IpAddr) -> impl Future<Output = Response<Full<Bytes>>> + Send {
        self(request, peer)
    }
}

/// Serves until it is dropped, which closes its connections. `name` is for the log.
pub async fn serve(listener: TcpListener, name: &'static str, answer: impl Answer) {
    let answer = Arc::new(answer);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed, so there always is a place in the end.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let answer = answer.clone();
                connections.spawn(async move {
                    connection(stream, peer.ip(), answer).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, port = name, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        // Finished tasks are collected here, so the set does not grow with the number of connections ever made.
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection until it closes, times out, or has reached its age.
pub(crate) async fn connection<IO>(io: IO, peer: IpAddr, answer: Arc<impl Answer>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer.answer(request, peer).await) }
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
