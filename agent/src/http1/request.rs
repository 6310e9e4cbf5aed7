//! The head of a request.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::{
    HeadLimits, Refused,
    framing::{Declared, Framing},
    lines::{self, Ending, Lines},
};

/// Fields for which the parser has room on the stack.
const USUAL_FIELDS: usize = 48;

/// The head of a request, understood.
#[derive(Debug)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// Target: origin form, absolute form or `*`.
    pub uri: Uri,
    /// All fields; `Host` is there once, unless this is HTTP/1.0.
    pub headers: HeaderMap,
    /// Length of the body.
    pub framing: Framing,
    /// HTTP/1.0 instead of 1.1.
    pub http10: bool,
    /// The client would send another request on this connection.
    pub persists: bool,
    /// The client waits for 100 before it sends the body.
    pub expects_continue: bool,
    /// The client asks for another protocol on this connection.
    pub upgrade: bool,
}

/// Takes the head of a request off the front of `buffer`, if it is complete. `search` begins anew with each head.
///
/// # Errors
/// [`Refused`] for what is malformed, ambiguous or too large; the connection cannot be read any further then.
pub fn take(buffer: &mut BytesMut, search: &mut Lines, limits: HeadLimits) -> Result<Option<RequestHead>, Refused> {
    // A client may end a body with an extra CRLF (RFC 9112 section 2.2); one is forgiven.
    if search.may_skip() && buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        *search = Lines::after_empty_line();
    }
    let Some(length) = search.end(buffer, Ending::Strict, limits)? else { return Ok(None) };
    let head = lines::take(buffer, length);
    let fields = search.count().saturating_sub(1);
    if fields <= USUAL_FIELDS {
        parse(&head, fields, &mut [const { MaybeUninit::uninit() }; USUAL_FIELDS]).map(Some)
    } else {
        parse(&head, fields, &mut vec![MaybeUninit::uninit(); fields]).map(Some)
    }
}

fn parse<'a>(
    head: &'a Bytes,
    fields: usize,
    room: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<RequestHead, Refused> {
    let mut parsed = httparse::Request::new(&mut []);
    let complete = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut parsed, head, room)
        .map_err(malformed)?;
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Refused::Malformed("the request line is incomplete"));
    };
    // The parser and the search for the end must agree on where the head ends.
    if complete != httparse::Status::Complete(head.len()) {
        return Err(Refused::Malformed("the head is not a request"));
    }
    let http10 = version == 0;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Refused::Malformed("the method is not a token"))?;
    let uri = uri(head, target)?;
    let mut headers = HeaderMap::with_capacity(fields + EXTRA_FIELDS);
    let mut declared = Declared::default();
    let (mut hosts, mut expects_continue, mut upgrade) = (0, false, false);
    for field in parsed.headers.iter() {
        let (name, value) = field_of(head, field)?;
        match name {
            header::HOST => {
                hosts += 1;
                check_host(value.as_bytes())?;
            }
            header::EXPECT => expects_continue = !http10 && value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            header::UPGRADE => upgrade = !http10,
            _ => declared.note(&name, &value)?,
        }
        headers.append(name, value);
    }
    if hosts > 1 || (hosts == 0 && !http10) {
        return Err(Refused::Malformed("there is not exactly one Host"));
    }
    let framing = declared.framing(http10)?.unwrap_or(Framing::Empty);
    Ok(RequestHead {
        method,
        uri,
        headers,
        framing,
        http10,
        persists: declared.persists(http10),
        expects_continue: expects_continue && framing != Framing::Empty,
        upgrade: upgrade && declared.upgrade,
    })
}

/// Fields that forwarding adds; room for them is made at once.
const EXTRA_FIELDS: usize = 5;

fn uri(head: &Bytes, target: &str) -> Result<Uri, Refused> {
    const REFUSED: Refused = Refused::Malformed("the target of the request is not a URI");
    // Uri would drop a fragment silently, and a target has none.
    if memchr::memchr(b'#', target.as_bytes()).is_some() {
        return Err(REFUSED);
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).map_err(|_| REFUSED)?;
    match uri.scheme() {
        // Absolute form, which has an authority, or origin form and `*`, which have none.
        Some(_) => Ok(uri),
        None if uri.authority().is_none() => Ok(uri),
        None => Err(Refused::Malformed("CONNECT and targets in authority form are not served")),
    }
}

/// One field, as slices of the head.
pub(super) fn field_of(head: &Bytes, field: &httparse::Header<'_>) -> Result<(HeaderName, HeaderValue), Refused> {
    let name = HeaderName::from_bytes(field.name.as_bytes())
        .map_err(|_| Refused::Malformed("the name of a header is not a token"))?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
        .map_err(|_| Refused::Malformed("the value of a header has control characters"))?;
    Ok((name, value))
}

/// Host must be a name or address with an optional port: nothing that another parser could take for userinfo, a path
/// or a list.
fn check_host(host: &[u8]) -> Result<(), Refused> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
    if host.iter().all(plain) { Ok(()) } else { Err(Refused::Malformed("Host is not a name with an optional port")) }
}

pub(super) fn malformed(error: httparse::Error) -> Refused {
    Refused::Malformed(match error {
        httparse::Error::HeaderName => "the name of a header is not a token, or a space comes before its colon",
        httparse::Error::HeaderValue => "the value of a header has control characters",
        httparse::Error::NewLine => "a line of the head ends in CR without LF",
        httparse::Error::Status => "the status is not a number of three digits",
        httparse::Error::Token => "the method or the target has characters that are not allowed",
        httparse::Error::TooManyHeaders => return Refused::TooLarge,
        httparse::Error::Version => "the version is not HTTP/1.0 or HTTP/1.1",
    })
}

#[cfg(test)]
#[path = "request/tests.rs"]
mod tests;
