//! Export against a collector: what was recorded arrives, and what does not is accounted for.

mod collector;

use collector::{Answer, Collector, Wire};
use opentelemetry::KeyValue;
use opentelemetry::logs::{AnyValue, LogRecord, Logger, LoggerProvider};
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::{Span, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState, Tracer};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use runtime::args::Problems;
use runtime::telemetry::account::{Loss, SpanCounts};
use runtime::telemetry::settings::Settings;
use runtime::telemetry::{Component, Error, Telemetry};
use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(5);
const WIRES: [Wire; 2] = [Wire::Grpc, Wire::Http];

/// The variables that a deployment would set for this collector, and those given.
fn settings(collector: &Collector, more: &[(&str, &str)]) -> Settings {
    let scheme = if collector.certificate.is_some() { "https" } else { "http" };
    let port = collector.address.port();
    let protocol = if collector.wire == Wire::Grpc { "grpc" } else { "http/protobuf" };
    let mut vars = HashMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("{scheme}://localhost:{port}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_TRACES_SAMPLER", "always_on".to_owned()),
        ("OTEL_METRICS_EXPORTER", "none".to_owned()),
        ("OTEL_LOGS_EXPORTER", "none".to_owned()),
    ]);
    if let Some(certificate) = &collector.certificate {
        vars.insert("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.display().to_string());
    }
    vars.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let mut problems = Problems::new();
    let settings = Settings::parse(|name| vars.get(name).cloned(), &mut problems);
    problems.finish().unwrap();
    settings
}

fn component(collector: &Collector, more: &[(&str, &str)]) -> Component {
    let telemetry = Telemetry::new(settings(collector, more)).unwrap();
    telemetry.component("portico-agent", vec![KeyValue::new("k8s.node.name", "one")]).unwrap()
}

fn record(component: &Component, spans: usize) {
    let tracer = component.tracer.as_ref().unwrap();
    for at in 0..spans {
        let mut span = tracer.span_builder("GET web.shop").with_kind(SpanKind::Server).start(tracer);
        span.set_attribute(KeyValue::new("client.address", format!("127.0.0.{at}")));
        span.end();
    }
}

/// The account, which must balance.
fn balance(component: &Component) -> SpanCounts {
    let counts = component.span_counts();
    assert_eq!(counts.ended, counts.pending + counts.exported + counts.lost_total(), "{counts:?}");
    counts
}

fn scrape(component: &Component) -> String {
    prometheus::TextEncoder::new().encode_to_string(&component.registry.gather()).unwrap()
}

/// Checks that all of 1,000 spans arrived as recorded.
fn check_arrival(collector: &Collector, counts: SpanCounts) {
    let received = collector.received.lock().unwrap();
    let mut clients: Vec<String> = Vec::new();
    for span in received.all_spans() {
        assert_eq!((span.name.as_str(), span.kind), ("GET web.shop", 2));
        assert_eq!(span.attributes[0].key, "client.address");
        clients.push(format!("{:?}", span.attributes[0].value));
    }
    clients.sort();
    clients.dedup();
    assert_eq!(clients.len(), 1000);
    let resource = format!("{:?}", received.spans[0].resource);
    for word in ["portico-agent", "service.version", "k8s.node.name", "telemetry.sdk.name"] {
        assert!(resource.contains(word), "{word}: {resource}");
    }
    assert_eq!(counts, SpanCounts { ended: 1000, submitted: 1000, exported: 1000, ..SpanCounts::default() });
}

