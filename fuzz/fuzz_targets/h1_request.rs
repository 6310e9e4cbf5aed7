//! Requests of HTTP/1.1: however the bytes are cut, they are read in the same way, and what is passed on is read by our own
//! reader as what it was.

#![no_main]

use agent::http1::{
    HeadLimits, Refused,
    body::Decoder,
    chunked::Piece,
    framing::{self, Framing},
    lines::Lines,
    request::{self, RequestHead},
    write,
};
use bytes::BytesMut;
use http::header;
use libfuzzer_sys::{Corpus, fuzz_target};

const LIMITS: HeadLimits = HeadLimits { bytes: 8 << 10, fields: 64 };

/// The head and how many bytes it took, from bytes that arrive in two parts.
fn read(bytes: &[u8], cut: usize) -> Result<Option<(RequestHead, usize)>, Refused> {
    let (mut buffer, mut lines) = (BytesMut::from(&bytes[..cut]), Lines::default());
    let mut head = request::take(&mut buffer, &mut lines, LIMITS)?;
    buffer.extend_from_slice(&bytes[cut..]);
    if head.is_none() {
        head = request::take(&mut buffer, &mut lines, LIMITS)?;
    }
    Ok(head.map(|head| (head, bytes.len() - buffer.len())))
}

/// The body of a message, or whether more is needed.
fn body(bytes: &[u8], cut: usize, framing: Framing) -> Result<Option<Vec<u8>>, Refused> {
    let (mut decoder, mut buffer, mut data) = (Decoder::new(framing), BytesMut::from(&bytes[..cut]), Vec::new());
    let mut rest = Some(&bytes[cut..]);
    loop {
        match decoder.next(&mut buffer)? {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::End(_) => return Ok(Some(data)),
            Piece::Partial => match rest.take() {
                Some(rest) => buffer.extend_from_slice(rest),
                None => return Ok(None),
            },
        }
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((selector, bytes)) = data.split_first() else { return Corpus::Reject };
    let cut = usize::from(*selector).min(bytes.len());
    let whole = read(bytes, 0);
    let parts = read(bytes, cut);
    let (head, length) = match (whole, parts) {
        (Ok(Some(whole)), Ok(Some(parts))) => {
            assert_eq!((&whole.0.uri, whole.0.framing, whole.1), (&parts.0.uri, parts.0.framing, parts.1));
            whole
        }
        // What is refused early is refused in any case.
        (Err(_), Err(_)) | (Ok(None), Ok(None)) => return Corpus::Keep,
        (whole, parts) => panic!("{whole:?} and {parts:?}"),
    };
    let rest = &bytes[length..];
    let cut = usize::from(*selector).min(rest.len());
    assert_eq!(body(rest, 0, head.framing).is_ok(), body(rest, cut, head.framing).is_ok(), "a cut changes the body");

    let mut headers = head.headers.clone();
    framing::remove(&mut headers);
    headers.remove(header::CONNECTION);
    if !headers.contains_key(header::HOST) {
        headers.insert(header::HOST, header::HeaderValue::from_static("a"));
    }
    let mut out = BytesMut::new();
    write::request_head(&mut out, &head.method, &head.uri, &headers, head.framing);
    let limits = HeadLimits { bytes: 64 << 10, fields: 80 };
    let again = request::take(&mut out, &mut Lines::default(), limits).expect("valid").expect("complete");
    assert!(out.is_empty(), "what is passed on holds more than a head");
    assert_eq!(again.framing, head.framing);
    assert_eq!(again.method, head.method);
    Corpus::Keep
});
