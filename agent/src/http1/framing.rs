//! How long a body is, from the headers of its message (RFC 9112 section 6).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Refused;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes, more than none.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// When the connection ends; answers only.
    UntilClose,
}

/// What the framing headers of a message say, collected while they are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Declared {
    length: Option<u64>,
    chunked: bool,
    /// `Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// `Connection: upgrade`.
    pub upgrade: bool,
}

// === impl Declared ===

impl Declared {
    /// Takes note of a field, if it is one of those that matter.
    ///
    /// # Errors
    /// [`Refused::Malformed`] on lengths and encodings that can be read in two ways.
    pub fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Refused> {
        match *name {
            header::CONTENT_LENGTH => {
                let before = self.length.replace(length(value.as_bytes())?);
                // Equal values in two fields are allowed to be merged, and are merged differently by different servers.
                return before.map_or(Ok(()), |_| Err(Refused::Malformed("there is more than one Content-Length")));
            }
            header::TRANSFER_ENCODING => {
                if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(Refused::Malformed("Transfer-Encoding is something else than chunked"));
                }
                self.chunked = true;
            }
            header::CONNECTION => {
                for option in options(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The framing; `None` if no field declares one.
    ///
    /// # Errors
    /// [`Refused::Malformed`] if two fields contradict each other, or HTTP/1.0 has an encoding.
    pub fn framing(&self, http10: bool) -> Result<Option<Framing>, Refused> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Refused::Malformed("there are both Content-Length and Transfer-Encoding")),
            (true, None) if http10 => Err(Refused::Malformed("HTTP/1.0 has no Transfer-Encoding")),
            (true, None) => Ok(Some(Framing::Chunked)),
            (false, Some(0)) => Ok(Some(Framing::Empty)),
            (false, Some(length)) => Ok(Some(Framing::Length(length))),
            (false, None) => Ok(None),
        }
    }

    /// Whether the connection may carry another message after this one.
    pub fn persists(&self, http10: bool) -> bool {
        !self.close && (!http10 || self.keep_alive)
    }
}

/// The elements of a comma-separated field, trimmed, without empty ones.
pub fn options(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

/// The value of Content-Length: digits and nothing else.
fn length(value: &[u8]) -> Result<u64, Refused> {
    const REFUSED: Refused = Refused::Malformed("Content-Length is not a number");
    if value.is_empty() || value.len() > 19 {
        return Err(REFUSED);
    }
    value.iter().try_fold(0u64, |length, byte| match byte {
        // 19 digits stay below 2^64.
        b'0'..=b'9' => Ok(length * 10 + u64::from(byte - b'0')),
        _ => Err(REFUSED),
    })
}

/// Removes the fields that frame a body on one connection, and mean nothing on the next.
pub fn remove(headers: &mut HeaderMap) {
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONTENT_LENGTH);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &[(&str, &str)], http10: bool, expected: Result<Option<Framing>, &str>) {
        let mut declared = Declared::default();
        let noted = fields.iter().try_for_each(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a token");
            declared.note(&name, &HeaderValue::from_str(value).expect("visible"))
        });
        let found = noted.and_then(|()| declared.framing(http10));
        assert_eq!(
            found,
            expected.map_err(|why| match why {
                "cl" => Refused::Malformed("Content-Length is not a number"),
                "cl cl" => Refused::Malformed("there is more than one Content-Length"),
                "te" => Refused::Malformed("Transfer-Encoding is something else than chunked"),
                "cl te" => Refused::Malformed("there are both Content-Length and Transfer-Encoding"),
                _ => Refused::Malformed("HTTP/1.0 has no Transfer-Encoding"),
            }),
            "{fields:?}"
        );
    }

    #[test]
    fn one_reading_or_none() {
        let (cl, te) = ("content-length", "transfer-encoding");
        check(&[], false, Ok(None));
        check(&[(cl, "0")], false, Ok(Some(Framing::Empty)));
        check(&[(cl, "12")], false, Ok(Some(Framing::Length(12))));
        check(&[(cl, "9999999999999999999")], false, Ok(Some(Framing::Length(9_999_999_999_999_999_999))));
        check(&[(te, "Chunked")], false, Ok(Some(Framing::Chunked)));
        for bad in ["", "+1", "-1", "1 ", "0x10", "1,1", "1 2", "12345678901234567890", "1.0", "１"] {
            check(&[(cl, bad)], false, Err("cl"));
        }
        check(&[(cl, "1"), (cl, "1")], false, Err("cl cl"));
        check(&[(cl, "1"), (cl, "2")], false, Err("cl cl"));
        for bad in ["", "identity", "gzip, chunked", "chunked, chunked", "chunked;a=b", "xchunked", "\u{b}chunked"] {
            if HeaderValue::from_str(bad).is_ok() {
                check(&[(te, bad)], false, Err("te"));
            }
        }
        check(&[(te, "chunked"), (te, "chunked")], false, Err("te"));
        check(&[(te, "chunked"), (cl, "5")], false, Err("cl te"));
        check(&[(cl, "5"), (te, "chunked")], false, Err("cl te"));
        check(&[(te, "chunked")], true, Err("1.0"));
    }

    #[test]
    fn connections_persist_as_their_version_says() {
        let with = |value: &'static str| {
            let mut declared = Declared::default();
            declared.note(&header::CONNECTION, &HeaderValue::from_static(value)).expect("not framing");
            declared
        };
        assert!(with("").persists(false) && !with("").persists(true));
        assert!(with("Keep-Alive").persists(true) && !with("foo, CLOSE").persists(false));
        assert!(!with("close, keep-alive").persists(true));
        assert!(with("a,Upgrade").upgrade);
    }
}
