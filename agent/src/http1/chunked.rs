//! The chunked encoding (RFC 9112 section 7.1), read without leniency: whoever forwards what it cannot read for sure
//! lets the next server read it differently.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, header};

use super::{
    HeadLimits, Refused,
    lines::{Ending, Lines},
    request::{field_of, malformed},
};

/// Bytes of a line with a chunk size, its extension included.
const LINE: usize = 512;

/// Bytes of extensions in one body. They carry nothing that is forwarded, so a body made of them is an attack.
const EXTENSIONS: usize = 8 << 10;

/// Bounds of trailers.
const TRAILERS: HeadLimits = HeadLimits { bytes: 16 << 10, fields: TRAILER_FIELDS };
const TRAILER_FIELDS: usize = 32;

/// Where in a chunked body the reader is.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    extensions: usize,
}

#[derive(Debug)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers(Lines),
    Done,
}

/// The next piece of a body.
#[derive(Debug)]
pub enum Piece {
    /// Data, never empty.
    Data(Bytes),
    /// The body is over; trailers are there if any were sent.
    End(Option<HeaderMap>),
    /// More bytes are needed.
    Partial,
}

// === impl Chunked ===

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size, extensions: 0 }
    }
}

impl Chunked {
    /// Takes the next piece off the front of `buffer`.
    ///
    /// # Errors
    /// [`Refused`] for sizes, line ends and trailers that are not exactly as the RFC has them.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Refused> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some(newline) = memchr::memchr(b'\n', &buffer[..buffer.len().min(LINE)]) else {
                        return if buffer.len() < LINE { self.partial_size(buffer) } else { Err(TOO_LONG) };
                    };
                    let (size, extension) = size(&buffer[..newline])?;
                    self.extensions += extension;
                    if self.extensions > EXTENSIONS {
                        return Err(Refused::Malformed("the chunk extensions are too long"));
                    }
                    buffer.advance(newline + 1);
                    self.state = if size == 0 { State::Trailers(Lines::default()) } else { State::Data(size) };
                }
                State::Data(_) if buffer.is_empty() => return Ok(Piece::Partial),
                State::Data(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    *left -= here as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    return Ok(Piece::Data(buffer.split_to(here).freeze()));
                }
                State::DataEnd => {
                    if !b"\r\n".starts_with(&buffer[..buffer.len().min(2)]) {
                        return Err(Refused::Malformed("a chunk is longer than its size"));
                    }
                    if buffer.len() < 2 {
                        return Ok(Piece::Partial);
                    }
                    buffer.advance(2);
                    self.state = State::Size;
                }
                State::Trailers(lines) => {
                    let Some(length) = lines.end(buffer, Ending::Strict, TRAILERS)? else { return Ok(Piece::Partial) };
                    let trailers = trailers(&buffer.split_to(length).freeze())?;
                    self.state = State::Done;
                    return Ok(Piece::End(trailers));
                }
                State::Done => return Ok(Piece::End(None)),
            }
        }
    }

    /// The body is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Refuses the beginning of a size early, so that garbage is answered instead of awaited.
    fn partial_size(&self, buffer: &BytesMut) -> Result<Piece, Refused> {
        match buffer.first() {
            Some(byte) if !byte.is_ascii_hexdigit() => Err(BAD_SIZE),
            _ => Ok(Piece::Partial),
        }
    }
}

const BAD_SIZE: Refused = Refused::Malformed("a chunk size is not a hexadecimal number");
const TOO_LONG: Refused = Refused::Malformed("a chunk size is too long");

/// Size of a chunk, and bytes of its extension, from a line without LF.
fn size(line: &[u8]) -> Result<(u64, usize), Refused> {
    let Some((b'\r', line)) = line.split_last() else {
        return Err(Refused::Malformed("a chunk size ends in LF without CR"));
    };
    let (digits, extension) = match memchr::memchr(b';', line) {
        Some(at) => line.split_at(at),
        None => (line, &[][..]),
    };
    if digits.is_empty() {
        return Err(BAD_SIZE);
    }
    // 15 digits are 2^60 bytes; more is an attempt at an overflow.
    if digits.len() > 15 {
        return Err(TOO_LONG);
    }
    if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Refused::Malformed("a chunk extension has control characters"));
    }
    let digit = |size: u64, byte: &u8| match byte {
        b'0'..=b'9' => Ok(size * 16 + u64::from(byte - b'0')),
        b'a'..=b'f' => Ok(size * 16 + u64::from(byte - b'a' + 10)),
        b'A'..=b'F' => Ok(size * 16 + u64::from(byte - b'A' + 10)),
        _ => Err(BAD_SIZE),
    };
    Ok((digits.iter().try_fold(0, digit)?, extension.len()))
}

