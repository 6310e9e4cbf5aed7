//! Sockets to endpoints and clients: dialing, and what tokio's stream does not offer.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::report::outcome::Outcome;

/// Silence after which the kernel asks whether the other end still exists. Connections may idle for a day, so without
/// asking, those to a node that lost power would pile up.
///
/// `TCP_USER_TIMEOUT` is left alone on purpose for opaque bytes and towards clients: it also ends connections whose reader
/// pauses with a full window, which one under a pager or a debugger does for as long as it likes.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new().with_time(Duration::from_secs(60));

/// Mark of every packet that our own sockets send where traffic is intercepted: packet rules let them pass.
pub const OWN_MARK: u32 = 0x51;

/// From which address a socket to an endpoint sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// As the system chooses. Nothing is intercepted.
    #[default]
    System,
    /// As the system chooses, which is an address of the node, with [`OWN_MARK`].
    Node,
    /// The client's, with [`OWN_MARK`].
    Client(SocketAddr),
}

// === impl Source ===

impl Source {
    /// The client whose address an endpoint sees.
    pub fn client(self) -> Option<IpAddr> {
        match self {
            Source::Client(client) => Some(client.ip()),
            Source::System | Source::Node => None,
        }
    }
}

/// Connects to an endpoint, waiting for at most `limit`. Small writes leave at once (`TCP_NODELAY`).
///
/// # Errors
/// [`Outcome::ConnectRefused`], [`Outcome::ConnectTimeout`] or [`Outcome::ConnectFailed`]; after each of them nothing of a
/// request has left.
pub async fn dial(address: SocketAddr, source: Source, limit: Duration) -> Result<TcpStream, Outcome> {
    match timeout(limit, connect(address, source)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(outcome(&error)),
        Err(_) => Err(Outcome::ConnectTimeout),
    }
}

async fn connect(address: SocketAddr, source: Source) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&KEEPALIVE)?;
    if source != Source::System {
        // The client's own port may be that of a connection to the same endpoint, so there is a new one. It is chosen
        // when the endpoint is known: each of them has all ports.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        leave(&SockRef::from(&socket), source, 0)?;
    }
    socket.connect(address).await
}

/// Makes a socket send from `source`; from this port of the client, if that is free, or any if it is 0. Where the system does not grant
/// that address, the socket sends from the node's: a client that is seen as another one is better served than none.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn leave(socket: &Socket, source: Source, port: u16) -> io::Result<()> {
    let client = match source {
        Source::System => return Ok(()),
        Source::Node => return socket.set_mark(OWN_MARK),
        Source::Client(client) => client,
    };
    socket.set_mark(OWN_MARK)?;
    match client {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    let bind = |port| socket.bind(&SocketAddr::new(client.ip(), port).into());
    // Somebody has the port, such as another flow of the same client.
    let bound = bind(port).or_else(|error| if port == 0 { Err(error) } else { bind(0) });
    if let Err(error) = bound {
        tracing::warn!(client = %client.ip(), "cannot dial with the client's address: {error}; the endpoint sees the node");
    }
    Ok(())
}

/// Takes an endpoint for dead that has not acknowledged what was sent for `limit`, or does not answer when it is asked
/// after as much silence. It is for connections of requests, which somebody waits for.
pub fn give_up_after(stream: &TcpStream, limit: Duration) {
    const LEAST: Duration = Duration::from_secs(1);
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(limit.max(LEAST)).with_interval((limit / 4).max(LEAST));
    // They fail only on sockets that are no longer connected, which the first use shows.
    let _ = socket.set_tcp_user_timeout(Some(limit)).and_then(|()| socket.set_tcp_keepalive(&probes));
}

fn outcome(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::ConnectRefused,
        io::ErrorKind::TimedOut => Outcome::ConnectTimeout,
        _ => Outcome::ConnectFailed,
    }
}

/// Makes closing `stream` send RST instead of FIN: the other end learns that the connection failed instead of taking
/// what it has for the whole.
pub fn reset_on_close(stream: &TcpStream) {
    // It fails only on sockets that are no longer connected, which have nobody left to tell.
    let _ = stream.set_zero_linger();
}

/// Reads and writes through a shared borrow, so that both directions of a connection and a watch for its reset can use
/// it side by side. One task at a time may wait for each of reading and writing.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a>(pub &'a TcpStream);

// === impl Shared ===

impl Shared<'_> {
    /// Runs `io` on at most `wanted` bytes. Moving fewer says that the socket is drained or full, as trying again would
    /// (epoll(7), question 9), so the next call waits without trying.
    fn try_io(
        self,
        interest: Interest,
        wanted: usize,
        io: impl FnOnce(&socket2::Socket) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut moved = 0;
        let tried = self.0.try_io(interest, || {
            moved = io(&SockRef::from(self.0))?;
            if (1..wanted).contains(&moved) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if moved > 0 { Ok(moved) } else { tried.map(|()| 0) }
    }
}

impl AsyncRead for Shared<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match self.try_io(Interest::READABLE, unfilled.len(), |mut socket| socket.read(unfilled)) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Shared<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.try_io(Interest::WRITABLE, bytes.len(), |mut socket| socket.write(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.0).shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_connection_is_not_delayed_and_kept_alive() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let stream = dial(listener.local_addr().expect("bound"), Source::System, LIMIT).await.expect("listening");
        assert!(stream.nodelay().expect("open"));
        assert!(SockRef::from(&stream).keepalive().expect("open"));
    }

    #[tokio::test]
    async fn an_endpoint_of_requests_is_given_up_when_it_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let stream = dial(listener.local_addr().expect("bound"), Source::System, LIMIT).await.expect("listening");
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().expect("open"), None);
        give_up_after(&stream, Duration::from_millis(20_500));
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().expect("open"), Some(Duration::from_millis(20_500)));
        assert_eq!(socket.tcp_keepalive_time().expect("open"), Duration::from_secs(20));
        assert_eq!(socket.tcp_keepalive_interval().expect("open"), Duration::from_secs(5));
        // Whole seconds are the least that the kernel takes.
        give_up_after(&stream, Duration::from_millis(300));
        assert_eq!(SockRef::from(&stream).tcp_keepalive_interval().expect("open"), Duration::from_secs(1));
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let socket = TcpSocket::new_v4().expect("descriptors");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
        // Bound but not listening: the port is ours, and refuses.
        let refusing = socket.local_addr().expect("bound");
        assert_eq!(dial(refusing, Source::System, LIMIT).await.err(), Some(Outcome::ConnectRefused));

        // TCP has no broadcast.
        let nowhere = SocketAddr::from(([255, 255, 255, 255], 1));
        assert_eq!(dial(nowhere, Source::System, LIMIT).await.err(), Some(Outcome::ConnectFailed));
    }

    #[tokio::test]
    async fn an_endpoint_that_says_nothing_times_out() {
        let socket = TcpSocket::new_v4().expect("descriptors");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
        // One connection fits into a backlog of 0; the kernel ignores the SYNs of all others.
        let listener = socket.listen(0).expect("bound");
        let address = listener.local_addr().expect("listening");
        let _first = dial(address, Source::System, LIMIT).await.expect("one fits");
        let _second = dial(address, Source::System, Duration::from_millis(50)).await;
        assert_eq!(dial(address, Source::System, Duration::from_millis(50)).await.err(), Some(Outcome::ConnectTimeout));
    }
}
