//! Finding the end of a head or of trailers, over as many reads as it takes, looking at each byte once.

use bytes::{Buf, Bytes, BytesMut};

use super::{HeadLimits, Refused};

/// Where the search stands. One is used for one head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    /// Bytes looked at.
    scanned: usize,
    /// Where the current line begins.
    start: usize,
    /// Complete lines, without the empty one.
    lines: usize,
    /// An empty line came before.
    skipped: bool,
}

/// Takes `length` bytes off the front of `buffer` for a head, whose fields will be slices of them. They are copied where
/// they would keep alive much more than themselves: records hold on to fields after the request is over.
pub(super) fn take(buffer: &mut BytesMut, length: usize) -> Bytes {
    if buffer.capacity() <= 4 * length + 1024 {
        return buffer.split_to(length).freeze();
    }
    let head = Bytes::copy_from_slice(&buffer[..length]);
    buffer.advance(length);
    head
}

/// How a line may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// CRLF only: requests, since a lone LF is read differently by different servers.
    Strict,
    /// A lone LF as well (RFC 9112 section 2.2): answers of endpoints, which are not an attacker's.
    Lenient,
}

// === impl Lines ===

impl Lines {
    /// Looks at what was appended to `head` since the last call. Gives the length up to and with the empty line, once
    /// that is there; [`Lines::count`] is the number of lines then.
    ///
    /// # Errors
    /// [`Refused`], as soon as the bytes show it. `limits.fields` counts the lines after the first.
    pub fn end(&mut self, head: &[u8], ending: Ending, limits: HeadLimits) -> Result<Option<usize>, Refused> {
        while let Some(at) = memchr::memchr(b'\n', &head[self.scanned..]) {
            let newline = self.scanned + at;
            let line = &head[self.start..newline];
            let line = match line.split_last() {
                Some((b'\r', line)) => line,
                _ if ending == Ending::Lenient => line,
                _ => return Err(Refused::Malformed("a line of the head ends in LF without CR")),
            };
            self.scanned = newline + 1;
            self.start = self.scanned;
            if self.scanned > limits.bytes {
                return Err(Refused::TooLarge);
            }
            match line.first() {
                None => return Ok(Some(self.scanned)),
                Some(b' ' | b'\t') if self.lines > 0 => {
                    return Err(Refused::Malformed("a header is folded over several lines"));
                }
                Some(_) => self.lines += 1,
            }
            if self.lines > limits.fields + 1 {
                return Err(Refused::TooLarge);
            }
        }
        self.scanned = head.len();
        if self.scanned > limits.bytes { Err(Refused::TooLarge) } else { Ok(None) }
    }

    /// A search that begins behind an empty line.
    pub(super) fn after_empty_line() -> Self {
        Self { skipped: true, ..Self::default() }
    }

    /// Whether an empty line here would be the first thing seen.
    pub(super) fn may_skip(&self) -> bool {
        self.lines == 0 && !self.skipped
    }

    /// Nothing was looked at yet.
    pub fn is_fresh(&self) -> bool {
        self.scanned == 0
    }

    /// Lines seen, with the first one of the head and without the empty one.
    pub fn count(&self) -> usize {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 64, fields: 3 };

    /// The same result however the bytes are cut.
    fn check(head: &[u8], ending: Ending, expected: Result<Option<usize>, Refused>) {
        for cut in 0..=head.len() {
            let mut lines = Lines::default();
            let found = match lines.end(&head[..cut], ending, LIMITS) {
                Ok(None) => lines.end(head, ending, LIMITS),
                early => early,
            };
            assert_eq!(found, expected, "cut at {cut} of {:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn the_end_is_found() {
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest", Ending::Strict, Ok(Some(27)));
        check(b"\r\nrest", Ending::Strict, Ok(Some(2)));
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\r", Ending::Strict, Ok(None));
        check(b"HTTP/1.1 200 OK\nA: b\r\n\n", Ending::Lenient, Ok(Some(23)));
    }

    #[test]
    fn what_is_wrong_is_refused_at_once() {
        check(
            b"GET / HTTP/1.1\nHost",
            Ending::Strict,
            Err(Refused::Malformed("a line of the head ends in LF without CR")),
        );
        let folded = Err(Refused::Malformed("a header is folded over several lines"));
        check(b"GET / HTTP/1.1\r\nA: b\r\n c\r\n", Ending::Strict, folded);
        check(b"GET / HTTP/1.1\r\n\tb: c\r\n", Ending::Lenient, folded);
    }

    #[test]
    fn heads_are_bounded() {
        check(b"GET /\r\na: 1\r\nb: 2\r\nc: 3\r\n\r\n", Ending::Strict, Ok(Some(27)));
        check(b"GET /\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n", Ending::Strict, Err(Refused::TooLarge));
        check(&[b'a'; 65], Ending::Strict, Err(Refused::TooLarge));
        check(&[b'a'; 64], Ending::Strict, Ok(None));
    }
}
