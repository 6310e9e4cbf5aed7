//! The answer to a request on its way to the client, and the record that is closed when it has gone.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::net::TcpStream;

use super::{answer, body::BodyError, h1, h2::flight::Flight, tunnel::Passed};
use crate::{
    http1::fields::Fields,
    local::{Busy, Local, Upstream},
    report::{
        outcome::Outcome,
        record::{OpenRequest, RequestRecord},
    },
};

/// An answer.
pub struct Reply {
    /// Head and body. Of an upgrade only the head.
    pub response: Response<ReplyBody>,
    /// Fields of an endpoint of HTTP/1.1, beside those of the response.
    pub fields: Fields,
    /// The other protocol, if the endpoint agreed to it.
    pub tunnel: Option<Tunnel>,
}

/// A connection that speaks another protocol from now on.
pub struct Tunnel {
    /// To the endpoint.
    pub stream: TcpStream,
    /// What came already.
    pub read: BytesMut,
    account: Account,
}

/// The body of an answer.
pub struct ReplyBody {
    source: Source,
    account: Account,
}

enum Source {
    Own(Bytes),
    Http1 { connection: Box<h1::Connection>, upstream: Rc<Upstream>, local: Rc<Local> },
    Http2 { flight: Box<Flight>, local: Rc<Local> },
}

/// The open record of a request. Dropping it says that the client left, or that the time for draining is over.
pub struct Account {
    open: Option<(OpenRequest, Rc<Local>)>,
    /// Bytes of the request's body.
    pub upload: Option<Rc<Cell<u64>>>,
    /// Bytes of the answer's body.
    sent: u64,
    grpc_status: Option<u8>,
    /// Counts the request at the endpoint.
    pub busy: Option<Busy>,
}

// === impl Account ===

impl Account {
    /// Of a request that has just begun.
    pub fn new(local: Rc<Local>, open: OpenRequest, upload: Option<Rc<Cell<u64>>>) -> Self {
        Self { open: Some((open, local)), upload, sent: 0, grpc_status: None, busy: None }
    }

    /// Hands the record on; what stays behind is closed.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::closed())
    }

    /// With a status of gRPC that came in the headers.
    pub fn with_status(self, grpc_status: Option<u8>) -> Self {
        let mut account = self;
        account.grpc_status = grpc_status;
        account
    }

    fn closed() -> Self {
        Self { open: None, upload: None, sent: 0, grpc_status: None, busy: None }
    }

    /// Fills in the record.
    pub fn note(&mut self, fill: impl FnOnce(&mut RequestRecord)) {
        if let Some((open, _)) = &mut self.open {
            open.note(fill);
        }
    }

    /// Closes the record.
    pub fn close(&mut self, outcome: Outcome) {
        let Some((mut open, _)) = self.open.take() else { return };
        let (sent, grpc_status) = (self.sent, self.grpc_status);
        let received = self.upload.as_ref().map_or(0, |upload| upload.get());
        open.note(|record| {
            record.sent = sent;
            record.received = received;
            record.grpc_status = record.grpc_status.or(grpc_status);
            if let Some(attempt) = record.attempts.last_mut()
                && attempt.outcome == Outcome::Dropped
            {
                attempt.took = attempt.started.elapsed();
                attempt.outcome = outcome;
            }
        });
        open.close(outcome);
        self.busy = None;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let over = self.open.as_ref().is_some_and(|(_, local)| local.drain.is_over());
        self.close(if over { Outcome::Drained } else { Outcome::ClientClosed });
    }
}

// === impl Reply ===

impl Reply {
    /// An answer of our own.
    pub fn own(mut account: Account, outcome: Outcome, grpc: bool) -> Self {
        let (status, headers, body) = answer::answer(outcome, grpc);
        account.note(|record| {
            record.status = status.as_u16();
            record.grpc_status = answer::grpc_status(&headers);
        });
        account.sent = body.len() as u64;
        account.close(outcome);
        let mut response = Response::new(ReplyBody { source: Source::Own(body), account });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Self { response, fields: Fields::default(), tunnel: None }
    }

