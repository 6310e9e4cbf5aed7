//! Attributes as members of a JSON object. Numbers and addresses are most of a line, and the formatting of the standard
//! library is most of their cost, so they are written digit by digit.

use std::{io::Write, net::IpAddr};

use crate::report::{attributes::Visit, clock::digits};

/// Writes members of an object that has one already.
pub(super) struct Json<'a>(&'a mut Vec<u8>);

// === impl Json ===

impl<'a> Json<'a> {
    /// Goes on after the first member of an object.
    pub(super) fn after_first(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    /// A value that needs no escape.
    pub(super) fn bytes(&mut self, key: &'static str, value: &[u8]) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(value);
        self.0.push(b'"');
    }

    /// Keys are our own words, which need no escape.
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

impl Visit for Json<'_> {
    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        escape(value, self.0);
    }

    fn word(&mut self, key: &'static str, value: &'static str) {
        self.bytes(key, value.as_bytes());
    }

    fn number(&mut self, key: &'static str, value: i64) {
        self.key(key);
        if value < 0 {
            self.0.push(b'-');
        }
        digits(value.unsigned_abs(), 1, self.0);
    }

    /// With six decimals: durations are measured in microseconds at best.
    fn seconds(&mut self, key: &'static str, value: f64) {
        self.key(key);
        // A cast to an integer stops at its bounds, which lie beyond any duration.
        let micros = (value * 1e6).round() as u64;
        digits(micros / 1_000_000, 1, self.0);
        self.0.push(b'.');
        digits(micros % 1_000_000, 6, self.0);
    }

    fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn address(&mut self, key: &'static str, value: IpAddr) {
        self.key(key);
        self.0.push(b'"');
        match value {
            IpAddr::V4(address) => {
                for (at, octet) in address.octets().into_iter().enumerate() {
                    if at > 0 {
                        self.0.push(b'.');
                    }
                    digits(octet.into(), 1, self.0);
                }
            }
            // Writing to a vector does not fail.
            IpAddr::V6(address) => drop(write!(self.0, "{address}")),
        }
        self.0.push(b'"');
    }
}

/// A JSON string (RFC 8259). Control characters of the second block and the two line separators of Unicode are escaped
/// too: they are legal, but a terminal or a reader of lines would act on them.
fn escape(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    // Nearly all text is plain ASCII; one pass over its bytes tells.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        escape_chars(text, out);
    }
    out.push(b'"');
}

#[cold]
fn escape_chars(text: &str, out: &mut Vec<u8>) {
    let mut plain = 0;
    for (at, char) in text.char_indices() {
        let is_plain = !matches!(char, '"' | '\\' | '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}');
        if is_plain {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[plain..at]);
        plain = at + char.len_utf8();
        // Writing to a vector does not fail.
        let _ = match char {
            '"' | '\\' => write!(out, "\\{char}"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            other => write!(out, "\\u{:04x}", u32::from(other)),
        };
    }
    out.extend_from_slice(&text.as_bytes()[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_one_json_string_on_one_line() {
        let cases =
            ["", "plain", "quote \" backslash \\", "\n\r\t\0\x1b[31m\x7f", "é 世界 🦀", "\u{85}\u{2028}\u{feff}"];
        for text in cases {
            let mut out = Vec::new();
            escape(text, &mut out);
            let shown = String::from_utf8(out).unwrap();
            assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text, "{shown}");
            assert!(!shown.chars().any(|char| char.is_control() || char == '\u{2028}'), "{shown:?}");
        }
        let mut out = Vec::new();
        escape("a\x01\"b", &mut out);
        assert_eq!(out, br#""a\u0001\"b""#);
    }

    #[test]
    fn values_are_json() {
        let mut out = b"{\"a\":0".to_vec();
        let mut json = Json::after_first(&mut out);
        json.number("zero", 0);
        json.number("most", i64::MAX);
        json.number("least", i64::MIN);
        json.seconds("none", 0.0);
        json.seconds("little", 0.000_000_4);
        json.seconds("more", 3_600.000_001_5);
        json.flag("yes", true);
        json.address("v4", "192.0.2.10".parse().unwrap());
        json.address("v6", "2001:db8::1".parse().unwrap());
        out.push(b'}');
        let expected = r#"{"a":0,"zero":0,"most":9223372036854775807,"least":-9223372036854775808,"none":0.000000,"#
            .to_owned()
            + r#""little":0.000000,"more":3600.000002,"yes":true,"v4":"192.0.2.10","v6":"2001:db8::1"}"#;
        let text = String::from_utf8(out).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
        assert_eq!(text, expected);
    }
}
