//! Spans of single records.

use agent::report::{
    outcome::Outcome,
    record::{ConnectionRecord, Record, RequestRecord},
    span,
    trace::SpanContext,
    via::{Bypass, Via},
};
use opentelemetry::{
    InstrumentationScope,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::trace::SpanData;

use crate::fixture::*;

fn spans(record: &Record) -> Vec<SpanData> {
    spans_at(record, &begin().1)
}

fn spans_at(record: &Record, clock: &agent::report::clock::Clock) -> Vec<SpanData> {
    let mut spans = Vec::new();
    span::spans(record, clock, &InstrumentationScope::builder("test").build(), |span| spans.push(span));
    spans
}

fn request(change: impl FnOnce(&mut RequestRecord)) -> Record {
    let mut record = crate::fixture::request(begin().0);
    change(&mut record);
    Record::Request(Box::new(record))
}

fn attributes(span: &SpanData) -> Vec<String> {
    let mut attributes: Vec<_> = span.attributes.iter().map(|found| format!("{}={}", found.key, found.value)).collect();
    attributes.sort();
    assert!(attributes.windows(2).all(|pair| pair[0].split('=').next() != pair[1].split('=').next()), "{attributes:?}");
    attributes
}

fn is_error(span: &SpanData) -> bool {
    matches!(span.status, Status::Error { .. })
}

#[test]
fn a_request_is_a_server_span_and_a_client_span_per_attempt() {
    let (started, clock) = begin();
    let mut record = crate::fixture::request(started);
    record.attempts.insert(0, attempt(9, started, Outcome::ConnectRefused));
    record.attempts[1].started = started + millis(1);
    let spans = spans_at(&Record::Request(Box::new(record)), &clock);
    assert_eq!(spans.len(), 3);
    let (server, refused, client) = (&spans[0], &spans[1], &spans[2]);

    assert_eq!((server.name.as_ref(), &server.span_kind), ("GET web.shop", &SpanKind::Server));
    assert_eq!((server.start_time, server.end_time), (at(0), at(10)));
    assert_eq!(server.span_context.span_id().to_string(), "00000000000000a1");
    assert_eq!((server.parent_span_id.to_string().as_str(), server.parent_span_is_remote), ("00000000000000f1", true));
    assert_eq!(
        attributes(server),
        [
            "client.address=198.51.100.9",
            "http.request.method=GET",
            "http.response.status_code=200",
            "network.local.address=192.0.2.1",
            "network.local.port=30080",
            "network.peer.address=203.0.113.7",
            "network.peer.port=40000",
            "network.protocol.version=1.1",
            "network.transport=tcp",
            "network.type=ipv4",
            "portico.affinity.key_source=client_ip",
            "portico.backend.service.name=web",
            "portico.backend.service.namespace=shop",
            "portico.backend.service.port=80",
            "portico.client.address_source=x_forwarded_for",
            "portico.listener.kind=node_port",
            "server.address=web.shop",
            "server.port=8080",
            "url.path=/cart",
            "url.query=id=7&sig=REDACTED",
            "url.scheme=http",
            "user_agent.original=curl/8.5",
        ]
    );
    assert_eq!(server.status, Status::Unset);

    assert_eq!((client.name.as_ref(), &client.span_kind), ("GET web.shop", &SpanKind::Client));
    assert_eq!((client.start_time, client.end_time), (at(1), at(10)));
    assert_eq!(client.span_context.span_id().to_string(), "00000000000000b1");
    assert_eq!(
        attributes(client),
        [
            "http.request.method=GET",
            "http.request.resend_count=1",
            "http.response.status_code=200",
            "network.peer.address=10.1.0.1",
            "network.peer.port=8080",
            "portico.backend.locality=node",
            "portico.backend.node.name=worker-1",
            "portico.backend.pod.name=web-1",
            "server.address=web.shop.svc",
            "server.port=80",
            "service.peer.name=web",
            "service.peer.namespace=shop",
            "url.full=http://web.shop.svc:80/cart?id=7&sig=REDACTED",
        ]
    );
    assert_eq!(client.status, Status::Unset);
    let events: Vec<_> = client.events.iter().map(|event| (event.name.as_ref(), event.timestamp)).collect();
    assert_eq!(events, [("connected", at(3))]);

    assert!(is_error(refused) && refused.events.is_empty());
    assert!(attributes(refused).contains(&"error.type=connection_refused".to_owned()));
    for span in &spans {
        assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(span.span_context.is_sampled());
    }
    for client in &spans[1..] {
        assert_eq!(client.parent_span_id, server.span_context.span_id());
        assert!(!client.parent_span_is_remote);
    }
}

#[test]
fn a_connection_is_a_span_with_its_connects() {
    let (started, clock) = begin();
    let mut record = connection(started);
    record.protocol = "tls";
    let mut downstream = (*record.downstream).clone();
    downstream.server_name = Some("db.example".into());
    record.downstream = downstream.into();
    let spans = spans_at(&Record::Connection(Box::new(record)), &clock);
    let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(names, ["tls db.shop", "connect db.shop", "connect db.shop"]);
    let kinds: Vec<_> = spans.iter().map(|span| span.span_kind.clone()).collect();
    assert_eq!(kinds, [SpanKind::Server, SpanKind::Client, SpanKind::Client]);
    assert_eq!((spans[0].start_time, spans[0].end_time), (at(0), at(1500)));
    assert!(!spans[0].parent_span_is_remote);
    assert_eq!((spans[2].start_time, spans[2].end_time), (at(9), at(11)), "until connected, not until closed");
    for expected in ["client.address=203.0.113.7", "server.address=db.example", "portico.connection.bytes_sent=7000"] {
        assert!(attributes(&spans[0]).contains(&expected.to_owned()), "{expected}");
    }
    assert_eq!(spans.iter().map(is_error).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn a_hop_is_told_on_both_of_its_nodes() {
    let told = |change: fn(&mut ConnectionRecord)| {
        let (started, clock) = begin();
        let mut record = connection(started);
        change(&mut record);
        let spans = spans_at(&Record::Connection(Box::new(record)), &clock);
        let of_hop = |span: &SpanData| attributes(span).into_iter().filter(|text| text.starts_with("portico.hop."));
        spans.iter().flat_map(of_hop).collect::<Vec<_>>()
    };
    assert!(told(|_| {}).is_empty());
    assert_eq!(told(|record| record.attempts[1].via = Via::Hop), ["portico.hop.exit_node.name=worker-1"]);
    let bypassed = told(|record| record.attempts[1].via = Via::Bypassed(Bypass::NoAgent));
    assert_eq!(bypassed, ["portico.hop.bypass=no_agent"]);
    assert_eq!(told(|record| record.entry_node = "worker-2".into()), ["portico.hop.entry_node.name=worker-2"]);
}

#[test]
fn names_have_few_values() {
    let name = |change: fn(&mut RequestRecord)| spans(&request(change))[0].name.to_string();
    assert_eq!(name(|record| record.method = "PURGE".parse().unwrap()), "HTTP web.shop");
    assert_eq!(name(|record| record.target = None), "GET");
    assert_eq!(name(|record| (record.target, record.method) = (None, "PURGE".parse().unwrap())), "HTTP");
    let call = |record: &mut RequestRecord, status| {
        record.uri = "/shop.Cart/Add".parse().unwrap();
        (record.grpc, record.method, record.grpc_status) = (true, http::Method::POST, status);
    };
    let known = |status| spans(&request(|record| call(record, status)))[0].name.to_string();
    assert_eq!(known(Some(0)), "shop.Cart/Add");
    assert_eq!(known(Some(12)), "POST web.shop", "a method that is not there was made up by the client");
}

#[test]
fn failures_are_those_of_the_side() {
    // Server and client span: whether each failed, and the error.type of the server span.
    type Case = (fn(&mut RequestRecord), bool, bool, Option<&'static str>);
    fn answered(record: &mut RequestRecord, status: u16) {
        record.status = status;
        record.attempts[0].status = Some(status);
    }
    fn ended(record: &mut RequestRecord, outcome: Outcome, status: u16) {
        (record.outcome, record.status) = (outcome, status);
        (record.attempts[0].outcome, record.attempts[0].status) = (outcome, None);
    }
    fn called(record: &mut RequestRecord, status: u8) {
        (record.grpc, record.grpc_status) = (true, Some(status));
    }
    let cases: [Case; 11] = [
        (|_| {}, false, false, None),
        (|record| answered(record, 404), false, true, None),
        (|record| answered(record, 503), true, true, Some("503")),
        (|record| ended(record, Outcome::UpstreamTimeout, 504), true, true, Some("timeout")),
        (|record| ended(record, Outcome::UpstreamClosed, 200), true, true, Some("connection_reset")),
        (|record| ended(record, Outcome::ClientClosed, 200), true, false, Some("client_closed")),
        (|record| ended(record, Outcome::ClientClosed, 499), true, false, Some("client_closed")),
        (|record| ended(record, Outcome::Malformed("bad"), 400), false, false, Some("protocol_error")),
        (|record| called(record, 5), false, true, None),
        (|record| called(record, 13), true, true, Some("INTERNAL")),
        (|record| ended(record, Outcome::Dropped, 0), true, true, Some("_OTHER")),
    ];
    for (at, (change, server_failed, client_failed, error)) in cases.into_iter().enumerate() {
        let spans = spans(&request(change));
        assert_eq!((is_error(&spans[0]), is_error(&spans[1])), (server_failed, client_failed), "case {at}");
        let found =
            attributes(&spans[0]).into_iter().find_map(|found| found.strip_prefix("error.type=").map(String::from));
        assert_eq!(found.as_deref(), error, "case {at}");
    }
}

#[test]
fn a_context_that_is_not_believed_is_linked() {
    let stranger = SpanContext { trace: 7, span: 8, sampled: true, ..SpanContext::default() };
    let spans = spans(&request(|record| {
        record.trace.parent = 0;
        record.link = Some(stranger);
    }));
    let link = &spans[0].links[0];
    assert_eq!(link.span_context.trace_id().to_string(), format!("{:032x}", 7));
    assert_eq!(link.span_context.span_id().to_string(), format!("{:016x}", 8));
    assert!(link.span_context.is_remote());
    assert_eq!(format!("{}={}", link.attributes[0].key, link.attributes[0].value), "portico.link.reason=untrusted");
    assert!(spans[1].links.is_empty());
}
