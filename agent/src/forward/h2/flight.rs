//! One exchange on a stream. Request and answer run at the same time, in the task of the client's request: whoever polls for
//! the answer also moves the request along.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::client::ResponseFuture;
use http::{HeaderValue, Method, Request, Response, header};
use http_body::{Body, Frame, SizeHint};

use super::Stream;
use crate::{
    forward::body::{BodyError, RequestBody, outcome_of_stream},
    http2::{
        incoming::Incoming,
        outgoing::{Outgoing, Stopped},
    },
    report::outcome::Outcome,
};

/// An exchange with an endpoint. Dropping it before its end cancels it.
pub struct Flight {
    stream: Stream,
    upload: RequestBody,
    /// `None` once the request has left completely, or the endpoint wants no more of it.
    outgoing: Option<Outgoing>,
    /// Why the request's body broke off.
    failed: Option<BodyError>,
    answer: Answer,
}

/// Why no answer began.
pub struct Unanswered {
    /// How the exchange ended.
    pub outcome: Outcome,
    /// What was said of the stream, if that is why.
    pub said: Option<h2::Error>,
}

enum Answer {
    Awaited(ResponseFuture),
    Begun(Incoming),
}

// === impl Flight ===

impl Flight {
    /// Sends `request` on a stream.
    ///
    /// # Errors
    /// With the body, when nothing was sent: the connection has ended, or the request is not one that HTTP/2 can carry.
    pub fn begin(
        stream: Stream,
        request: Request<()>,
        upload: RequestBody,
    ) -> Result<Self, Box<(Unanswered, RequestBody)>> {
        let mut request = request;
        let bodiless = upload.is_end_stream();
        if let Some(length) = if bodiless { Some(0) } else { upload.size_hint().exact() } {
            announce(&mut request, length);
        }
        let mut sender = stream.connection.sender.borrow().clone();
        let (answer, outgoing) = match sender.send_request(request, bodiless) {
            Ok(sent) => sent,
            Err(error) => return Err(Box::new((error.into(), upload))),
        };
        let outgoing = (!bodiless).then(|| Outgoing::new(outgoing));
        Ok(Self { stream, upload, outgoing, failed: None, answer: Answer::Awaited(answer) })
    }

    /// Moves the request along and waits for the head of the answer.
    ///
    /// # Errors
    /// How the exchange ended before that.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Unanswered>> {
        self.poll_upload(cx);
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error.outcome_of_upload().into()));
        }
        let Answer::Awaited(answer) = &mut self.answer else { return Poll::Pending };
        match ready!(Pin::new(answer).poll(cx)) {
            Ok(response) => {
                let (head, stream) = response.into_parts();
                self.answer = Answer::Begun(Incoming::new(stream, &head.headers));
                Poll::Ready(Ok(Response::from_parts(head, ())))
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Gives the request's body back, if it is there to be sent again.
    pub fn into_upload(self) -> Option<RequestBody> {
        self.upload.rewound()
    }

    /// Moves the request along. When its body breaks off, so does the exchange; an endpoint that reads no further may still
    /// answer.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        match outgoing.poll_send(cx, &mut self.upload) {
            Poll::Pending => return,
            Poll::Ready(Ok(()) | Err(Stopped::Receiver)) => {}
            Poll::Ready(Err(Stopped::Body(error))) => {
                outgoing.reset(error.reason());
                self.failed = Some(error);
            }
        }
        self.outgoing = None;
    }

    /// The next piece of the answer; moves the request along meanwhile.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_upload(cx);
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match &mut self.answer {
            Answer::Awaited(_) => Poll::Ready(None),
            Answer::Begun(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::EndpointReset),
        }
    }

    /// The answer is complete.
    pub fn is_answered(&self) -> bool {
        match &self.answer {
            Answer::Awaited(_) => false,
            Answer::Begun(body) => body.is_end_stream(),
        }
    }

    /// Bytes of the answer that are to come, if that is known.
    pub fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Awaited(_) => SizeHint::new(),
            Answer::Begun(body) => body.size_hint(),
        }
    }

    /// Gives the stream back.
    pub fn end(self, now: Instant) {
        self.stream.connection.idle_since.set(now);
    }
}

// === impl Unanswered ===

impl From<h2::Error> for Unanswered {
    fn from(error: h2::Error) -> Self {
        Self { outcome: outcome_of_stream(&error), said: Some(error) }
    }
}

impl From<Outcome> for Unanswered {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, said: None }
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Flight({:?})", self.stream)
    }
}

/// Says how long the body of a request is (RFC 9110 section 8.6).
fn announce(request: &mut Request<()>, length: u64) {
    let usual = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if length > 0 || usual {
        request.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}
