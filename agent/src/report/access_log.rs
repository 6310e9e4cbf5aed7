//! A record as a log line: one JSON object with the attribute names of its spans as keys.

mod json;

use self::json::Json;
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
    out.push(b'"');
    let mut json = Json::after_first(out);
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