#[test]
fn spans_arrive_from_a_thread_without_runtime() {
    for wire in WIRES {
        let collector = Collector::start(wire, Answer::Accept);
        let component = component(&collector, &[]);
        record(&component, 1000);
        component.shutdown(LIMIT).unwrap();
        check_arrival(&collector, balance(&component));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn spans_arrive_from_a_runtime_that_is_busy() {
    for wire in WIRES {
        let collector = Collector::start(wire, Answer::Accept);
        let component = component(&collector, &[]);
        record(&component, 1000);
        // Blocking the only thread of the runtime proves that the export does not need it.
        component.shutdown(LIMIT).unwrap();
        check_arrival(&collector, balance(&component));
    }
}

#[test]
fn spans_arrive_compressed_and_through_tls() {
    for wire in WIRES {
        let collector = Collector::start_tls(wire);
        // The HTTP side of this collector does not inflate.
        let more: &[_] = if wire == Wire::Grpc { &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")] } else { &[] };
        let component = component(&collector, more);
        record(&component, 1000);
        component.shutdown(LIMIT).unwrap();
        check_arrival(&collector, balance(&component));
    }
}

#[test]
fn spans_built_at_their_end_keep_their_ids_and_are_accounted_for() {
    let collector = Collector::start(Wire::Grpc, Answer::Accept);
    let component = component(&collector, &[]);
    let sink = component.spans.clone().unwrap();
    let context = |flags| {
        let (trace, span) = (TraceId::from_bytes([7; 16]), SpanId::from_bytes([9; 8]));
        SpanContext::new(trace, span, flags, false, TraceState::NONE)
    };
    let span = SpanData {
        span_context: context(TraceFlags::SAMPLED),
        parent_span_id: SpanId::from_bytes([3; 8]),
        parent_span_is_remote: true,
        span_kind: SpanKind::Server,
        name: "GET web.shop".into(),
        start_time: SystemTime::UNIX_EPOCH,
        end_time: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: sink.scope().clone(),
    };
    sink.end(SpanData { span_context: context(TraceFlags::NOT_SAMPLED), ..span.clone() });
    sink.end(span.clone());
    component.shutdown(LIMIT).unwrap();
    sink.end(span);
    let counts = balance(&component);
    assert_eq!((counts.ended, counts.exported, counts.lost_to(Loss::AlreadyShutdown)), (2, 1, 1));
    let received = collector.received.lock().unwrap();
    let spans: Vec<_> = received.all_spans().collect();
    assert_eq!(spans.len(), 1);
    assert_eq!((&spans[0].trace_id[..], &spans[0].span_id[..]), (&[7; 16][..], &[9; 8][..]));
    assert_eq!((&spans[0].parent_span_id[..], spans[0].end_time_unix_nano), (&[3; 8][..], 1_000_000_000));
    assert!(format!("{:?}", received.spans[0].resource).contains("portico-agent"));
}

#[test]
fn spans_rejected_in_a_success_are_not_counted_as_exported() {
    for wire in WIRES {
        let collector = Collector::start(wire, Answer::Reject(3));
        let component = component(&collector, &[]);
        record(&component, 10);
        component.shutdown(LIMIT).unwrap();
        let counts = balance(&component);
        assert_eq!((counts.exported, counts.lost_to(Loss::Rejected)), (7, 3), "{wire:?}");
    }
}

#[test]
fn refusals_are_final_or_retried_by_their_kind() {
    for (code, loss, attempts) in
        [(Code::InvalidArgument, Loss::Permanent, 1), (Code::Unavailable, Loss::RetryExhausted, 4)]
    {
        for wire in WIRES {
            let collector = Collector::start(wire, Answer::Fail(code));
            let component = component(&collector, &[]);
            record(&component, 10);
            component.shutdown(LIMIT).unwrap();
            let counts = balance(&component);
            assert_eq!((counts.exported, counts.lost_to(loss)), (0, 10), "{wire:?} {code}: {counts:?}");
            assert_eq!(collector.received.lock().unwrap().attempts, attempts, "{wire:?} {code}");
        }
    }
}

#[test]
fn a_collector_that_is_not_there_costs_the_spans_and_nothing_else() {
    for wire in WIRES {
        let collector = Collector::start(wire, Answer::Accept);
        let component = component(&collector, &[]);
        collector.stop();
        record(&component, 10);
        component.shutdown(LIMIT).unwrap();
        let counts = balance(&component);
        assert_eq!(counts.lost_to(Loss::RetryExhausted), 10, "{wire:?} {counts:?}");
    }
}

#[test]
fn an_export_that_hangs_ends_at_its_time() {
    for wire in WIRES {
        let collector = Collector::start(wire, Answer::Hang);
        let component = component(&collector, &[("OTEL_BSP_EXPORT_TIMEOUT", "100")]);
        record(&component, 10);
        component.shutdown(LIMIT).unwrap();
        assert_eq!(balance(&component).lost_to(Loss::Timeout), 10, "{wire:?}");
    }
}

#[test]
fn a_full_queue_loses_the_newest_and_a_flush_has_a_limit() {
    let collector = Collector::start(Wire::Grpc, Answer::Hang);
    let component = component(&collector, &[("OTEL_BSP_MAX_QUEUE_SIZE", "20")]);
    record(&component, 50);
    let counts = balance(&component);
    assert_eq!((counts.pending, counts.lost_to(Loss::QueueFull)), (20, 30));
    let began = Instant::now();
    let limit = Duration::from_millis(200);
    match component.shutdown(limit) {
        Err(Error::Unflushed { signals, .. }) => assert_eq!(signals, ["traces"]),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    balance(&component);
}

#[test]
fn the_account_can_be_scraped() {
    let collector = Collector::start(Wire::Grpc, Answer::Reject(1));
    let component = component(&collector, &[("OTEL_BSP_SCHEDULE_DELAY", "1")]);
    record(&component, 5);
    let deadline = Instant::now() + LIMIT;
    while component.span_counts().pending > 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let counts = balance(&component);
    let text = scrape(&component);
    let value = |line: &str| {
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.unwrap_or_else(|| panic!("{line}\nnot in\n{text}")).trim().parse::<u64>().unwrap()
    };
    let exporter = "otel_component_type=\"otlp_grpc_span_exporter\"";
    let processor = "otel_component_type=\"batching_span_processor\"";
    assert_eq!(value(&format!("otel_sdk_exporter_span_exported_total{{{exporter}}}")), counts.exported);
    let rejected = format!("otel_sdk_exporter_span_exported_total{{error_type=\"rejected\",{exporter}}}");
    assert!(counts.lost_to(Loss::Rejected) > 0);
    assert_eq!(value(&rejected), counts.lost_to(Loss::Rejected));
    assert_eq!(value(&format!("otel_sdk_processor_span_processed_total{{{processor}}}")), 5);
    let full = format!("otel_sdk_processor_span_processed_total{{error_type=\"queue_full\",{processor}}}");
    assert_eq!(value(&full), 0);
    assert_eq!(value(&format!("otel_sdk_processor_span_queue_size{{{processor}}}")), 0);
}

#[test]
fn metrics_and_log_records_arrive() {
    for wire in WIRES {
        let collector = Collector::start(wire, Answer::Accept);
        let component = component(&collector, &[("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_LOGS_EXPORTER", "otlp")]);
        component.meter_provider.meter("test").u64_counter("portico.connection.accepted").build().add(3, &[]);
        let logger = component.logger_provider.as_ref().unwrap().logger("test");
        let mut line = logger.create_log_record();
        line.set_body(AnyValue::from("GET / 200"));
        logger.emit(line);
        assert!(scrape(&component).contains("portico_connection_accepted_total 3"), "scraped as well as exported");
        component.shutdown(LIMIT).unwrap();
        let received = collector.received.lock().unwrap();
        assert!(format!("{:?}", received.metrics).contains("portico.connection.accepted"), "{wire:?}");
        assert!(format!("{:?}", received.logs).contains("GET / 200"), "{wire:?}");
    }
}

#[test]
fn components_of_one_process_export_under_their_own_names() {
    let collector = Collector::start(Wire::Grpc, Answer::Accept);
    let telemetry = Telemetry::new(settings(&collector, &[])).unwrap();
    let components = ["portico-gateway", "portico-agent"].map(|name| telemetry.component(name, Vec::new()).unwrap());
    drop(telemetry);
    for component in &components {
        record(component, 1);
        component.shutdown(LIMIT).unwrap();
    }
    let received = collector.received.lock().unwrap();
    for name in ["portico-gateway", "portico-agent"] {
        let of = received.spans.iter().filter(|spans| format!("{:?}", spans.resource).contains(name));
        assert_eq!(of.count(), 1, "{name}");
    }
}
