//! A record as spans: one SERVER span for the request or connection, and one CLIENT span under it for each attempt to
//! reach an endpoint.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{
        Event, Link, SpanContext as OtelContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState as OtelState,
    },
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{
    attributes::{self, Visit},
    clock::Clock,
    method,
    outcome::Outcome,
    record::{Attempt, ConnectionRecord, Record, RequestRecord},
    trace::SpanContext,
    verdict,
};
use crate::table::Target;

/// Room for the attributes of a request, so that their vector does not grow.
const ATTRIBUTES: usize = 32;

/// Hands the spans of a record to `take`, the parent first. Whether the record is sampled is the caller's question.
pub fn spans(record: &Record, clock: &Clock, scope: &InstrumentationScope, take: impl FnMut(SpanData)) {
    match record {
        Record::Request(record) => request(record, clock, scope, take),
        Record::Connection(record) => connection(record, clock, scope, take),
    }
}

fn request(record: &RequestRecord, clock: &Clock, scope: &InstrumentationScope, mut take: impl FnMut(SpanData)) {
    let name = name(record);
    let mut server = KeyValues::new();
    attributes::request(record, &mut server);
    let status = match (verdict::request_failed(record), record.outcome) {
        (false, _) => Status::Unset,
        // The status code says it already.
        (true, Outcome::Complete) => Status::error(""),
        (true, outcome) => Status::error(outcome.hint()),
    };
    let draft = Draft { clock, scope, trace: record.trace };
    let links = record.link.iter().map(|link| {
        let context = otel_context(*link, link.span, true);
        Link::new(context, vec![KeyValue::new("portico.link.reason", "untrusted")], 0)
    });
    let mut span = draft.server(name.clone(), (record.started, record.took), server, status);
    span.links.links = links.collect();
    take(span);
    for (at, attempt) in record.attempts.iter().enumerate() {
        let mut client = KeyValues::new();
        attributes::request_attempt(record, attempt, at, &mut client);
        let status = match verdict::attempt_error(record, attempt) {
            None => Status::Unset,
            Some(_) if attempt.outcome == Outcome::Complete => Status::error(""),
            Some(_) => Status::error(attempt.outcome.hint()),
        };
        let mut span = draft.client(attempt, name.clone(), attempt.took, client, status);
        if let Some(connected) = attempt.connected.filter(|_| !attempt.reused) {
            let time = clock.wall(attempt.started + connected);
            span.events.events = vec![Event::new("connected", time, Vec::new(), 0)];
        }
        take(span);
    }
}

fn connection(record: &ConnectionRecord, clock: &Clock, scope: &InstrumentationScope, mut take: impl FnMut(SpanData)) {
    let service = record.target.as_deref().map(Target::display_name);
    let name = |verb: &'static str| match &service {
        Some(service) => format!("{verb} {service}").into(),
        None => Cow::Borrowed(verb),
    };
    let mut server = KeyValues::new();
    attributes::connection(record, &mut server);
    let status = match record.outcome.error_type() {
        None => Status::Unset,
        Some(_) => Status::error(record.outcome.hint()),
    };
    let draft = Draft { clock, scope, trace: record.trace };
    take(draft.server(name(record.protocol), (record.started, record.took), server, status));
    for attempt in &record.attempts {
        let mut client = KeyValues::new();
        attributes::connection_attempt(record, attempt, &mut client);
        let status = match attributes::connect_error(attempt) {
            None => Status::Unset,
            Some(_) => Status::error(attempt.outcome.hint()),
        };
        let took = attempt.connected.unwrap_or(attempt.took);
        take(draft.client(attempt, name("connect"), took, client, status));
    }
}

/// A name of few values: the gRPC method, else the method and the Service. The path is known to the client only.
fn name(record: &RequestRecord) -> Cow<'static, str> {
    if record.grpc
        && let Some(method) = attributes::rpc_method(record)
    {
        return method.to_owned().into();
    }
    let method = match method::label(&record.method) {
        "_OTHER" => "HTTP",
        known => known,
    };
    match record.target.as_deref() {
        Some(target) => format!("{method} {}", target.display_name()).into(),
        None => method.into(),
    }
}

/// What the spans of one record have in common.
struct Draft<'a> {
    clock: &'a Clock,
    scope: &'a InstrumentationScope,
    trace: SpanContext,
}

// === impl Draft ===

impl Draft<'_> {
    fn server(
        &self,
        name: Cow<'static, str>,
        (started, took): (Instant, Duration),
        attributes: KeyValues,
        status: Status,
    ) -> SpanData {
        SpanData {
            span_context: otel_context(self.trace, self.trace.span, false),
            parent_span_id: span_id(self.trace.parent),
            parent_span_is_remote: self.trace.parent != 0,
            span_kind: SpanKind::Server,
            name,
            start_time: self.clock.wall(started),
            end_time: self.clock.wall(started + took),
            attributes: attributes.0,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn client(
        &self,
        attempt: &Attempt,
        name: Cow<'static, str>,
        took: Duration,
        attributes: KeyValues,
        status: Status,
    ) -> SpanData {
        SpanData {
            span_context: otel_context(self.trace, attempt.span, false),
            parent_span_id: span_id(self.trace.span),
            parent_span_is_remote: false,
            span_kind: SpanKind::Client,
            ..self.server(name, (attempt.started, took), attributes, status)
        }
    }
}

fn span_id(id: u64) -> SpanId {
    SpanId::from_bytes(id.to_be_bytes())
}

fn otel_context(context: SpanContext, span: u64, is_remote: bool) -> OtelContext {
    let flags = if context.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let trace = TraceId::from_bytes(context.trace.to_be_bytes());
    OtelContext::new(trace, span_id(span), flags, is_remote, OtelState::NONE)
}

/// Attributes of a span.
struct KeyValues(Vec<KeyValue>);

// === impl KeyValues ===

impl KeyValues {
    fn new() -> Self {
        Self(Vec::with_capacity(ATTRIBUTES))
    }
}

impl Visit for KeyValues {
    fn text(&mut self, key: &'static str, value: &str) {
        self.0.push(KeyValue::new(key, value.to_owned()));
    }

    fn shared(&mut self, key: &'static str, value: &Arc<str>) {
        self.0.push(KeyValue::new(key, value.clone()));
    }

    fn word(&mut self, key: &'static str, value: &'static str) {
        self.0.push(KeyValue::new(key, value));
    }

    fn number(&mut self, key: &'static str, value: i64) {
        self.0.push(KeyValue::new(key, value));
    }

    fn seconds(&mut self, key: &'static str, value: f64) {
        self.0.push(KeyValue::new(key, value));
    }

    fn flag(&mut self, key: &'static str, value: bool) {
        self.0.push(KeyValue::new(key, value));
    }

    fn address(&mut self, key: &'static str, value: IpAddr) {
        self.0.push(KeyValue::new(key, value.to_string()));
    }
}
