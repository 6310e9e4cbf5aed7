//! HTTP/2 to an endpoint: few connections, each with many requests at once.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use tokio::{net::TcpStream, sync::Notify, task::spawn_local};

use crate::{
    http2::coalesce::Coalesced,
    report::{outcome::Outcome, via::Via},
};

pub mod flight;

/// Bytes that an endpoint may send before they are passed on: per stream, and for all streams of a connection. The second
/// must be much larger, or one slow client would stop the others; half of it is also the budget for small frames, beyond
/// which the codec gives up the connection.
const WINDOWS: (u32, u32) = (1 << 20, 16 << 20);

/// Streams given out before an endpoint has said how many it allows. They are opened when it has.
const STREAMS: usize = 100;

/// Bytes of the head of an answer.
const HEADER_BYTES: u32 = 16 << 10;

/// Connections of one worker to one endpoint. Beyond that, requests wait for a stream.
const CONNECTIONS: usize = 16;

/// Time without a request after which a connection is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Connections of one worker to one endpoint.
#[derive(Default)]
pub struct Connections {
    open: RefCell<Vec<Rc<Connection>>>,
    /// Somebody dials; everybody else waits for what comes of it.
    dialing: Cell<bool>,
    dialed: Notify,
    /// Why dialing failed last, and how often it has.
    failed: Cell<(u64, Option<(Outcome, Via)>)>,
}

/// A connection.
struct Connection {
    /// Nothing is sent through it but through clones of it, so that it waits for no stream.
    sender: RefCell<SendRequest<Bytes>>,
    /// How the endpoint was reached.
    via: Via,
    /// Streams open.
    streams: Cell<usize>,
    /// Streams that the endpoint allows.
    limit: Rc<Cell<usize>>,
    idle_since: Cell<Instant>,
}

/// The right to one stream of a connection.
pub struct Stream {
    connection: Rc<Connection>,
    /// The connection had carried a request before.
    pub reused: bool,
}

/// Whoever dials, and lets the next one try when it ends, however it ends.
struct Dialing<'a>(&'a Connections);

// === impl Connections ===

impl Connections {
    /// A stream over a connection that is there, or over a new one.
    ///
    /// # Errors
    /// Those of dialling, with the way that was tried.
    pub async fn stream<Dialled>(&self, dial: impl Fn() -> Dialled, now: Instant) -> Result<Stream, (Outcome, Via)>
    where
        Dialled: Future<Output = (Result<TcpStream, Outcome>, Via)>,
    {
        loop {
            if let Some(stream) = self.vacant() {
                return Ok(stream);
            }
            if !self.dialing.replace(true) {
                let dialing = Dialing(self);
                let (dialled, via) = dial().await;
                let connection = match dialled {
                    Ok(stream) => begin(stream, via, now).await.map_err(|outcome| (outcome, via)),
                    Err(outcome) => Err((outcome, via)),
                };
                if let Err(failed) = connection {
                    self.failed.set((self.failed.get().0 + 1, Some(failed)));
                }
                let connection = connection?;
                self.open.borrow_mut().push(connection.clone());
                drop(dialing);
                return Ok(Stream::new(connection, false));
            }
            let (failures, _) = self.failed.get();
            self.dialed.notified().await;
            // What the dialer could not reach, those who waited for it cannot either.
            if let (later, Some(failed)) = self.failed.get()
                && later > failures
            {
                return Err(failed);
            }
        }
    }

    /// A stream over a connection that is there: the first one with room, so that the others become idle and close.
    fn vacant(&self) -> Option<Stream> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| !connection.is_closed());
        let roomy = open.iter().find(|connection| connection.streams.get() < connection.limit.get());
        let least = || open.iter().min_by_key(|connection| connection.streams.get());
        let connection = match roomy {
            Some(connection) => connection,
            None if open.len() < CONNECTIONS => return None,
            None => least()?,
        };
        Some(Stream::new(connection.clone(), true))
    }

    /// Takes no more requests over the connections that are there; those in flight go on.
    pub fn clear(&self) {
        self.open.borrow_mut().clear();
    }

    /// Connections that are open.
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// Closes what is idle for long, or closed by the endpoint.
    pub fn sweep(&self, now: Instant) {
        self.open.borrow_mut().retain(|connection| {
            let idle = connection.streams.get() == 0 && now.duration_since(connection.idle_since.get()) > IDLE;
            !idle && !connection.is_closed()
        });
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}

/// HTTP/2 on a new connection.
async fn begin(stream: TcpStream, via: Via, now: Instant) -> Result<Rc<Connection>, Outcome> {
    let io = Coalesced::new(stream, BytesMut::new());
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .initial_max_send_streams(0)
        .max_header_list_size(HEADER_BYTES)
        .enable_push(false);
    // The handshake only writes; an endpoint that does not speak HTTP/2 shows with the first request.
    let (sender, connection) = builder.handshake(io.clone()).await.map_err(|_| Outcome::UpstreamClosed)?;
    let limit = Rc::new(Cell::new(STREAMS));
    let allowed = limit.clone();
    // Boxed, because a future that holds another is moved with it, and connections are large.
    let mut connection = Box::pin(connection);
    spawn_local(poll_fn(move |cx| {
        // How it ends is told to the requests on it.
        let polled = io.poll_run(cx, |cx| connection.as_mut().poll(cx));
        allowed.set(match connection.max_concurrent_send_streams() {
            0 => STREAMS,
            streams => streams,
        });
        polled.map(drop)
    }));
    Ok(Rc::new(Connection {
        sender: RefCell::new(sender),
        via,
        streams: Cell::new(0),
        limit,
        idle_since: Cell::new(now),
    }))
}

// === impl Connection ===

impl Connection {
    /// Takes no more requests: it is closed, or the endpoint is about to close it.
    fn is_closed(&self) -> bool {
        let ready = self.sender.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }
}

// === impl Stream ===

impl Stream {
    fn new(connection: Rc<Connection>, reused: bool) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection, reused }
    }

    /// How the endpoint was reached.
    pub fn via(&self) -> Via {
        self.connection.via
    }

    /// Notes when the stream ends, so that idle connections can be told.
    pub fn end(self, now: Instant) {
        self.connection.idle_since.set(now);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Stream(1 of {})", self.connection.streams.get())
    }
}
