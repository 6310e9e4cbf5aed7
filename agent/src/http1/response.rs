//! The head of an endpoint's answer.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};

use super::{
    HeadLimits, Refused,
    fields::Fields,
    framing::{Declared, Framing},
    lines::{self, Ending, Lines},
    request::malformed,
};

/// Bounds of an answer's head: generous, since endpoints are not strangers, yet bounded.
pub const LIMITS: HeadLimits = HeadLimits { bytes: 256 << 10, fields: 256 };

/// Fields for which the parser has room on the stack.
const USUAL_FIELDS: usize = 48;

/// The head of an answer, understood.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, interim ones included.
    pub status: StatusCode,
    /// All fields.
    pub fields: Fields,
    /// Length of the body.
    pub framing: Framing,
    /// The connection may carry another request after this answer.
    pub persists: bool,
}

/// Takes the head of an answer to a request of `method` off the front of `buffer`, if it is complete.
///
/// # Errors
/// [`Refused`] for what is malformed, ambiguous or too large.
pub fn take(buffer: &mut BytesMut, search: &mut Lines, method: &Method) -> Result<Option<ResponseHead>, Refused> {
    let Some(length) = search.end(buffer, Ending::Lenient, LIMITS)? else { return Ok(None) };
    let head = lines::take(buffer, length);
    let fields = search.count().saturating_sub(1);
    if fields <= USUAL_FIELDS {
        parse(&head, method, &mut [const { MaybeUninit::uninit() }; USUAL_FIELDS]).map(Some)
    } else {
        parse(&head, method, &mut vec![MaybeUninit::uninit(); fields]).map(Some)
    }
}

fn parse<'a>(
    head: &'a Bytes,
    method: &Method,
    room: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<ResponseHead, Refused> {
    let mut parsed = httparse::Response::new(&mut []);
    let complete = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, head, room)
        .map_err(malformed)?;
    let (Some(code), Some(version)) = (parsed.code, parsed.version) else {
        return Err(Refused::Malformed("the status line is incomplete"));
    };
    if complete != httparse::Status::Complete(head.len()) {
        return Err(Refused::Malformed("the head is not an answer"));
    }
    let status = StatusCode::from_u16(code).map_err(|_| Refused::Malformed("the status is below 100"))?;
    let http10 = version == 0;
    let mut declared = Declared::default();
    let fields = Fields::new(head, parsed.headers, &mut declared)?;
    let declared_framing = declared.framing(http10)?;
    let bodiless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || *method == Method::HEAD;
    let framing = if bodiless { Framing::Empty } else { declared_framing.unwrap_or(Framing::UntilClose) };
    Ok(ResponseHead { status, fields, framing, persists: declared.persists(http10) && framing != Framing::UntilClose })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &str, method: Method) -> Result<Option<(u16, Framing, bool)>, Refused> {
        let mut buffer = BytesMut::from(bytes);
        let head = take(&mut buffer, &mut Lines::default(), &method)?;
        Ok(head.map(|head| (head.status.as_u16(), head.framing, head.persists)))
    }

    fn check(head: &str, method: Method, expected: (u16, Framing, bool)) {
        assert_eq!(read(&format!("{head}\r\n\r\n"), method), Ok(Some(expected)), "{head}");
    }

    #[test]
    fn bodies_end_where_the_rules_say() {
        let get = || Method::GET;
        check("HTTP/1.1 200 OK\r\nContent-Length: 5", get(), (200, Framing::Length(5), true));
        check("HTTP/1.1 200\r\nContent-Length: 0", get(), (200, Framing::Empty, true));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", get(), (200, Framing::Chunked, true));
        check("HTTP/1.1 200 OK", get(), (200, Framing::UntilClose, false));
        check("HTTP/1.0 200 OK\r\nContent-Length: 5", get(), (200, Framing::Length(5), false));
        check("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", get(), (200, Framing::Length(5), true));
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close", get(), (200, Framing::Length(5), false));
        check("HTTP/1.1 200 OK\r\nContent-Length: 5", Method::HEAD, (200, Framing::Empty, true));
        check("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", get(), (304, Framing::Empty, true));
        check("HTTP/1.1 204 No Content", get(), (204, Framing::Empty, true));
        check("HTTP/1.1 100 Continue", get(), (100, Framing::Empty, true));
        check("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade", get(), (101, Framing::Empty, true));
    }

    #[test]
    fn ambiguity_is_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
            "HTTP/1.1 200 OK\r\nContent-Length : 5",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n folded",
            "HTTP/1.1 200 OK\r\nA: b\0",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 099 Low",
            "HTTP/2 200 OK",
            "SSH-2.0-OpenSSH_9.2",
            "",
        ] {
            assert!(read(&format!("{head}\r\n\r\n"), Method::GET).is_err(), "{head}");
        }
    }

    #[test]
    fn lines_may_end_in_lf_alone() {
        let head = "HTTP/1.1 200 OK\nContent-Length: 5\n\n";
        assert_eq!(read(head, Method::GET), Ok(Some((200, Framing::Length(5), true))));
    }

    #[test]
    fn heads_are_awaited_and_bounded() {
        assert_eq!(read("HTTP/1.1 200 OK\r\nA: b\r\n", Method::GET), Ok(None));
        let many = (0..300).map(|field| format!("h{field}: v\r\n")).collect::<String>();
        assert_eq!(read(&format!("HTTP/1.1 200 OK\r\n{many}"), Method::GET), Err(Refused::TooLarge));
        let some = (0..200).map(|field| format!("h{field}: v\r\n")).collect::<String>();
        let read = read(&format!("HTTP/1.1 200 OK\r\n{some}Content-Length: 1\r\n\r\n"), Method::GET);
        assert_eq!(read, Ok(Some((200, Framing::Length(1), true))));
    }
}
