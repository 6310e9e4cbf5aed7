//! What a client speaks, from its first bytes. Pure functions: no IO, no time.

use std::str;

/// Bytes of a ClientHello that are looked at. Those of today have less than 2 KiB, also with post-quantum key shares.
pub const HELLO_LIMIT: usize = 16 << 10;

/// The first bytes of a client that begins with HTTP/2 (RFC 9113 section 3.4).
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for HTTP; the longest registered one has 17 bytes.
const METHOD_LIMIT: usize = 24;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A TLS handshake.
    Tls,
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// None of them.
    Other,
}

/// What is known of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// It is one; the server name is in lower case, and `None` if there is none that could be a host name.
    Complete(Option<Box<str>>),
    /// It is none.
    Other,
}

/// What `bytes` begin with; `None` while that is open, which it is for less than 24 bytes.
pub fn opening(bytes: &[u8]) -> Option<Opening> {
    match bytes {
        [] => return None,
        [0x16] => return None,
        [0x16, 3, ..] => return Some(Opening::Tls),
        _ => {}
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return (bytes.len() == HTTP2_PREFACE.len()).then_some(Opening::Http2);
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Some(Opening::Http2);
    }
    match bytes.iter().take(METHOD_LIMIT).position(|byte| !is_method(*byte)) {
        Some(0) => Some(Opening::Other),
        Some(end) if bytes[end] == b' ' => Some(Opening::Http1),
        Some(_) => Some(Opening::Other),
        None if bytes.len() < METHOD_LIMIT => None,
        None => Some(Opening::Other),
    }
}

/// Methods are upper case by convention; taking fewer bytes for one keeps text protocols apart.
fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-'
}

/// The ClientHello at the begin of `bytes`, also if it is spread over several records. It is read only as far as the
/// server name needs; whether it makes sense is for the one who terminates TLS.
pub fn client_hello(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    while let Some((header, tail)) = rest.split_first_chunk::<5>() {
        let [0x16, 3, _, high, low] = *header else { return Hello::Other };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || message.len() + length > HELLO_LIMIT {
            return Hello::Other;
        }
        message.extend_from_slice(&tail[..length.min(tail.len())]);
        match handshake(&message) {
            Hello::Incomplete if tail.len() >= length => rest = &tail[length..],
            hello => return hello,
        }
    }
    match rest {
        [] | [0x16] | [0x16, 3, ..] => Hello::Incomplete,
        _ => Hello::Other,
    }
}

/// A handshake message, as far as it has come (RFC 8446 section 4).
fn handshake(message: &[u8]) -> Hello {
    match message {
        [1, ..] | [] => {}
        _ => return Hello::Other,
    }
    let Some((header, body)) = message.split_first_chunk::<4>() else { return Hello::Incomplete };
    let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    if length > HELLO_LIMIT {
        return Hello::Other;
    }
    match body.get(..length) {
        Some(body) => Hello::Complete(server_name(body).and_then(host_name)),
        None => Hello::Incomplete,
    }
}

/// The server name of a ClientHello's body (RFC 8446 section 4.1.2, RFC 6066 section 3).
fn server_name(body: &[u8]) -> Option<&[u8]> {
    let mut hello = Fields(body);
    hello.take(2 + 32)?;
    let length = hello.byte()?;
    hello.take(length)?;
    hello.block()?;
    let length = hello.byte()?;
    hello.take(length)?;
    let mut extensions = Fields(hello.block()?);
    loop {
        let kind = extensions.number()?;
        let content = extensions.block()?;
        if kind == 0 {
            let mut names = Fields(Fields(content).block()?);
            loop {
                let kind = names.byte()?;
                let name = names.block()?;
                if kind == 0 {
                    return Some(name);
                }
            }
        }
    }
}

fn host_name(name: &[u8]) -> Option<Box<str>> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = (1..=253).contains(&name.len()) && name.iter().all(allowed);
    let name = str::from_utf8(name).ok().filter(|_| valid)?;
    Some(name.to_ascii_lowercase().into())
}

/// Bytes that are taken off from the front.
struct Fields<'a>(&'a [u8]);

// === impl Fields ===

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<usize> {
        self.take(1).map(|bytes| usize::from(bytes[0]))
    }

    fn number(&mut self) -> Option<usize> {
        self.take(2).map(|bytes| usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
    }

    /// A block behind its length in two bytes.
    fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests;
