//! HTTP/1.1 to an endpoint. Our own client instead of hyper's, because it costs less: a request with a small body leaves
//! with one call, the answer comes with one, and nothing is handed between tasks.
//!
//! Request and answer run at the same time: an endpoint may answer before it has read the body, and may want to be read
//! before it reads on. Whoever polls for the answer also moves the request along.

use std::{
    fmt, io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body::{Body, Frame};
use tokio::net::TcpStream;

use super::{
    body::{BodyError, RequestBody},
    outbox::Outbox,
    source::Way,
};
use crate::{
    buffers::Buffers,
    http1::{
        Refused,
        body::Decoder,
        chunked::Piece,
        framing::Framing,
        lines::Lines,
        response::{self, ResponseHead},
        write,
    },
    report::{outcome::Outcome, via::Via},
};

/// Room that is asked for when a body of unknown length keeps coming in large pieces.
const UNKNOWN: u64 = 1 << 20;

/// Pieces from which a body of unknown length counts as large.
const LARGE: usize = 8 << 10;

/// A connection to an endpoint, with the exchange that is on it, if any.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    lines: Lines,
    outbox: Outbox,
    upload: RequestBody,
    uploading: Uploading,
    decoder: Decoder,
    persists: bool,
    /// Bytes of the answer have come.
    answered: bool,
    /// Size of the piece read last.
    last_read: usize,
    served: u64,
    /// The client whose address the endpoint is to see.
    pub client: Option<IpAddr>,
    /// How the endpoint was reached.
    pub via: Via,
    /// When it became idle.
    pub idle_since: Instant,
}

/// Where in the request the writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uploading {
    /// So many bytes are to come.
    Length(u64),
    Chunked,
    /// All of it was given to the outbox.
    Sent,
    /// The endpoint reads no further; what it answers still counts.
    Broken,
}

/// Why there is no answer.
#[derive(Debug)]
pub struct NoAnswer {
    /// How the attempt ended.
    pub outcome: Outcome,
    /// Not a byte of an answer has come.
    pub silent: bool,
}

// === impl Connection ===

impl Connection {
    /// A connection that has carried nothing yet.
    pub fn new(stream: TcpStream, way: Way, via: Via, now: Instant) -> Box<Self> {
        Box::new(Self {
            stream,
            buffer: BytesMut::new(),
            lines: Lines::default(),
            outbox: Outbox::default(),
            upload: RequestBody::empty(),
            uploading: Uploading::Sent,
            decoder: Decoder::new(Framing::Empty),
            persists: true,
            answered: false,
            last_read: 0,
            served: 0,
            client: way.client(),
            via,
            idle_since: now,
        })
    }

    /// It has carried a request before.
    pub fn is_reused(&self) -> bool {
        self.served > 0
    }