/// Fields of a trailer section, without those that would change how the message was read.
fn trailers(section: &Bytes) -> Result<Option<HeaderMap>, Refused> {
    if section.len() == 2 {
        return Ok(None);
    }
    let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS + 1];
    let fields = match httparse::parse_headers(section, &mut room).map_err(malformed)? {
        httparse::Status::Complete((length, fields)) if length == section.len() => fields,
        _ => return Err(Refused::Malformed("the trailers are incomplete")),
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let (name, value) = field_of(section, field)?;
        let framing = [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::HOST,
            header::CONNECTION,
            header::TRAILER,
            header::TE,
            header::UPGRADE,
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::CONTENT_RANGE,
            header::AUTHORIZATION,
            header::COOKIE,
            header::SET_COOKIE,
        ];
        if !framing.contains(&name) {
            trailers.append(name, value);
        }
    }
    Ok((!trailers.is_empty()).then_some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers, and what is left over.
    type Read = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Reads a body that arrives in two parts.
    fn read(body: &[u8], cut: usize) -> Result<Option<Read>, Refused> {
        let (mut chunked, mut buffer, mut data) = (Chunked::default(), BytesMut::from(&body[..cut]), Vec::new());
        let mut rest = Some(&body[cut..]);
        loop {
            match chunked.next(&mut buffer)? {
                Piece::Data(piece) => data.extend_from_slice(&piece),
                Piece::End(trailers) => {
                    buffer.extend_from_slice(rest.unwrap_or_default());
                    assert!(chunked.is_done());
                    return Ok(Some((data, trailers, buffer.to_vec())));
                }
                Piece::Partial => match rest.take() {
                    Some(rest) => buffer.extend_from_slice(rest),
                    None => return Ok(None),
                },
            }
        }
    }

    fn check(body: &str, expected: &str, rest: &str) {
        for cut in 0..=body.len() {
            let (data, _, left) = read(body.as_bytes(), cut).expect("valid").expect("complete");
            assert_eq!((&*data, &*left), (expected.as_bytes(), rest.as_bytes()), "{body:?} cut at {cut}");
        }
    }

    #[test]
    fn chunks_are_joined() {
        check("0\r\n\r\n", "", "");
        check("5\r\nhello\r\n0\r\n\r\nGET", "hello", "GET");
        check("5;a=b;c=\"d\"\r\nhello\r\n00006\r\n world\r\n0;x\r\n\r\n", "hello world", "");
        check("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", "");
    }

    #[test]
    fn trailers_are_kept_unless_they_frame() {
        let body = b"1\r\nx\r\n0\r\nChecksum: abc\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\n\r\n";
        let (_, trailers, _) = read(body, 7).expect("valid").expect("complete");
        let trailers = trailers.expect("one is left");
        assert_eq!(trailers.len(), 1);
        assert_eq!(trailers["checksum"], "abc");
    }

    #[test]
    fn every_other_shape_is_refused() {
        for body in [
            "\r\n",
            ";\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5\t\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "5\nhello\r\n",
            "5\rhello\r\n",
            "g\r\n",
            "5\r\nhello0\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello\r0\r\n\r\n",
            "5\r\nhello\r\n\r\n0\r\n\r\n",
            "ffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "5;a\0b\r\nhello\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\nA: b\r\n c\r\n\r\n",
            "0\r\n: b\r\n\r\n",
            "5;\u{1b}\r\n",
            "5 ;a=b\r\nhello\r\n",
            "0,0\r\n",
            "5_0\r\n",
        ] {
            for cut in 0..=body.len() {
                assert!(read(body.as_bytes(), cut).is_err(), "{body:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn lines_extensions_and_trailers_are_bounded() {
        assert!(read(&[b'0'; LINE], 0).is_err());
        let extended = format!("1;{}\r\nx\r\n", "e".repeat(400)).repeat(30);
        assert!(read(extended.as_bytes(), 0).is_err());
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILER_FIELDS + 2));
        assert!(read(trailers.as_bytes(), 0).is_err());
    }

    #[test]
    fn incomplete_bodies_are_awaited() {
        for body in ["", "5", "5\r", "5\r\nhel", "5\r\nhello", "5\r\nhello\r", "0\r\n", "0\r\nA: b\r\n"] {
            assert!(read(body.as_bytes(), 0).expect("valid so far").is_none(), "{body:?}");
        }
    }
}
