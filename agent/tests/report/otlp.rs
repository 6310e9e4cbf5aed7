//! From requests on a worker to a collector.

use std::{collections::HashMap, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use agent::{
    report::{
        access_log::AccessLog,
        export::{NodeIdentity, start_with},
        outcome::Outcome,
        record::{Downstream, Reporter},
        trace::{self, SpanContext},
    },
    table::{Balance, FrontendKind},
};
use http::Request;
use runtime::{
    args::Problems,
    telemetry::{Component, Telemetry, settings::Settings},
};

use crate::{
    collector::{Collector, text},
    fixture::*,
};

const LIMIT: Duration = Duration::from_secs(5);
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn component(collector: &Collector, more: &[(&str, &str)]) -> Component {
    let mut vars = HashMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
        ("OTEL_METRICS_EXPORTER", "none".to_owned()),
    ]);
    vars.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let mut problems = Problems::new();
    let settings = Settings::parse(|name| vars.get(name).cloned(), &mut problems);
    problems.finish().unwrap();
    Telemetry::new(settings).unwrap().component("portico-agent", Vec::new()).unwrap()
}

fn node() -> NodeIdentity {
    NodeIdentity { name: "worker-1".into() }
}

fn client(number: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, (number / 250) as u8, (number % 250) as u8 + 1], 50_000))
}

/// Serves a request of client `number`, as a worker would. The answer is the span that the endpoint saw as its parent.
fn serve(reporter: &Rc<Reporter>, number: usize, traceparent: Option<&str>, trusted: bool) -> SpanContext {
    let downstream = Downstream { client: client(number), ..(*downstream(FrontendKind::NodePort)).clone() };
    let mut request = Request::get(format!("/{number}")).header("host", "web.shop");
    if let Some(value) = traceparent {
        request = request.header("traceparent", value);
    }
    let mut request = request.body(()).unwrap();
    let (parent, link) = trace::continue_or_restart(request.headers(), trusted);
    let mut open = reporter.request(Arc::new(downstream), &request, parent);
    let span = reporter.traces.span();
    reporter.traces.inject(request.headers_mut(), open.trace(), span, trusted);
    open.note(|record| {
        record.link = link;
        record.target = Some(target("web", Balance::Random));
        record.status = 200;
        let mut attempt = attempt(1, record.started, Outcome::Complete);
        attempt.span = span;
        record.attempts.push(attempt);
    });
    open.close(Outcome::Complete);
    SpanContext::extract(request.headers()).unwrap()
}

#[test]
fn a_thousand_requests_are_a_thousand_server_spans_with_their_clients() {
    let collector = Collector::start();
    let component =
        component(&collector, &[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")]);
    let reporting = start_with(&component, node(), AccessLog::Off, std::io::sink()).unwrap();
    let reporter = Rc::new(reporting.worker().into_reporter());
    // Only the trusted parent makes these sampled.
    let seen: Vec<SpanContext> = (0..1000).map(|number| serve(&reporter, number, Some(PARENT), true)).collect();
    let stranger = serve(&reporter, 2000, Some(PARENT), false);
    reporter.flush();
    let counts = reporting.shutdown();
    assert_eq!((counts.closed, counts.exported, counts.dropped), (1001, 1001, 0));
    component.shutdown(LIMIT).unwrap();

    let received = collector.received.lock().unwrap();
    let parent = SpanContext::parse(PARENT.as_bytes()).unwrap();
    let (servers, clients): (Vec<_>, Vec<_>) = received.spans.iter().partition(|span| span.kind == 2);
    assert_eq!((servers.len(), clients.len()), (1000, 1000));
    let by_client: HashMap<_, _> =
        servers.iter().map(|span| (text(&span.attributes, "client.address").unwrap().to_owned(), *span)).collect();
    let by_id: HashMap<_, _> = clients.iter().map(|span| (span.span_id.clone(), *span)).collect();
    for (number, seen) in seen.iter().enumerate() {
        let server = by_client[&client(number).ip().to_string()];
        assert_eq!(text(&server.attributes, "url.path"), Some(format!("/{number}").as_str()));
        assert_eq!(server.trace_id, parent.trace.to_be_bytes());
        assert_eq!(server.parent_span_id, parent.span.to_be_bytes());
        let client = by_id[&seen.span.to_be_bytes().to_vec()];
        assert_eq!((&client.parent_span_id, &client.trace_id), (&server.span_id, &server.trace_id));
        assert_eq!(client.kind, 3);
        assert_eq!((seen.trace, seen.sampled), (parent.trace, true));
    }
    assert!(stranger.trace != parent.trace && !stranger.sampled, "a stranger cannot force sampling");
}

#[test]
fn records_of_logs_carry_their_trace() {
    let collector = Collector::start();
    let component = component(&collector, &[("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_LOGS_EXPORTER", "otlp")]);
    let reporting = start_with(&component, node(), AccessLog::Off, std::io::sink()).unwrap();
    let reporter = Rc::new(reporting.worker().into_reporter());
    serve(&reporter, 1, None, false);
    let open = reporter.request(downstream(FrontendKind::NodePort), &Request::get("/").body(()).unwrap(), None);
    let trace = open.trace();
    open.close(Outcome::NoEndpoints);
    reporter.flush();
    reporting.shutdown();
    component.shutdown(LIMIT).unwrap();

    let received = collector.received.lock().unwrap();
    assert!(received.spans.is_empty());
    assert_eq!(received.logs.len(), 1, "errors are logged whatever is sampled, successes are not");
    let log = &received.logs[0];
    assert_eq!((log.event_name.as_str(), log.severity_text.as_str()), ("portico.access.http", "ERROR"));
    assert_eq!((&log.trace_id[..], &log.span_id[..]), (&trace.trace.to_be_bytes()[..], &trace.span.to_be_bytes()[..]));
    assert_eq!(text(&log.attributes, "portico.reason"), Some("NO_ENDPOINTS"));
    assert_eq!(text(&log.attributes, "client.address"), Some("203.0.113.7"));
    assert!(log.body.is_none());
}
