//! Writing heads and bodies.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

use super::framing::Framing;

/// Bytes that a field takes on average, for making room once.
const FIELD: usize = 40;

/// What ends a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The head of a request to an endpoint. `headers` must not frame the body: `framing` does.
pub fn request_head(out: &mut BytesMut, method: &Method, uri: &Uri, headers: &HeaderMap, framing: Framing) {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    out.reserve(32 + target.len() + FIELD * (headers.len() + 1));
    out.put_slice(method.as_str().as_bytes());
    out.put_slice(b" ");
    // OPTIONS without a path asks about the server as a whole (RFC 9112 section 3.2.4).
    if target.starts_with('?') {
        out.put_slice(b"/");
    }
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    fields(out, headers);
    match framing {
        // A method that usually has a body says that there is none (RFC 9110 section 8.6).
        Framing::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => length(out, 0),
        Framing::Empty | Framing::UntilClose => {}
        Framing::Length(bytes) => length(out, bytes),
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.put_slice(b"\r\n");
}

/// The status line of an answer. Fields and an empty line follow.
pub fn status_line(out: &mut BytesMut, status: StatusCode) {
    if status == StatusCode::OK {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

/// The fields of a head or of trailers.
pub fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    out.reserve(FIELD * headers.len());
    for (name, value) in headers {
        field(out, name, value);
    }
}

/// One field.
pub fn field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

/// The Content-Length field.
pub fn length(out: &mut BytesMut, length: u64) {
    out.put_slice(header::CONTENT_LENGTH.as_str().as_bytes());
    out.put_slice(b": ");
    number(out, length, 10);
    out.put_slice(b"\r\n");
}

/// The line in front of a chunk's data, which a CRLF follows.
pub fn chunk_size(out: &mut BytesMut, length: usize) {
    number(out, length as u64, 16);
    out.put_slice(b"\r\n");
}

/// The end of a chunked body with trailers.
pub fn trailers(out: &mut BytesMut, trailers: &HeaderMap) {
    out.put_slice(b"0\r\n");
    fields(out, trailers);
    out.put_slice(b"\r\n");
}

/// Digits of `value` in `base`, which is at most 16.
pub fn number(out: &mut BytesMut, mut value: u64, base: u64) {
    let (mut digits, mut at) = ([0u8; 20], 20);
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(value % base) as usize];
        value /= base;
        if value == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, uri: &str, framing: Framing) -> String {
        let mut out = BytesMut::new();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("a"));
        request_head(&mut out, &method, &uri.parse().expect("a URI"), &headers, framing);
        String::from_utf8(out.to_vec()).expect("ASCII")
    }

    #[test]
    fn requests_are_in_origin_form() {
        assert_eq!(request(Method::GET, "/x?y", Framing::Empty), "GET /x?y HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(request(Method::GET, "http://b/x", Framing::Empty), "GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(request(Method::GET, "http://b?q", Framing::Empty), "GET /?q HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(request(Method::OPTIONS, "*", Framing::Empty), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
        let post = request(Method::POST, "/", Framing::Empty);
        assert_eq!(post, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
        assert!(request(Method::PUT, "/", Framing::Length(1234)).ends_with("content-length: 1234\r\n\r\n"));
        assert!(request(Method::PUT, "/", Framing::Chunked).ends_with("transfer-encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn numbers_are_written_in_both_bases() {
        let written = |value, base| {
            let mut out = BytesMut::new();
            number(&mut out, value, base);
            String::from_utf8(out.to_vec()).expect("ASCII")
        };
        assert_eq!(written(0, 10), "0");
        assert_eq!(written(u64::MAX, 10), u64::MAX.to_string());
        assert_eq!(written(u64::MAX, 16), "ffffffffffffffff");
        assert_eq!(written(0x1_0000, 16), "10000");
    }
}
