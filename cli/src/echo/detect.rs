//! What a TCP connection speaks, decided from its first bytes.
//!
//! [`classify`] is pure. [`open`] reads until it has a verdict. Silence is not ambiguous, so it may last: a pooled
//! connection that is used later is still recognised. Only once bytes have arrived that could begin several protocols
//! is the rest of them awaited for a bounded time; after that they are raw bytes.

use bytes::{Buf, BytesMut};
use proxy_header::{ParseConfig, ProxyHeader};
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// How long the first bytes may stay ambiguous.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of a PROXY header. Version 2 could claim 64 KiB of extensions; real ones have a few hundred bytes.
const PROXY_LIMIT: usize = 4096;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PROXY_V1: &[u8] = b"PROXY ";
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Methods recognised even when a segment ends inside them. The longest is also the longest unknown method accepted.
const METHODS: [&[u8]; 10] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY"];

/// What a connection turned out to be. In each case the bytes read stay in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Anything else.
    Raw,
}

/// The outcome of [`open`].
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The protocol, and the source address from a PROXY header if one came first and named one.
    Speaks(Speaks, Option<IpAddr>),
    /// The peer closed before it had sent a byte, as probes of load balancers do.
    Closed,
    /// A PROXY header that is malformed. Nothing can be said about the client, so the connection has to end.
    Malformed,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Speaks(Speaks),
    /// A PROXY header of this many bytes.
    Proxied(usize, Option<IpAddr>),
    Malformed,
    /// A longer beginning is needed.
    More,
}

