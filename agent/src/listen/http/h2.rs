//! HTTP/2 from a client. The protocol itself is the codec's; here is what it is told, what becomes of each stream, and when
//! the connection ends.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::{
    RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_local,
};

use self::keepalive::Keepalive;
use crate::{alarm::Alarm, forward::http::Session, http2::coalesce::Coalesced, local::Local};

mod keepalive;
mod stream;

/// Bytes that a client may send before they are passed on: per stream, and for all streams of a connection. The second must
/// be much larger, or one slow endpoint would stop the others; half of it is also the budget for small frames, beyond which
/// the codec gives up the connection.
const WINDOWS: (u32, u32) = (1 << 20, 16 << 20);

/// Streams that a client may have open.
const STREAMS: u32 = 200;

/// Time for a client to close an idle connection after GOAWAY.
const GOODBYE: Duration = Duration::from_secs(5);

/// A connection on its way through its life.
struct Served<IO> {
    session: Rc<Session>,
    io: Coalesced<IO>,
    connection: Connection<Coalesced<IO>, Bytes>,
    keepalive: Keepalive,
    alarm: Alarm,
    open: Rc<Cell<usize>>,
    /// Streams so far, and how many of them there were when the alarm was set.
    asked: (u64, u64),
    leaving: bool,
}

/// Counts a stream as open until dropped.
struct Open(Rc<Cell<usize>>);

/// Serves a connection of which `read` was read already. `alarm` is set to the time for the first request.
pub async fn serve<IO>(session: Rc<Session>, io: IO, read: BytesMut, alarm: Alarm)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = Coalesced::new(io, read);
    let Some(mut connection) = begin(&session.local, &io, &alarm).await else { return };
    let keepalive = Keepalive::new(&session.local, connection.ping_pong());
    let mut served =
        Served { session, io, connection, keepalive, alarm, open: Rc::default(), asked: (0, 0), leaving: false };
    poll_fn(|cx| served.poll(cx)).await;
}

/// Exchanges the first words; `None` if the client leaves or takes too long for them.
async fn begin<IO>(local: &Local, io: &Coalesced<IO>, alarm: &Alarm) -> Option<Connection<Coalesced<IO>, Bytes>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(local.limits.header_bytes).unwrap_or(u32::MAX))
        .enable_connect_protocol();
    let mut handshake = pin!(builder.handshake(io.clone()));
    poll_fn(|cx| match io.poll_run(cx, |cx| handshake.as_mut().poll(cx)) {
        Poll::Ready(begun) => Poll::Ready(begun.ok()),
        Poll::Pending if local.drain.is_over() => Poll::Ready(None),
        Poll::Pending => alarm.poll(cx).map(|()| None),
    })
    .await
}

// === impl Served ===

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Served<IO> {
    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let (io, local) = (self.io.clone(), self.session.local.clone());
            // How it ended is known from its requests.
            if io.poll_run(cx, |cx| self.poll_streams(cx)).is_ready() {
                return Poll::Ready(());
            }
            if self.keepalive.poll_dead(cx, &local, || io.has_heard()).is_ready() {
                return Poll::Ready(());
            }
            let rung = self.alarm.poll(cx).is_ready();
            if local.drain.is_over() {
                return Poll::Ready(());
            }
            if self.leaving {
                // Requests in flight end by themselves, or with the drain.
                return if rung && self.open.get() == 0 { Poll::Ready(()) } else { Poll::Pending };
            }
            let (asked, before) = self.asked;
            let active = self.open.get() > 0 || asked > before;
            if local.drain.is_draining() || (rung && !active) {
                self.leaving = true;
                self.connection.graceful_shutdown();
                self.alarm.set(Some(local.now() + GOODBYE));
            } else if rung {
                // Something was asked since the alarm was set, so the connection is idle for less than it takes.
                self.asked.1 = asked;
                self.alarm.set(Some(local.now() + local.limits.idle_timeout));
            } else {
                return Poll::Pending;
            }
        }
    }

    /// Moves all streams along and begins those that have come. Ready when there will be no more.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin_stream(request, respond),
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn begin_stream(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.asked.0 += 1;
        let (session, open) = (self.session.clone(), Open::new(&self.open));
        // Boxed, because it is moved several times until it runs, and holds all that a request needs.
        let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            stream::serve(session, request, respond).await;
            drop(open);
        });
        spawn_local(task);
    }
}

// === impl Open ===

impl Open {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
