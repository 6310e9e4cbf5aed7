//! A record as a log record of OTLP.

use opentelemetry::{
    SpanId, TraceFlags, TraceId,
    logs::{LogRecord, Logger, Severity},
};

use super::{access_log, attributes::Visit, clock::Clock, record::Record, verdict};

/// Whether a record is sent: all errors, else what is sampled. Its trace can then be looked up.
pub fn wants(record: &Record) -> bool {
    verdict::is_error(record) || record.trace().sampled
}

/// Emits one log record.
pub fn emit(record: &Record, clock: &Clock, logger: &impl Logger) {
    let mut event = logger.create_log_record();
    let trace = record.trace();
    event.set_event_name(access_log::event_name(record));
    event.set_timestamp(clock.wall(record.ended()));
    let (severity, text) =
        if verdict::is_error(record) { (Severity::Error, "ERROR") } else { (Severity::Info, "INFO") };
    event.set_severity_number(severity);
    event.set_severity_text(text);
    event.set_trace_context(
        TraceId::from_bytes(trace.trace.to_be_bytes()),
        SpanId::from_bytes(trace.span.to_be_bytes()),
        Some(if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED }),
    );
    access_log::attributes(record, &mut Attributes(&mut event));
    logger.emit(event);
}

struct Attributes<'a, R>(&'a mut R);

impl<R: LogRecord> Visit for Attributes<'_, R> {
    fn text(&mut self, key: &'static str, value: &str) {
        self.0.add_attribute(key, value.to_owned());
    }

    fn word(&mut self, key: &'static str, value: &'static str) {
        self.0.add_attribute(key, value);
    }

    fn number(&mut self, key: &'static str, value: i64) {
        self.0.add_attribute(key, value);
    }

    fn seconds(&mut self, key: &'static str, value: f64) {
        self.0.add_attribute(key, value);
    }

    fn flag(&mut self, key: &'static str, value: bool) {
        self.0.add_attribute(key, value);
    }
}
