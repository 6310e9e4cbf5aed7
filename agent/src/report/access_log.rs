//! A record as a log line: one JSON object with the attribute names of its spans as keys.

use std::{io::Write, net::IpAddr};

use super::{
    attributes::{self, Visit},
    clock::{self, Clock},
    record::Record,
    verdict,
};

/// Which records are logged (`--access-log`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    #[default]
    Off,
    /// Those with an `error.type` or a status from 500 on.
    Errors,
    /// All.
    All,
}

// === impl AccessLog ===

impl AccessLog {
    /// Whether a record is logged.
    pub fn wants(self, record: &Record) -> bool {
        match self {
            AccessLog::Off => false,
            AccessLog::Errors => verdict::is_error(record),
            AccessLog::All => true,
        }
    }
}

/// Appends the line of a record, with its line feed. `node` tells the agents of one process apart.
pub fn line(record: &Record, clock: &Clock, node: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"timestamp":""#);
    clock::write_rfc3339(clock.wall(record.ended()), out);
    let severity = if verdict::is_error(record) { "ERROR" } else { "INFO" };
    let trace = record.trace();
    let mut json = Json(out);
    json.0.push(b'"');
    json.word("severity", severity);
    json.word("event", event_name(record));
    json.bytes("trace_id", &trace.trace_hex());
    json.bytes("span_id", &trace.span_hex());
    json.flag("sampled", trace.sampled);
    json.text("k8s.node.name", node);
    attributes(record, &mut json);
    out.extend_from_slice(b"}\n");
}

/// All attributes of a log record, as a line or over OTLP.
pub fn attributes(record: &Record, visit: &mut impl Visit) {
    match record {
        Record::Request(record) => {
            visit.seconds("portico.duration", record.took.as_secs_f64());
            attributes::request(record, visit);
            attributes::request_sizes(record, visit);
            attributes::last_attempt(&record.attempts, visit);
        }
        Record::Connection(record) => {
            visit.seconds("portico.duration", record.took.as_secs_f64());
            visit.word("portico.connection.protocol", record.protocol);
            attributes::connection(record, visit);
            attributes::last_attempt(&record.attempts, visit);
        }
    }
}

/// The name of the event that a record is.
pub fn event_name(record: &Record) -> &'static str {
    match record {
        Record::Request(_) => "portico.access.http",
        Record::Connection(_) => "portico.access.l4",
    }
}

/// Writes members of a JSON object that has one already. Writing to a vector does not fail, so results are dropped.
struct Json<'a>(&'a mut Vec<u8>);

// === impl Json ===

impl Json<'_> {
    /// Keys are our own words, which need no escape.
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// A value that needs no escape.
    fn bytes(&mut self, key: &'static str, value: &[u8]) {
        self.key(key);
        self.0.push(b'"');
        self.0.extend_from_slice(value);
        self.0.push(b'"');
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
        let _ = write!(self.0, "{value}");
    }

    fn seconds(&mut self, key: &'static str, value: f64) {
        self.key(key);
        let _ = write!(self.0, "{value:.6}");
    }

    fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        let _ = write!(self.0, "{value}");
    }

    fn address(&mut self, key: &'static str, value: IpAddr) {
        self.key(key);
        let _ = write!(self.0, "\"{value}\"");
    }
}

/// A JSON string (RFC 8259). Control characters of the second block and the two line separators of Unicode are escaped
/// too: they are legal, but a terminal or a reader of lines would act on them.
fn escape(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut plain = 0;
    for (at, char) in text.char_indices() {
        let is_plain = !matches!(char, '"' | '\\' | '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}');
        if is_plain {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[plain..at]);
        plain = at + char.len_utf8();
        let _ = match char {
            '"' | '\\' => write!(out, "\\{char}"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            other => write!(out, "\\u{:04x}", u32::from(other)),
        };
    }
    out.extend_from_slice(&text.as_bytes()[plain..]);
    out.push(b'"');
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
}
