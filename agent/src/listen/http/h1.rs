//! HTTP/1.1 from a client: request after request on one connection, one at a time.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, task::Poll};

use bytes::BytesMut;
use http::{Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    respond::{self, Asked},
    wire::{Lingering, Upload, Wire},
};
use crate::{
    alarm::Alarm,
    forward::{
        answer,
        body::RequestBody,
        http::{Session, forward},
        reply::{Reply, Tunnel},
        tunnel::{self, End},
    },
    http1::{Refused, fields::Fields, framing::Framing, request::RequestHead, response::ResponseHead, write},
    report::outcome::Outcome,
};

/// A connection while it is served.
struct Served<IO> {
    session: Rc<Session>,
    wire: Rc<RefCell<Wire<IO>>>,
    alarm: Alarm,
}

/// What becomes of the connection after an answer.
enum After {
    Next,
    Close,
    Tunnel(Tunnel),
    Gone,
}

/// Serves a connection of which `read` was read already. `alarm` is set to the time for the first head.
pub async fn serve<IO>(session: Rc<Session>, io: IO, read: BytesMut, alarm: Alarm)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let served = Served { session, wire: Rc::new(RefCell::new(Wire::new(io, read))), alarm };
    let mut requests = 0u64;
    loop {
        let head = match served.next(requests).await {
            Ok(Some(head)) => head,
            Ok(None) => return,
            Err(outcome) => return served.refuse(outcome).await,
        };
        requests += 1;
        match served.exchange(head).await {
            After::Next => {}
            After::Close => return served.close().await,
            After::Gone => return,
            After::Tunnel(tunnel) => return served.tunnel(tunnel).await,
        }
    }
}

