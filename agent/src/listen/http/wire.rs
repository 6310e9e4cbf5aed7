//! A downstream connection of HTTP/1.1 as bytes, shared between the task that answers and the request's body, which reads
//! from it while the answer is awaited.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    alarm::Alarm,
    forward::{body::BodyError, outbox::Outbox},
    http1::{
        HeadLimits, Refused,
        body::Decoder,
        chunked::Piece,
        framing::Framing,
        lines::Lines,
        request::{self, RequestHead},
    },
    local::Local,
};

/// Room that is asked for when a body of unknown length keeps coming in large pieces.
const UNKNOWN: u64 = 1 << 20;

/// Pieces from which a body of unknown length counts as large.
const LARGE: usize = 8 << 10;

/// Bytes of further requests that are taken in while one is answered. More than that stays in the socket.
const PIPELINED: usize = 64 << 10;

/// How long the answer is still awaited after the client has closed its direction. It may have left, or only have nothing
/// more to ask, as `nc` does at the end of its input; the kernel does not tell which.
const HALF_CLOSED: Duration = Duration::from_secs(1);

/// What is read and discarded after the last answer, so that the client gets to see it: closing with unread bytes would
/// make the kernel send RST, which overtakes the answer.
const LINGER: (usize, Duration) = (1 << 20, Duration::from_secs(2));

/// A connection.
pub struct Wire<IO> {
    io: IO,
    buffer: BytesMut,
    lines: Lines,
    decoder: Decoder,
    /// What is to be written.
    pub outbox: Outbox,
    /// Size of the piece read last.
    last_read: usize,
    /// The client has closed its direction.
    ended: bool,
    /// Rings when a client that has closed its direction counts as gone.
    leaving: Option<Alarm>,
}

/// The body of the request that is on a connection.
pub struct Upload<IO> {
    wire: Rc<RefCell<Wire<IO>>>,
    local: Rc<Local>,
}

// === impl Wire ===

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    /// Wraps a connection, of which `read` was read already.
    pub fn new(io: IO, read: BytesMut) -> Self {
        Self {
            io,
            buffer: read,
            lines: Lines::default(),
            decoder: Decoder::new(Framing::Empty),
            outbox: Outbox::default(),
            last_read: 0,
            ended: false,
            leaving: None,
        }
    }

    /// Nothing of a next request has come.
    pub fn is_idle(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The body of the current request was read to its end.
    pub fn is_uploaded(&self) -> bool {
        self.decoder.is_done()
    }

    /// Reads the head of the next request; `None` if the client closes, between requests or in the middle of a head.
    ///
    /// # Errors
    /// When the bytes are not a request.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, local: &Local) -> Poll<Result<Option<RequestHead>, Refused>> {
        let limits = HeadLimits { bytes: local.limits.header_bytes, fields: local.limits.headers };
        loop {
            if !self.buffer.is_empty() {
                match request::take(&mut self.buffer, &mut self.lines, limits) {
                    Ok(None) => {}
                    Ok(Some(head)) => {
                        self.lines = Lines::default();
                        self.decoder = Decoder::new(head.framing);
                        if self.buffer.is_empty() {
                            self.buffer = BytesMut::new();
                        }
                        return Poll::Ready(Ok(Some(head)));
                    }
                    Err(refused) => return Poll::Ready(Err(refused)),
                }
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            match ready!(local.buffers.poll_read(&mut self.io, cx, &mut self.buffer, 0)) {
                Ok(0) | Err(_) => return Poll::Ready(Ok(None)),
                Ok(_) => {}
            }
        }
    }

    /// Reads the body of the current request.
    fn poll_upload(&mut self, cx: &mut Context<'_>, local: &Local) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.decoder.next(&mut self.buffer) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::End(trailers)) => {
                    if self.buffer.is_empty() {
                        local.buffers.give_back(std::mem::take(&mut self.buffer));
                    }
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Ok(Piece::Partial) => {}
                Err(refused) => return Poll::Ready(Some(Err(BodyError::Client(refused)))),
            }
            let expected = self.decoder.left().unwrap_or(if self.last_read > LARGE { UNKNOWN } else { 0 });
            match ready!(local.buffers.poll_read(&mut self.io, cx, &mut self.buffer, expected)) {
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(BodyError::ClientGone))),
                Ok(read) => self.last_read = read,
            }
        }
    }

    /// Ready when the client has left while its answer is awaited. Bytes of further requests are kept.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, local: &Local) -> Poll<()> {
        if local.drain.is_over() {
            return Poll::Ready(());
        }
        // As long as the body comes, whoever reads it sees the end.
        while !self.ended && self.is_uploaded() && self.buffer.len() < PIPELINED {
            match ready!(local.buffers.poll_read(&mut self.io, cx, &mut self.buffer, 0)) {
                Ok(0) => {
                    self.ended = true;
                    let alarm = local.alarms.alarm();
                    alarm.set(Some(local.now() + HALF_CLOSED));
                    self.leaving = Some(alarm);
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        match &self.leaving {
            Some(leaving) => leaving.poll(cx),
            None => Poll::Pending,
        }
    }

    /// Writes what is in the outbox, to the wire.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.outbox.is_empty() {
            ready!(self.outbox.poll_write(&mut self.io, cx))?;
        }
        // Only TLS holds anything back.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Ends our direction, then reads and discards what the client still sends, within bounds.
    pub fn poll_linger(&mut self, cx: &mut Context<'_>, local: &Local, lingering: &mut Lingering) -> Poll<()> {
        if !lingering.shut {
            // A client that is gone needs no end, and one that reads nothing does not see it.
            if Pin::new(&mut self.io).poll_shutdown(cx).is_pending() {
                return lingering.alarm.poll(cx);
            }
            lingering.shut = true;
        }
        while !self.ended && lingering.read < LINGER.0 {
            self.buffer.clear();
            match local.buffers.poll_read(&mut self.io, cx, &mut self.buffer, 0) {
                Poll::Ready(Ok(0) | Err(_)) => break,
                Poll::Ready(Ok(read)) => lingering.read += read,
                Poll::Pending => return lingering.alarm.poll(cx),
            }
        }
        Poll::Ready(())
    }

    /// Whether closing now could cost the client the answer.
    pub fn must_linger(&self) -> bool {
        !self.is_uploaded() || !self.buffer.is_empty()
    }

    /// The bare connection after an upgrade, and what was read already.
    pub fn into_parts(self) -> (IO, BytesMut) {
        (self.io, self.buffer)
    }
}

/// How far closing has come.
pub struct Lingering {
    alarm: Alarm,
    shut: bool,
    read: usize,
}

impl Lingering {
    /// Before the end of our direction.
    pub fn new(local: &Local) -> Self {
        let alarm = local.alarms.alarm();
        alarm.set(Some(local.now() + LINGER.1));
        Self { alarm, shut: false, read: 0 }
    }
}

// === impl Upload ===

impl<IO> Upload<IO> {
    /// The body of the request that is on `wire`.
    pub fn new(wire: Rc<RefCell<Wire<IO>>>, local: Rc<Local>) -> Self {
        Self { wire, local }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Body for Upload<IO> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.wire.borrow_mut().poll_upload(cx, &self.local)
    }

    fn is_end_stream(&self) -> bool {
        self.wire.borrow().decoder.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.wire.borrow().decoder.left().map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
