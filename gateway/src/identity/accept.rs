//! Connections of the discovery port: plain, or behind a handshake. Strangers may be many and slow: what they can hold is
//! bounded, for one address and for all.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::refusal::{Reason, Refusal, Refusals};

/// How long a handshake may take, from the connection on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes under way: all, and of one address. An agent needs one or two.
const HANDSHAKES: usize = 512;
const HANDSHAKES_OF_ONE: usize = 16;

/// Connections open at once: four for each node of the largest cluster.
const CONNECTIONS: usize = 20_000;

/// How long to wait when the system gives no connection, for example because too many files are open.
const PAUSE: Duration = Duration::from_millis(100);

/// The first byte of a TLS handshake (RFC 8446 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

/// Where connections go.
pub type Ready = mpsc::Sender<io::Result<Link>>;

/// A connection.
#[derive(Debug)]
pub struct Link {
    io: Io,
    info: TcpConnectInfo,
    _open: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How many handshakes are under way, by address.
#[derive(Debug, Default)]
struct Ongoing(Mutex<HashMap<IpAddr, usize>>);

/// One handshake, counted until it is dropped.
#[derive(Debug)]
struct Turn {
    ongoing: Arc<Ongoing>,
    address: IpAddr,
}

/// Hands over connections until nobody takes them any more; with `tls` only those that complete a handshake.
pub async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, refusals: Arc<Refusals>, ready: Ready) {
    match tls {
        Some(config) => accept_tls(listener, TlsAcceptor::from(config), refusals, ready).await,
        None => accept_plain(listener, ready).await,
    }
}

async fn accept_plain(listener: TcpListener, ready: Ready) {
    while let Some((stream, peer)) = next(&listener, &ready).await {
        let info = info(&stream, peer);
        if ready.send(Ok(Link { io: Io::Plain(stream), info, _open: None })).await.is_err() {
            return;
        }
    }
}

async fn accept_tls(listener: TcpListener, acceptor: TlsAcceptor, refusals: Arc<Refusals>, ready: Ready) {
    let ongoing = Arc::<Ongoing>::default();
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let mut handshakes = JoinSet::new();
    while let Some((stream, peer)) = next(&listener, &ready).await {
        while handshakes.try_join_next().is_some() {}
        let turn = ongoing.turn(peer.ip());
        let (Some(turn), Ok(permit)) = (turn, open.clone().try_acquire_owned()) else {
            let refusal = Refusal::new(Reason::TooManyConnections, "too many connections at once");
            refusals.note(&peer.to_string(), None, &refusal);
            continue;
        };
        let (acceptor, ready, refusals) = (acceptor.clone(), ready.clone(), refusals.clone());
        handshakes.spawn(async move {
            let info = info(&stream, peer);
            let shaken = timeout(HANDSHAKE_TIMEOUT, handshake(stream, acceptor)).await;
            drop(turn);
            let late = || Refusal::new(Reason::HandshakeTimeout, format!("no handshake within {HANDSHAKE_TIMEOUT:?}"));
            match shaken.unwrap_or_else(|_| Err(Some(late()))) {
                Ok(stream) => {
                    // The server may be gone by now; then so is the connection.
                    let _ = ready.send(Ok(Link { io: Io::Tls(Box::new(stream)), info, _open: Some(permit) })).await;
                }
                Err(Some(refusal)) => refusals.note(&peer.to_string(), None, &refusal),
                Err(None) => tracing::debug!(%peer, "connection closed before its first byte"),
            }
        });
    }
}

/// Shakes hands. No refusal is given to those who left without a word, as health checks of a TCP port do.
async fn handshake(stream: TcpStream, acceptor: TlsAcceptor) -> Result<TlsStream<TcpStream>, Option<Refusal>> {
    let mut first = [0; 1];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(None),
        Ok(_) if first[0] != HANDSHAKE_RECORD => {
            let message = "not TLS; agents connect with an https URL or --gateway-service";
            return Err(Some(Refusal::new(Reason::Plaintext, message)));
        }
        Ok(_) => {}
    }
    let failed = |error: io::Error| Some(Refusal::new(Reason::Handshake, format!("TLS handshake failed: {error}")));
    acceptor.accept(stream).await.map_err(failed)
}

/// The next connection; `None` when nobody takes them any more.
async fn next(listener: &TcpListener, ready: &Ready) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return None,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Without it answers wait for acknowledgements, nothing worse.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer));
            }
            Err(error) => {
                tracing::warn!(%error, "the discovery port cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn info(stream: &TcpStream, peer: SocketAddr) -> TcpConnectInfo {
    TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) }
}

// === impl Ongoing ===

impl Ongoing {
    fn turn(self: &Arc<Self>, address: IpAddr) -> Option<Turn> {
        let mut ongoing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = if ongoing.len() >= HANDSHAKES { HANDSHAKES } else { ongoing.values().sum() };
        let one = ongoing.get(&address).copied().unwrap_or_default();
        if all >= HANDSHAKES || one >= HANDSHAKES_OF_ONE {
            return None;
        }
        ongoing.insert(address, one + 1);
        Some(Turn { ongoing: self.clone(), address })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut ongoing = self.ongoing.0.lock().unwrap_or_else(PoisonError::into_inner);
        match ongoing.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(ongoing.remove(&self.address)),
        }
    }
}

// === impl Link ===

impl Connected for Link {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_hold_the_port_and_all_together_are_bounded() {
        let ongoing = Arc::<Ongoing>::default();
        let address = |index: u32| IpAddr::from(index.to_be_bytes());
        let mut turns: Vec<_> = (0..HANDSHAKES_OF_ONE).map(|_| ongoing.turn(address(1)).expect("a turn")).collect();
        assert!(ongoing.turn(address(1)).is_none());
        turns.extend((2..).map_while(|index| ongoing.turn(address(index))));
        assert_eq!(turns.len(), HANDSHAKES);
        turns.clear();
        assert!(ongoing.0.lock().expect("no panic").is_empty(), "what ended is forgotten");
        assert!(ongoing.turn(address(1)).is_some());
    }
}
