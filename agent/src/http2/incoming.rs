//! The body that a stream brings.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};

/// The body of a message, as a stream brings it. Each piece makes room for more when it is taken, so whoever takes none
/// holds the sender back.
pub struct Incoming {
    stream: RecvStream,
    next: Next,
    /// What of the announced length is to come. The codec resets a stream that does not keep to it.
    left: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Data,
    Trailers,
    Nothing,
}

// === impl Incoming ===

impl Incoming {
    /// What follows the head with these `headers`.
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let next = if stream.is_end_stream() { Next::Nothing } else { Next::Data };
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { stream, next, left: announced }
    }

    /// Nothing is to come. Unlike [`Body::is_end_stream`] this asks only itself, so it may say so late.
    pub fn is_ended(&self) -> bool {
        self.next == Next::Nothing
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // This fails only for more than what came.
                let _ = self.stream.flow_control().release_capacity(data.len());
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(data)))
            }
            // Said after a complete message, of which no more is to be sent back (RFC 9113 section 8.1).
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(None),
            other => Poll::Ready(other),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let body = self.get_mut();
        if body.next == Next::Data {
            match ready!(body.poll_data(cx)) {
                Some(data) => return Poll::Ready(Some(data.map(Frame::data))),
                None => body.next = Next::Trailers,
            }
        }
        if body.next == Next::Nothing {
            return Poll::Ready(None);
        }
        let trailers = ready!(body.stream.poll_trailers(cx));
        body.next = Next::Nothing;
        match trailers {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended() || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.next {
            Next::Nothing => SizeHint::with_exact(0),
            Next::Data | Next::Trailers => self.left.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Incoming({:?})", self.next)
    }
}
