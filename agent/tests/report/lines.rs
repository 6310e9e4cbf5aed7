//! The access log, line by line.

use agent::report::{
    access_log::{self, AccessLog},
    outcome::Outcome,
    record::{Record, RequestRecord},
};
use http::HeaderValue;

use crate::fixture::*;

/// The line of a record without braces, in parts of one member each.
fn line(record: &Record) -> Vec<String> {
    let (_, clock) = begin();
    members(record, &clock)
}

fn members(record: &Record, clock: &agent::report::clock::Clock) -> Vec<String> {
    let mut out = b"{\"before\":1}\n".to_vec();
    access_log::line(record, clock, "worker-1", &mut out);
    let text = String::from_utf8(out).unwrap();
    let line = text.strip_prefix("{\"before\":1}\n").unwrap().strip_suffix('\n').unwrap();
    serde_json::from_str::<serde_json::Value>(line).unwrap();
    assert!(!line.contains('\n'));
    line[1..line.len() - 1].split(",\"").map(|member| member.trim_start_matches('"').to_owned()).collect()
}

fn request(change: impl FnOnce(&mut RequestRecord)) -> Record {
    let mut record = crate::fixture::request(begin().0);
    change(&mut record);
    Record::Request(Box::new(record))
}

/// Checks that the line has these members, and none of a key that ends in `absent`.
fn check(record: &Record, present: &[&str], absent: &[&str]) {
    let line = line(record);
    for member in present {
        assert!(line.iter().any(|found| found == member), "{member} not in {line:#?}");
    }
    for key in absent {
        assert!(!line.iter().any(|found| found.split('"').next() == Some(key)), "{key} in {line:#?}");
    }
}

#[test]
fn a_request_is_one_line() {
    let (started, clock) = begin();
    let record = Record::Request(Box::new(crate::fixture::request(started)));
    let expected = [
        "timestamp\":\"2026-11-21T11:45:00.010Z\"",
        "severity\":\"INFO\"",
        "event\":\"portico.access.http\"",
        "trace_id\":\"0af7651916cd43dd8448eb211c80319c\"",
        "span_id\":\"00000000000000a1\"",
        "sampled\":true",
        "k8s.node.name\":\"worker-1\"",
        "portico.duration\":0.010000",
        "http.request.method\":\"GET\"",
        "url.scheme\":\"http\"",
        "url.path\":\"/cart\"",
        "url.query\":\"id=7&sig=REDACTED\"",
        "server.address\":\"web.shop\"",
        "server.port\":8080",
        "client.address\":\"198.51.100.9\"",
        "portico.client.address_source\":\"x_forwarded_for\"",
        "network.peer.address\":\"203.0.113.7\"",
        "network.peer.port\":40000",
        "network.local.address\":\"192.0.2.1\"",
        "network.local.port\":30080",
        "network.transport\":\"tcp\"",
        "network.type\":\"ipv4\"",
        "network.protocol.version\":\"1.1\"",
        "user_agent.original\":\"curl/8.5\"",
        "http.response.status_code\":200",
        "portico.listener.kind\":\"node_port\"",
        "portico.backend.service.name\":\"web\"",
        "portico.backend.service.namespace\":\"shop\"",
        "portico.backend.service.port\":80",
        "portico.affinity.key_source\":\"client_ip\"",
        "http.request.body.size\":0",
        "http.response.body.size\":1024",
        "portico.first_byte.duration\":0.008000",
        "portico.upstream.attempts\":1",
        "portico.upstream.address\":\"10.1.0.1\"",
        "portico.upstream.port\":8080",
        "portico.upstream.duration\":0.009000",
        "portico.upstream.connect.duration\":0.002000",
        "portico.backend.pod.name\":\"web-1\"",
        "portico.backend.node.name\":\"worker-1\"",
        "portico.backend.locality\":\"node\"",
    ];
    assert_eq!(members(&record, &clock), expected);
}