    /// Whether an idle connection is still good: an endpoint that closed it, or sent something unasked, is seen here. Asks
    /// the kernel only if the runtime has heard that there is something to read.
    pub fn is_quiet(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// As [`Connection::is_quiet`], asking the kernel in any case.
    pub fn is_quiet_for_sure(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&self.stream).peek(&mut byte);
        matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Begins an exchange. `headers` must be free of those that frame or concern a connection.
    pub fn begin(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: RequestBody) {
        let framing = match body.size_hint().exact() {
            _ if body.is_end_stream() => Framing::Empty,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        self.uploading = match framing {
            Framing::Empty | Framing::UntilClose => Uploading::Sent,
            Framing::Length(length) => Uploading::Length(length),
            Framing::Chunked => Uploading::Chunked,
        };
        self.upload = body;
        self.lines = Lines::default();
        self.answered = false;
        self.served += 1;
        write::request_head(self.outbox.gather(), method, uri, headers, framing);
    }

    /// Takes the body back, to send it elsewhere.
    pub fn take_upload(&mut self) -> RequestBody {
        std::mem::replace(&mut self.upload, RequestBody::empty())
    }

    /// The request has left completely, or will never.
    pub fn is_sent(&self) -> bool {
        matches!(self.uploading, Uploading::Broken) || (self.uploading == Uploading::Sent && self.outbox.is_empty())
    }

    /// The rest of the request's body has not come from the client yet, and all that has was written.
    pub fn awaits_client(&self) -> bool {
        matches!(self.uploading, Uploading::Length(_) | Uploading::Chunked) && self.outbox.is_empty()
    }

    /// Moves the request along and reads the head of the answer. `interim` gets the informational ones before it.
    pub fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
        method: &Method,
        mut interim: impl FnMut(&ResponseHead),
    ) -> Poll<Result<ResponseHead, NoAnswer>> {
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(self.no_answer(error.outcome_of_upload())));
        }
        loop {
            match self.take_head(method) {
                Ok(Some(head)) if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS => {
                    interim(&head);
                    self.lines = Lines::default();
                    continue;
                }
                Ok(Some(head)) => {
                    self.decoder = Decoder::new(head.framing);
                    self.persists = head.persists;
                    return Poll::Ready(Ok(head));
                }
                Ok(None) => {}
                Err(_) => return Poll::Ready(Err(self.no_answer(Outcome::UpstreamProtocol))),
            }
            match ready!(buffers.poll_read(&mut self.stream, cx, &mut self.buffer, 0)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(self.no_answer(Outcome::UpstreamClosed))),
                Ok(_) => self.answered = true,
            }
        }
    }

    fn take_head(&mut self, method: &Method) -> Result<Option<ResponseHead>, Refused> {
        if self.buffer.is_empty() { Ok(None) } else { response::take(&mut self.buffer, &mut self.lines, method) }
    }

    fn no_answer(&self, outcome: Outcome) -> NoAnswer {
        NoAnswer { outcome, silent: !self.answered }
    }

    /// Writes the request as far as it goes. Only an error of its body is an error: an endpoint that stops reading may
    /// still answer.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        loop {
            if !self.outbox.is_due() && !matches!(self.uploading, Uploading::Sent | Uploading::Broken) {
                match Pin::new(&mut self.upload).poll_frame(cx) {
                    Poll::Ready(frame) => {
                        self.queue(frame.transpose()?)?;
                        continue;
                    }
                    Poll::Pending => {
                        if let Err(_closed) = ready!(self.outbox.poll_write(&mut self.stream, cx)) {
                            self.break_off();
                        }
                        return Poll::Pending;
                    }
                }
            }
            if self.outbox.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(_closed) = ready!(self.outbox.poll_write(&mut self.stream, cx)) {
                self.break_off();
            }
        }
    }

    fn break_off(&mut self) {
        self.uploading = Uploading::Broken;
        self.persists = false;
        self.outbox = Outbox::default();
    }

    /// Gives a frame of the body, or its end, to the outbox.
    fn queue(&mut self, frame: Option<Frame<Bytes>>) -> Result<(), BodyError> {
        let frame = frame.map(Frame::into_data);
        match (&mut self.uploading, frame) {
            (Uploading::Length(left), Some(Ok(data))) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BodyError::ClientGone)?;
                if *left == 0 {
                    self.uploading = Uploading::Sent;
                }
                self.outbox.push(data);
            }
            (Uploading::Length(0), None) => self.uploading = Uploading::Sent,
            (Uploading::Length(_), None) => return Err(BodyError::ClientGone),
            (Uploading::Chunked, Some(Ok(data))) if !data.is_empty() => self.outbox.push_chunk(data),
            (Uploading::Chunked, None) => {
                self.outbox.gather().put_slice(write::LAST_CHUNK);
                self.uploading = Uploading::Sent;
            }
            (Uploading::Chunked, Some(Err(frame))) => {
                if let Ok(trailers) = frame.into_trailers() {
                    write::trailers(self.outbox.gather(), &trailers);
                    self.uploading = Uploading::Sent;
                }
            }
            // Trailers have no place after a length; the rest cannot be.
            _ => {}
        }
        Ok(())
    }

    /// The next piece of the answer; moves the request along meanwhile.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &Buffers,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.is_sent()
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.decoder.next(&mut self.buffer) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::End(trailers)) => {
                    buffers.give_back(std::mem::take(&mut self.buffer));
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Ok(Piece::Partial) => {}
                Err(refused) => return Poll::Ready(Some(Err(BodyError::Endpoint(refused)))),
            }
            let expected = self.decoder.left().unwrap_or(if self.last_read > LARGE { UNKNOWN } else { 0 });
            match ready!(buffers.poll_read(&mut self.stream, cx, &mut self.buffer, expected)) {
                Ok(0) if self.decoder.close() => {}
                Ok(0) => return Poll::Ready(Some(Err(BodyError::EndpointGone(None)))),
                Ok(read) => self.last_read = read,
                Err(error) => return Poll::Ready(Some(Err(BodyError::EndpointGone(Some(error))))),
            }
        }
    }

    /// The answer is complete.
    pub fn is_answered(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes of the answer that are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// It may carry another request: both messages are complete, both ends want it, and nothing came unasked.
    pub fn is_reusable(&self) -> bool {
        self.persists && self.is_answered() && self.is_sent() && self.buffer.is_empty()
    }

    /// Makes an idle connection as small as it can be.
    pub fn rest(&mut self, now: Instant) {
        self.idle_since = now;
        self.last_read = 0;
        self.buffer = BytesMut::new();
        self.upload = RequestBody::empty();
    }

    /// The bare connection after an upgrade, and what was read already of the other protocol.
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.buffer)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Connection({:?}, served {})", self.stream.peer_addr(), self.served)
    }
}