// === impl Served ===

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Served<IO> {
    /// The next request; `None` when the connection is to be closed without a word.
    async fn next(&self, requests: u64) -> Result<Option<RequestHead>, Outcome> {
        let local = &self.session.local;
        let mut begun = requests == 0;
        if requests > 0 {
            self.alarm.set(Some(local.now() + local.limits.idle_timeout));
        }
        poll_fn(|cx| {
            let wire = &mut *self.wire.borrow_mut();
            match wire.poll_next(cx, local) {
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                Poll::Ready(Err(Refused::TooLarge)) => return Poll::Ready(Err(Outcome::HeaderTooLarge)),
                Poll::Ready(Err(Refused::Malformed(what))) => return Poll::Ready(Err(Outcome::Malformed(what))),
                Poll::Pending => {}
            }
            // A client that is connected, but has not asked yet, does not know of the drain and may ask once.
            if local.drain.is_over() || (wire.is_idle() && requests > 0 && local.drain.is_draining()) {
                return Poll::Ready(Ok(None));
            }
            if !wire.is_idle() && !begun {
                begun = true;
                self.alarm.set(Some(local.now() + local.limits.header_timeout));
            }
            self.alarm.poll(cx).map(|()| if wire.is_idle() { Ok(None) } else { Err(Outcome::HeaderTimeout) })
        })
        .await
    }

    /// One request and its answer.
    async fn exchange(&self, head: RequestHead) -> After {
        let local = &self.session.local;
        let asked = Asked::new(&head.method, head.http10, head.persists);
        let upgrading = head.upgrade && is_tunnelled(&head);
        let request = self.request(head);
        let interim = |head: &ResponseHead| {
            if !asked.http10 {
                let out = &mut self.wire.borrow_mut().outbox;
                write::status_line(out.gather(), head.status);
                head.fields.write(out.gather());
                out.gather().extend_from_slice(b"\r\n");
            }
        };
        let reply = {
            let mut answer = pin!(forward(&self.session, request, upgrading, &self.alarm, interim));
            poll_fn(|cx| {
                if let Poll::Ready(reply) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Some(reply));
                }
                let wire = &mut *self.wire.borrow_mut();
                if !wire.outbox.is_empty()
                    && let Poll::Ready(Err(_)) = wire.poll_write(cx)
                {
                    return Poll::Ready(None);
                }
                wire.poll_gone(cx, local).map(|()| None)
            })
            .await
        };
        match reply {
            Some(reply) => self.answer(reply, asked).await,
            None => After::Gone,
        }
    }

    fn request(&self, head: RequestHead) -> Request<RequestBody> {
        let body = match head.framing {
            Framing::Empty => RequestBody::empty(),
            _ => RequestBody::http1(Box::pin(Upload::new(self.wire.clone(), self.session.local.clone()))),
        };
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() = head.uri;
        *request.headers_mut() = head.headers;
        *request.version_mut() = if head.http10 { Version::HTTP_10 } else { Version::HTTP_11 };
        request
    }

    async fn answer(&self, reply: Reply, mut asked: Asked) -> After {
        let local = &self.session.local;
        let (parts, body) = reply.response.into_parts();
        let length =
            if http_body::Body::is_end_stream(&body) { Some(0) } else { http_body::Body::size_hint(&body).exact() };
        let framing = asked.framing(parts.status, length);
        let persists = {
            let wire = &mut *self.wire.borrow_mut();
            // What is left of a body that nobody reads would be taken for the next request.
            asked.persists &= wire.is_uploaded() && !local.drain.is_draining();
            respond::head(wire.outbox.gather(), parts.status, (&reply.fields, &parts.headers), framing, asked)
        };
        if respond::body(local, &self.wire, body, framing, &self.alarm).await.is_err() {
            return After::Gone;
        }
        match reply.tunnel {
            Some(tunnel) => After::Tunnel(tunnel),
            None if persists => After::Next,
            None => After::Close,
        }
    }

    /// Answers bytes that are not a request, and closes.
    async fn refuse(self, outcome: Outcome) {
        let record = self.session.local.reporter.connection(self.session.downstream.clone(), "http");
        let (status, headers, body) = answer::answer(outcome, false);
        {
            let wire = &mut *self.wire.borrow_mut();
            let asked = Asked { head: false, http10: false, persists: false };
            let framing = Framing::Length(body.len() as u64);
            respond::head(wire.outbox.gather(), status, (&Fields::default(), &headers), framing, asked);
            wire.outbox.push(body);
        }
        record.close(outcome);
        let local = &self.session.local;
        self.alarm.set(Some(local.now() + local.limits.header_timeout));
        let written = poll_fn(|cx| {
            let written = self.wire.borrow_mut().poll_write(cx).map(|written| written.is_ok());
            if written.is_pending() { self.alarm.poll(cx).map(|()| false) } else { written }
        });
        if written.await {
            self.linger().await;
        }
    }

    /// Closes after the last answer.
    async fn close(self) {
        let must_linger = self.wire.borrow().must_linger();
        if must_linger || self.session.downstream.tls {
            self.linger().await;
        }
    }

    async fn linger(&self) {
        let local = &self.session.local;
        let mut lingering = Lingering::new(local);
        poll_fn(|cx| self.wire.borrow_mut().poll_linger(cx, local, &mut lingering)).await;
    }

    /// Carries the other protocol.
    async fn tunnel(self, tunnel: Tunnel) {
        let Served { session, wire, alarm } = self;
        let (stream, read, account) = tunnel.open();
        // The request had no body that could still hold the connection; if it does, there is no connection to carry.
        let Some(wire) = Rc::into_inner(wire) else { return };
        let (io, early) = wire.into_inner().into_parts();
        let client = End { io, read: early };
        let endpoint = End { io: stream, read };
        account.close(tunnel::run(&session.local, client, endpoint, &alarm).await);
    }
}

/// Whether the protocol that is asked for is one to pass on. HTTP/2 is not: a client would speak past us to the endpoint
/// (RFC 9113 section 3.1 has removed it).
fn is_tunnelled(head: &RequestHead) -> bool {
    let protocol = head.headers.get(http::header::UPGRADE).map(|value| value.as_bytes()).unwrap_or_default();
    head.framing == Framing::Empty && !protocol.to_ascii_lowercase().starts_with(b"h2") && !protocol.contains(&b',')
}