    /// An answer that an endpoint of HTTP/1.1 sends.
    pub fn http1(
        mut account: Account,
        response: Response<()>,
        fields: Fields,
        connection: Box<h1::Connection>,
        upstream: Rc<Upstream>,
        local: &Rc<Local>,
    ) -> Self {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (stream, read) = connection.into_parts();
            let response = response.map(|()| ReplyBody::empty());
            return Self { response, fields, tunnel: Some(Tunnel { stream, read, account }) };
        }
        if connection.is_answered() {
            release(connection, &upstream, local.now());
            account.close(Outcome::Complete);
            let body = ReplyBody { source: Source::Own(Bytes::new()), account };
            return Self { response: response.map(|()| body), fields, tunnel: None };
        }
        let source = Source::Http1 { connection, upstream, local: local.clone() };
        Self { response: response.map(|()| ReplyBody { source, account }), fields, tunnel: None }
    }

    /// An answer that comes over HTTP/2.
    pub fn http2(mut account: Account, response: Response<()>, flight: Box<Flight>, local: &Rc<Local>) -> Self {
        account.grpc_status = answer::grpc_status(response.headers());
        let mut body = ReplyBody { source: Source::Http2 { flight, local: local.clone() }, account };
        body.settle();
        Self { response: response.map(|()| body), fields: Fields::default(), tunnel: None }
    }

    /// The answer as HTTP/2 has it: one map of all fields.
    pub fn into_mapped(mut self) -> (Response<ReplyBody>, Option<Tunnel>) {
        self.fields.append_to(self.response.headers_mut());
        (self.response, self.tunnel)
    }
}

fn release(connection: Box<h1::Connection>, upstream: &Upstream, now: Instant) {
    if connection.is_reusable() {
        upstream.pool.put(connection, now);
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// Takes the connection out; the rest closes the record when it is told how the tunnel ended.
    pub fn open(self) -> (TcpStream, BytesMut, TunnelAccount) {
        (self.stream, self.read, TunnelAccount(self.account))
    }
}

/// The open record of a tunnel.
pub struct TunnelAccount(Account);

impl TunnelAccount {
    /// Closes the record.
    pub fn close(mut self, passed: Passed) {
        self.0.sent = passed.sent;
        self.0.upload = Some(Rc::new(Cell::new(passed.received)));
        self.0.close(passed.outcome);
    }
}

// === impl ReplyBody ===

impl ReplyBody {
    fn empty() -> Self {
        Self { source: Source::Own(Bytes::new()), account: Account::closed() }
    }

    /// Moves the request along while the client takes no more of the answer. Over HTTP/1.1 the endpoint waits with it.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if let Source::Http2 { flight, .. } = &mut self.source {
            flight.poll_upload(cx);
        }
    }

    /// Closes the record if the answer is complete, without waiting to be asked for what comes after the end.
    fn settle(&mut self) {
        match &mut self.source {
            Source::Own(_) => return,
            Source::Http1 { connection, .. } if !connection.is_answered() => return,
            Source::Http2 { flight, .. } if !flight.is_answered() => return,
            Source::Http1 { .. } | Source::Http2 { .. } => {}
        }
        match std::mem::replace(&mut self.source, Source::Own(Bytes::new())) {
            Source::Own(_) => {}
            Source::Http1 { connection, upstream, local } => release(connection, &upstream, local.now()),
            Source::Http2 { flight, local } => flight.end(local.now()),
        }
        self.account.close(Outcome::Complete);
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        let frame = match &mut body.source {
            Source::Own(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Source::Own(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Http1 { connection, local, .. } => ready!(connection.poll_frame(cx, &local.buffers)),
            Source::Http2 { flight, .. } => ready!(flight.poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    body.account.sent += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    body.account.grpc_status = answer::grpc_status(trailers).or(body.account.grpc_status);
                }
                body.settle();
            }
            Some(Err(error)) => {
                body.account.close(error.outcome_of_answer());
                body.source = Source::Own(Bytes::new());
            }
            None => body.settle(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_empty(),
            Source::Http1 { connection, .. } => connection.is_answered(),
            Source::Http2 { flight, .. } => flight.is_answered(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Http1 { connection, .. } => connection.left().map_or_else(SizeHint::new, SizeHint::with_exact),
            Source::Http2 { flight, .. } => flight.size_hint(),
        }
    }
}
