use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 8 << 10, fields: 100 };

fn read(bytes: &[u8]) -> Result<Option<RequestHead>, Refused> {
    take(&mut BytesMut::from(bytes), &mut Lines::default(), LIMITS)
}

fn head(lines: &str) -> RequestHead {
    read(format!("{lines}\r\n\r\n").as_bytes()).expect("valid").expect("complete")
}

/// `head` is refused, whatever of it arrives first.
fn refused(head: &[u8]) {
    for cut in 0..=head.len() {
        let (mut buffer, mut lines) = (BytesMut::from(&head[..cut]), Lines::default());
        let first = take(&mut buffer, &mut lines, LIMITS);
        buffer.extend_from_slice(&head[cut..]);
        let outcome = first.and_then(|_| take(&mut buffer, &mut lines, LIMITS));
        assert!(outcome.is_err(), "{:?} cut at {cut}", String::from_utf8_lossy(head));
    }
}

#[test]
fn a_request_is_understood() {
    let head = head("POST /a?b HTTP/1.1\r\nHost: web.shop:8080\r\nContent-Length: 3\r\nExpect: 100-Continue\r\nX: y");
    assert_eq!(head.method, Method::POST);
    assert_eq!(head.uri, "/a?b");
    assert_eq!(head.framing, Framing::Length(3));
    assert!(head.persists && head.expects_continue && !head.upgrade && !head.http10);
    assert_eq!(head.headers["x"], "y");
}

#[test]
fn targets_may_be_absolute_or_an_asterisk() {
    assert_eq!(head("GET http://a.b:80/c HTTP/1.1\r\nHost: a.b").uri, "http://a.b:80/c");
    assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: a").uri, "*");
}

#[test]
fn what_follows_stays() {
    let mut buffer = BytesMut::from("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2");
    let head = take(&mut buffer, &mut Lines::default(), LIMITS).expect("valid").expect("complete");
    assert_eq!((head.framing, &*buffer), (Framing::Empty, &b"GET /2"[..]));
}

#[test]
fn upgrades_need_both_fields_and_1_1() {
    assert!(head("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket").upgrade);
    assert!(!head("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket").upgrade);
    assert!(!head("GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket").upgrade);
}

#[test]
fn old_clients_need_no_host() {
    let head = head("GET / HTTP/1.0");
    assert!(head.http10 && !head.persists);
}

#[test]
fn smuggling_shapes_are_refused() {
    let shapes: &[&[u8]] = &[
        // Two lengths, or a length and an encoding.
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\n",
        // Lengths that are not digits.
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        // Encodings that some servers take for chunked and some do not.
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        // Names that some servers clean up.
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n Content-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\n Host: a\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX[]: b\r\n\r\n",
        // Lines that some servers end elsewhere.
        b"GET / HTTP/1.1\r\nHost: a\nContent-Length: 4\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        // Control characters.
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\0ET / HTTP/1.1\r\nHost: a\r\n\r\n",
        // Request lines.
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / http/1.1\r\nHost: a\r\n\r\n",
        b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        // Hosts.
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n",
        // Other protocols.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    shapes.iter().for_each(|shape| refused(shape));
}

#[test]
fn large_heads_are_refused_before_they_are_complete() {
    assert_eq!(read(&[b'A'; 9 << 10]).err(), Some(Refused::TooLarge));
    let fields = "a: b\r\n".repeat(101);
    assert_eq!(read(format!("GET / HTTP/1.1\r\n{fields}").as_bytes()).err(), Some(Refused::TooLarge));
    let fields = "a: b\r\n".repeat(99);
    assert_eq!(head(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}", fields.trim_end())).headers.len(), 100);
}
