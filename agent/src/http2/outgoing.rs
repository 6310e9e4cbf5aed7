//! A body into a stream.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

/// A body on its way into a stream. One piece of it is held at most, until the receiver has room for it.
pub struct Outgoing {
    stream: SendStream<Bytes>,
    /// A piece that waits for room, and whether it is the last one.
    held: Option<(Bytes, bool)>,
    begun: bool,
}

/// Why a body has not left completely.
#[derive(Debug)]
pub enum Stopped<E> {
    /// It broke off. What becomes of the stream is up to the caller.
    Body(E),
    /// The receiver wants no more of it, or is gone.
    Receiver,
}

// === impl Outgoing ===

impl Outgoing {
    /// Into a stream whose head was sent.
    pub fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, held: None, begun: false }
    }

    /// Ends the stream for `reason`.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// A piece waits for room, so the body is not asked for more.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Moves `body` into the stream, as far as it has come and the receiver has room.
    ///
    /// # Errors
    /// When a part of it did not leave. Afterwards this must not be called again.
    pub fn poll_send<B>(&mut self, cx: &mut Context<'_>, body: &mut B) -> Poll<Result<(), Stopped<B::Error>>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            if self.held.is_some() {
                ready!(self.poll_room(cx)).map_err(|Gone| Stopped::Receiver)?;
            }
            if let Some((data, last)) = self.held.take() {
                self.stream.send_data(data, last).map_err(|_| Stopped::Receiver)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => frame.transpose().map_err(Stopped::Body)?,
                // Nobody else waits for the receiver meanwhile.
                Poll::Pending => return self.stream.poll_reset(cx).map(|_| Err(Stopped::Receiver)),
            };
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => {
                    let last = body.is_end_stream();
                    if data.is_empty() && !last {
                        continue;
                    }
                    // The first piece waits for room in the codec, which saves most messages the question. Only what
                    // comes after it has to be held back.
                    if std::mem::replace(&mut self.begun, true) {
                        self.stream.reserve_capacity(1);
                        self.held = Some((data, last));
                    } else {
                        self.stream.send_data(data, last).map_err(|_| Stopped::Receiver)?;
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                    }
                }
                Some(Err(frame)) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(self.stream.send_trailers(trailers).map_err(|_| Stopped::Receiver));
                    }
                }
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(|_| Stopped::Receiver)),
            }
        }
    }

    /// Ready when the receiver has room for a byte; the codec holds the rest of a piece back.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The receiver is gone.
struct Gone;

impl fmt::Debug for Outgoing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Outgoing({:?})", self.stream.stream_id())
    }
}
