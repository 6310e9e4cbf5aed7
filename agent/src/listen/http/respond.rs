//! Writing an answer to a client of HTTP/1.1: its head as the client's version wants it, then its body, piece by piece.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::Wire;
use crate::{
    alarm::Alarm,
    forward::reply::ReplyBody,
    http1::{fields::Fields, framing::Framing, write},
    local::Local,
};

/// What of a request decides the form of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The method was HEAD.
    pub head: bool,
    /// The client speaks HTTP/1.0.
    pub http10: bool,
    /// The connection may carry another request.
    pub persists: bool,
}

/// The client cannot get the rest of the answer.
#[derive(Debug)]
pub struct Aborted;

impl Asked {
    /// Takes note of a request.
    pub fn new(method: &Method, http10: bool, persists: bool) -> Self {
        Self { head: *method == Method::HEAD, http10, persists }
    }

    /// How the body of an answer is framed, given its length if that is known.
    pub fn framing(&self, status: StatusCode, length: Option<u64>) -> Framing {
        let bodiless = self.head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match length {
            _ if bodiless || status.is_informational() => Framing::Empty,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None if self.http10 => Framing::UntilClose,
            None => Framing::Chunked,
        }
    }
}

/// Writes the head of an answer, whose fields are those of an endpoint and of a map. Gives whether the connection persists
/// after it.
pub fn head(
    out: &mut BytesMut,
    status: StatusCode,
    (fields, headers): (&Fields, &HeaderMap),
    framing: Framing,
    asked: Asked,
) -> bool {
    let persists = asked.persists && framing != Framing::UntilClose;
    write::status_line(out, status);
    fields.write(out);
    write::fields(out, headers);
    // What an endpoint says of a body that does not come, as with HEAD and 304, stays as it is.
    let says_length = || fields.get("content-length").is_some() || headers.contains_key(header::CONTENT_LENGTH);
    match framing {
        Framing::Length(length) if !says_length() => write::length(out, length),
        Framing::Empty if !asked.head && has_length(status) && !says_length() => write::length(out, 0),
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(_) | Framing::Empty | Framing::UntilClose => {}
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        if !persists {
            out.put_slice(b"connection: close\r\n");
        } else if asked.http10 {
            out.put_slice(b"connection: keep-alive\r\n");
        }
    }
    out.put_slice(b"\r\n");
    persists
}

fn has_length(status: StatusCode) -> bool {
    !status.is_informational() && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Writes the body of an answer, whose head is in the outbox. Each piece leaves before the next is asked for, so a slow
/// client slows its endpoint down.
///
/// # Errors
/// [`Aborted`] if the body ends early, the client leaves, or reads nothing for the idle time.
pub async fn body<IO: AsyncRead + AsyncWrite + Unpin>(
    local: &Local,
    wire: &Rc<RefCell<Wire<IO>>>,
    body: ReplyBody,
    framing: Framing,
    alarm: &Alarm,
) -> Result<(), Aborted> {
    let mut body = body;
    let mut rest = match framing {
        Framing::Empty => Rest::Nothing,
        Framing::Length(length) => Rest::Length(length),
        Framing::Chunked => Rest::Chunked,
        Framing::UntilClose => Rest::UntilClose,
    };
    alarm.set(None);
    let mut stalled = false;
    poll_fn(|cx| {
        loop {
            let awaited = poll_fill(cx, wire, &mut body, &mut rest);
            if matches!(awaited, Poll::Ready(Err(_))) {
                // What came before the failure still goes out; that the rest is missing shows at the end.
                rest = Rest::Missing;
            }
            let written = wire.borrow_mut().poll_write(cx);
            match written {
                Poll::Ready(Ok(())) => {
                    if std::mem::take(&mut stalled) {
                        alarm.set(None);
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Aborted)),
                Poll::Pending => {
                    // Nobody asks for more of the answer now, but the request goes on.
                    body.poll_upload(cx);
                    if !std::mem::replace(&mut stalled, true) {
                        alarm.set(Some(local.now() + local.limits.idle_timeout));
                    }
                    return alarm.poll(cx).map(|()| Err(Aborted));
                }
            }
            match rest {
                Rest::Nothing => return Poll::Ready(Ok(())),
                Rest::Missing => return Poll::Ready(Err(Aborted)),
                Rest::Length(_) | Rest::Chunked | Rest::UntilClose => {}
            }
            if awaited.is_pending() {
                return wire.borrow_mut().poll_gone(cx, local).map(|()| Err(Aborted));
            }
        }
    })
    .await
}

/// What of a body is to come.
#[derive(Clone, Copy, Debug)]
enum Rest {
    Nothing,
    /// More, which will not come.
    Missing,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Fills the outbox until enough has come together. Pending if the body has no more at the moment.
fn poll_fill<IO: AsyncRead + AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    wire: &RefCell<Wire<IO>>,
    body: &mut ReplyBody,
    rest: &mut Rest,
) -> Poll<io::Result<()>> {
    // The body may read the request's body from the wire, so the wire is not held while it is asked.
    while !matches!(rest, Rest::Nothing | Rest::Missing) && !wire.borrow().outbox.is_due() {
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose().map_err(io::Error::other)?;
        let ended = frame.is_none() || body.is_end_stream();
        let outbox = &mut wire.borrow_mut().outbox;
        push(outbox, frame, ended, rest)?;
    }
    Poll::Ready(Ok(()))
}

fn push(
    outbox: &mut crate::forward::outbox::Outbox,
    frame: Option<Frame<Bytes>>,
    ended: bool,
    rest: &mut Rest,
) -> io::Result<()> {
    let data = match frame.map(Frame::into_data) {
        Some(Ok(data)) => data,
        Some(Err(frame)) => {
            if let (Rest::Chunked, Ok(trailers)) = (&rest, frame.into_trailers()) {
                write::trailers(outbox.gather(), &trailers);
                *rest = Rest::Nothing;
                return Ok(());
            }
            Bytes::new()
        }
        None => Bytes::new(),
    };
    let length = data.len() as u64;
    match rest {
        Rest::Nothing | Rest::Missing => {}
        Rest::Length(left) => {
            *left = left.checked_sub(length).ok_or(io::ErrorKind::InvalidData)?;
            if !data.is_empty() {
                outbox.push(data);
            }
            match *left {
                0 => *rest = Rest::Nothing,
                _ if ended => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
        Rest::Chunked => {
            if !data.is_empty() {
                outbox.push_chunk(data);
            }
            if ended {
                outbox.end_chunks();
                *rest = Rest::Nothing;
            }
        }
        Rest::UntilClose => {
            if !data.is_empty() {
                outbox.push(data);
            }
            if ended {
                *rest = Rest::Nothing;
            }
        }
    }
    Ok(())
}