/// Reads from `io` into `buffer` until it is clear what the peer speaks. A PROXY header is taken out of the buffer.
///
/// # Errors
/// What reading failed with.
pub async fn open(io: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<Opened> {
    let mut proxied = None;
    let mut deadline = None;
    loop {
        match classify(buffer, proxied.is_none()) {
            Verdict::Speaks(speaks) => return Ok(Opened::Speaks(speaks, proxied.flatten())),
            Verdict::Malformed => return Ok(Opened::Malformed),
            Verdict::Proxied(length, address) => {
                buffer.advance(length);
                proxied = Some(address);
                deadline = None;
                continue;
            }
            Verdict::More => {}
        }
        let read = if buffer.is_empty() {
            io.read_buf(buffer).await?
        } else {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
            match timeout_at(deadline, io.read_buf(buffer)).await {
                Ok(read) => read?,
                Err(_) => return Ok(Opened::Speaks(Speaks::Raw, proxied.flatten())),
            }
        };
        if read == 0 {
            // Half-closed: what is there is all there will be.
            return Ok(if buffer.is_empty() { Opened::Closed } else { Opened::Speaks(Speaks::Raw, proxied.flatten()) });
        }
    }
}

/// The verdict on a beginning. A PROXY header is looked for only if `may_be_proxied`: one may come, not two.
fn classify(bytes: &[u8], may_be_proxied: bool) -> Verdict {
    if bytes.is_empty() {
        return Verdict::More;
    }
    if may_be_proxied && (begins(bytes, PROXY_V1) || begins(bytes, PROXY_V2)) {
        return proxy_header(bytes);
    }
    if begins(bytes, HTTP2_PREFACE) {
        // A method named PRI does not exist, and the preface was chosen to upset HTTP/1 parsers; but "PR" alone may yet
        // become something else, so the whole of it is awaited.
        return if bytes.len() < HTTP2_PREFACE.len() { Verdict::More } else { Verdict::Speaks(Speaks::Http2) };
    }
    request_line(bytes)
}

/// Whether one is a prefix of the other: `bytes` begins with `token`, or may do so once more bytes are there.
fn begins(bytes: &[u8], token: &[u8]) -> bool {
    let shared = bytes.len().min(token.len());
    bytes[..shared] == token[..shared]
}

fn proxy_header(bytes: &[u8]) -> Verdict {
    if bytes.len() < PROXY_V1.len() {
        return Verdict::More;
    }
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(bytes, config) {
        Ok((header, length)) => Verdict::Proxied(length, header.proxied_address().map(|address| address.source.ip())),
        Err(proxy_header::Error::BufferTooShort) if bytes.len() < PROXY_LIMIT => Verdict::More,
        Err(_) => Verdict::Malformed,
    }
}

/// HTTP/1 is a known method and a space, or any token of capitals followed by a space and the start of a path. The
/// latter has to come in one piece: otherwise a raw protocol that sends a word in capitals would have to wait.
fn request_line(bytes: &[u8]) -> Verdict {
    let capitals = bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')).count();
    let (token, rest) = bytes.split_at(capitals);
    match rest {
        [] if METHODS.iter().any(|method| method.starts_with(token)) => Verdict::More,
        [b' ', ..] if METHODS.contains(&token) => Verdict::Speaks(Speaks::Http1),
        [b' ', b'/', ..] if !token.is_empty() => Verdict::Speaks(Speaks::Http1),
        _ => Verdict::Speaks(Speaks::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const RAW: Verdict = Verdict::Speaks(Speaks::Raw);
    const HTTP1: Verdict = Verdict::Speaks(Speaks::Http1);

    #[test]
    fn beginnings_are_told_apart() {
        let cases: [(&[u8], Verdict); 24] = [
            (b"", Verdict::More),
            (b"G", Verdict::More),
            (b"GET", Verdict::More),
            (b"GET ", HTTP1),
            (b"GET / HTTP/1.1\r\n", HTTP1),
            (b"PUT / HTTP/1.1\r\n", HTTP1),
            (b"PUT ", HTTP1),
            (b"P", Verdict::More),
            (b"PR", Verdict::More),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Verdict::More),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Verdict::Speaks(Speaks::Http2)),
            (b"PROXY", Verdict::More),
            (b"PROXY TCP4 192.0.2.1", Verdict::More),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET", Verdict::Proxied(36, Some([192, 0, 2, 1].into()))),
            (b"PROXY UNKNOWN\r\n", Verdict::Proxied(15, None)),
            (b"PROXY nonsense\r\n", Verdict::Malformed),
            (b"\r\n\r\n", Verdict::More),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", Verdict::More),
            (b"MKCOL /dav HTTP/1.1\r\n", HTTP1),
            (b"M-SEARCH", RAW),
            (b"PING\r\n", RAW),
            (b"ping", RAW),
            (b"\x16\x03\x01", RAW),
            (b" /", RAW),
        ];
        for (bytes, verdict) in cases {
            assert_eq!(classify(bytes, true), verdict, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_second_proxy_header_is_raw_bytes() {
        assert_eq!(classify(b"PROXY UNKNOWN\r\n", false), RAW);
    }

    #[test]
    fn a_verdict_does_not_change_with_more_bytes() {
        let streams: [&[u8]; 5] = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST /x HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0",
            b"PATCHWORK of words",
            b"PROXIMITY",
        ];
        for stream in streams {
            let mut verdicts = (1..=stream.len()).map(|end| classify(&stream[..end], true));
            let first = verdicts.find(|verdict| *verdict != Verdict::More).unwrap();
            assert!(verdicts.all(|verdict| verdict == first), "{:?}", String::from_utf8_lossy(stream));
        }
    }

    #[tokio::test]
    async fn version_2_of_the_proxy_header_names_the_client_in_any_segmentation() {
        let address = proxy_header::ProxiedAddress::stream(
            "[2001:db8::7]:1000".parse().unwrap(),
            "[2001:db8::1]:80".parse().unwrap(),
        );
        let mut bytes = Vec::new();
        ProxyHeader::with_address(address).encode_v2(&mut bytes).unwrap();
        let header = bytes.len();
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        for cut in 1..bytes.len() {
            let mut stream = AsyncReadExt::chain(&bytes[..cut], &bytes[cut..]);
            let mut buffer = BytesMut::new();
            let opened = open(&mut stream, &mut buffer).await.unwrap();
            assert_eq!(opened, Opened::Speaks(Speaks::Http1, Some("2001:db8::7".parse().unwrap())), "cut at {cut}");
            assert!(bytes[header..].starts_with(&buffer), "cut at {cut}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_may_last_but_ambiguity_may_not() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let mut buffer = BytesMut::new();
        let began = Instant::now();
        let speak = async {
            tokio::time::sleep(10 * PATIENCE).await;
            client.write_all(b"PO").await.unwrap();
            std::future::pending::<()>().await;
        };
        let opened = tokio::select! {
            opened = open(&mut server, &mut buffer) => opened.unwrap(),
            () = speak => unreachable!("the client stays silent for ever"),
        };
        assert_eq!(opened, Opened::Speaks(Speaks::Raw, None));
        assert_eq!(&buffer[..], b"PO");
        assert_eq!(began.elapsed().as_secs(), 11 * PATIENCE.as_secs());
    }

    #[tokio::test]
    async fn an_end_decides_as_well() {
        for (bytes, expected) in [(&b""[..], Opened::Closed), (b"GE", Opened::Speaks(Speaks::Raw, None))] {
            let opened = open(&mut &bytes[..], &mut BytesMut::new()).await.unwrap();
            assert_eq!(opened, expected);
        }
    }
}