#[test]
fn a_connection_is_one_line() {
    let (started, clock) = begin();
    let record = Record::Connection(Box::new(crate::fixture::connection(started)));
    let expected = [
        "timestamp\":\"2026-11-21T11:45:01.500Z\"",
        "severity\":\"INFO\"",
        "event\":\"portico.access.l4\"",
        "trace_id\":\"0af7651916cd43dd8448eb211c80319c\"",
        "span_id\":\"00000000000000a2\"",
        "sampled\":true",
        "k8s.node.name\":\"worker-1\"",
        "portico.duration\":1.500000",
        "portico.connection.protocol\":\"tcp\"",
        "server.address\":\"192.0.2.1\"",
        "server.port\":30080",
        "client.address\":\"203.0.113.7\"",
        "client.port\":40000",
        "portico.client.address_source\":\"peer\"",
        "network.peer.address\":\"203.0.113.7\"",
        "network.peer.port\":40000",
        "network.local.address\":\"192.0.2.1\"",
        "network.local.port\":30080",
        "network.transport\":\"tcp\"",
        "network.type\":\"ipv4\"",
        "portico.connection.bytes_received\":300",
        "portico.connection.bytes_sent\":7000",
        "portico.connection.close_reason\":\"COMPLETE\"",
        "portico.listener.kind\":\"cluster_ip\"",
        "portico.backend.service.name\":\"db\"",
        "portico.backend.service.namespace\":\"shop\"",
        "portico.backend.service.port\":80",
        "portico.affinity.key_source\":\"none\"",
        "portico.upstream.attempts\":2",
        "portico.upstream.address\":\"10.1.0.2\"",
        "portico.upstream.port\":8080",
        "portico.upstream.duration\":0.009000",
        "portico.upstream.connect.duration\":0.002000",
        "portico.backend.pod.name\":\"web-2\"",
        "portico.backend.node.name\":\"worker-1\"",
        "portico.backend.locality\":\"node\"",
    ];
    assert_eq!(members(&record, &clock), expected);
}

#[test]
fn an_answer_of_our_own_says_why() {
    let own = request(|record| {
        (record.outcome, record.status, record.target) = (Outcome::UnknownName, 404, None);
        record.attempts.clear();
    });
    let present = [
        "severity\":\"ERROR\"",
        "http.response.status_code\":404",
        "error.type\":\"no_route\"",
        "portico.reason\":\"UNKNOWN_NAME\"",
    ];
    check(&own, &present, &["portico.backend.service.name", "portico.upstream.attempts"]);
}

#[test]
fn what_clients_send_cannot_break_a_line() {
    let record = request(|record| {
        record.user_agent = Some(HeaderValue::from_bytes(b"a\"b\\c\xff\td").unwrap());
        record.method = "PURGE".parse().unwrap();
        record.authority = Some(HeaderValue::from_static("no host"));
        record.uri = "/%0a\"x".parse().unwrap();
    });
    let present = [
        "user_agent.original\":\"a\\\"b\\\\c\u{fffd}\\td\"",
        "http.request.method\":\"_OTHER\"",
        "http.request.method_original\":\"PURGE\"",
        "url.path\":\"/%0a\\\"x\"",
    ];
    check(&record, &present, &["server.address", "url.query"]);
}

#[test]
fn long_user_agents_are_cut() {
    let record = request(|record| record.user_agent = Some(HeaderValue::from_str(&"x".repeat(5000)).unwrap()));
    check(&record, &[&format!("user_agent.original\":\"{}\"", "x".repeat(256))], &[]);
}

#[test]
fn calls_show_their_method_and_status() {
    let call = |path: &'static str, status| {
        request(move |record| {
            record.uri = path.parse().unwrap();
            (record.grpc, record.http2, record.grpc_status) = (true, true, status);
        })
    };
    let present = [
        "rpc.system.name\":\"grpc\"",
        "rpc.method\":\"shop.Cart/Add\"",
        "rpc.status_code\":\"OK\"",
        "network.protocol.version\":\"2\"",
    ];
    check(&call("/shop.Cart/Add", Some(0)), &present, &["error.type"]);
    let present = ["rpc.status_code\":\"NOT_FOUND\"", "severity\":\"INFO\""];
    check(&call("/shop.Cart/Add", Some(5)), &present, &["error.type"]);
    let present = ["rpc.status_code\":\"UNAVAILABLE\"", "error.type\":\"UNAVAILABLE\"", "severity\":\"ERROR\""];
    check(&call("/shop.Cart/Add", Some(14)), &present, &[]);
    let present = ["rpc.method\":\"_OTHER\"", "rpc.method_original\":\"a/b\"", "rpc.status_code\":\"UNIMPLEMENTED\""];
    check(&call("/a/b", Some(12)), &present, &[]);
}

#[test]
fn modes_choose_records() {
    let cases = [
        (request(|_| {}), false),
        (request(|record| record.status = 404), false),
        (request(|record| record.status = 500), true),
        (request(|record| (record.status, record.outcome) = (404, Outcome::UnknownName)), true),
        (request(|record| record.outcome = Outcome::ClientClosed), true),
        (Record::Connection(Box::new(connection(begin().0))), false),
    ];
    for (record, is_error) in cases {
        assert!(!AccessLog::Off.wants(&record));
        assert!(AccessLog::All.wants(&record));
        assert_eq!(AccessLog::Errors.wants(&record), is_error, "{record:?}");
    }
}
