//! Bodies on their way through, in both directions. A worker holds one piece of a body at a time, never the whole.

use std::{
    cell::Cell,
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};

use crate::{http1::Refused, http2::incoming::Incoming, report::outcome::Outcome};

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's end of the connection is gone.
    #[error("the client closed the connection in the middle of a body")]
    ClientGone,
    /// The client sent a body that cannot be read.
    #[error("the client sent a malformed body")]
    Client(#[source] Refused),
    /// The endpoint closed the connection.
    #[error("the endpoint closed the connection in the middle of a body")]
    EndpointGone(#[source] Option<io::Error>),
    /// The endpoint sent a body that cannot be read.
    #[error("the endpoint sent a malformed body")]
    Endpoint(#[source] Refused),
    /// The client took its stream of HTTP/2 back, or its connection broke.
    #[error("the client reset its stream in the middle of a body")]
    ClientReset(#[source] h2::Error),
    /// The endpoint reset the stream of HTTP/2, or its connection broke.
    #[error("the endpoint reset the stream in the middle of a body")]
    EndpointReset(#[source] h2::Error),
}

/// The body of a request.
pub struct RequestBody {
    source: Source,
    progress: Option<Rc<Cell<u64>>>,
    taken: Taken,
}

/// What a downstream connection of HTTP/1.1 gives for a body.
pub type Upload = Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>;

enum Source {
    Empty,
    Http1(Upload),
    Http2(Incoming),
}

/// What was taken from a body, as far as it can be taken again. One piece is the whole body of most calls, and costs nothing
/// to keep.
enum Taken {
    Nothing,
    Piece(Bytes),
    More,
    /// A piece is to be taken again, before what the source brings.
    Again(Bytes),
}

// === impl BodyError ===

impl BodyError {
    /// How a request ends whose body, from the client, ended like this.
    pub fn outcome_of_upload(&self) -> Outcome {
        match self {
            BodyError::Client(Refused::Malformed(what)) => Outcome::Malformed(what),
            BodyError::Client(Refused::TooLarge) => Outcome::HeaderTooLarge,
            _ => Outcome::ClientClosed,
        }
    }

    /// How a request ends whose answer, from the endpoint, ended like this.
    pub fn outcome_of_answer(&self) -> Outcome {
        match self {
            BodyError::ClientGone | BodyError::Client(_) | BodyError::ClientReset(_) => self.outcome_of_upload(),
            BodyError::EndpointGone(_) => Outcome::UpstreamClosed,
            BodyError::Endpoint(_) => Outcome::UpstreamProtocol,
            BodyError::EndpointReset(error) => outcome_of_stream(error),
        }
    }

    /// What the other side of HTTP/2 is told of it: the reason that was given, where one was.
    pub fn reason(&self) -> Reason {
        match self {
            BodyError::ClientReset(error) | BodyError::EndpointReset(error) => {
                error.reason().unwrap_or(Reason::INTERNAL_ERROR)
            }
            BodyError::ClientGone => Reason::CANCEL,
            BodyError::Client(_) | BodyError::EndpointGone(_) | BodyError::Endpoint(_) => Reason::INTERNAL_ERROR,
        }
    }
}

/// How a request ends whose stream to the endpoint failed.
pub fn outcome_of_stream(error: &h2::Error) -> Outcome {
    match error.reason() {
        Some(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR) => {
            Outcome::UpstreamProtocol
        }
        _ => Outcome::UpstreamClosed,
    }
}

// === impl RequestBody ===

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { source: Source::Empty, progress: None, taken: Taken::Nothing }
    }

    /// A body that a connection of HTTP/1.1 reads.
    pub fn http1(upload: Upload) -> Self {
        Self { source: Source::Http1(upload), progress: Some(Rc::default()), ..Self::empty() }
    }

    /// A body that a stream of HTTP/2 brings.
    pub fn http2(incoming: Incoming) -> Self {
        if incoming.is_ended() {
            return Self::empty();
        }
        Self { source: Source::Http2(incoming), progress: Some(Rc::default()), ..Self::empty() }
    }

    /// Counts the bytes that were taken from the body, also after it was handed on; `None` without a body.
    pub fn progress(&self) -> Option<Rc<Cell<u64>>> {
        self.progress.clone()
    }

    /// The body as it was before anything was taken from it; `None` if too much of it was.
    pub fn rewound(self) -> Option<Self> {
        match self.taken {
            Taken::Nothing | Taken::Again(_) => Some(self),
            Taken::Piece(piece) => Some(Self { taken: Taken::Again(piece), ..self }),
            Taken::More => None,
        }
    }

    /// Nothing was taken from it, so it can still be sent to another endpoint.
    pub fn is_untouched(&self) -> bool {
        self.progress.as_ref().is_none_or(|progress| progress.get() == 0)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        if let Taken::Again(piece) = &body.taken {
            let piece = piece.clone();
            body.taken = Taken::Piece(piece.clone());
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let frame = match &mut body.source {
            Source::Empty => return Poll::Ready(None),
            Source::Http1(upload) => ready!(upload.as_mut().poll_frame(cx)),
            Source::Http2(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(BodyError::ClientReset))
            }
        };
        if let (Some(Ok(frame)), Some(progress)) = (&frame, &body.progress) {
            let taken = frame.data_ref().map_or(1, |data| data.len() as u64);
            progress.set(progress.get() + taken);
            body.taken = match (&body.taken, &body.source, frame.data_ref()) {
                (Taken::Nothing, Source::Http2(_), Some(piece)) => Taken::Piece(piece.clone()),
                _ => Taken::More,
            };
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            _ if matches!(self.taken, Taken::Again(_)) => false,
            Source::Empty => true,
            Source::Http1(upload) => upload.is_end_stream(),
            Source::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Http1(upload) => upload.size_hint(),
            Source::Http2(incoming) => incoming.size_hint(),
        };
        match (&self.taken, rest.exact()) {
            (Taken::Again(piece), Some(rest)) => SizeHint::with_exact(piece.len() as u64 + rest),
            (Taken::Again(_), None) => SizeHint::new(),
            (Taken::Nothing | Taken::Piece(_) | Taken::More, _) => rest,
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RequestBody({:?})", self.size_hint())
    }
}
