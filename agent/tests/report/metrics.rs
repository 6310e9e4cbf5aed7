//! Metrics as Prometheus scrapes them.

use std::{rc::Rc, time::Instant};

use agent::{
    report::{
        access_log::AccessLog,
        export::{NodeIdentity, start_with},
        metrics::Metrics,
        outcome::Outcome,
        record::{ConnectionRecord, Record, RequestRecord},
    },
    table::{Balance, FrontendKind},
};
use http::Request;
use opentelemetry::metrics::MeterProvider;
use runtime::telemetry::{Component, Telemetry, settings::Settings};

use crate::fixture::*;

pub fn scrape(component: &Component) -> String {
    prometheus::TextEncoder::new().encode_to_string(&component.registry.gather()).unwrap()
}

fn component() -> Component {
    Telemetry::new(Settings::disabled()).unwrap().component("portico-agent", Vec::new()).unwrap()
}

/// Checks that a scrape after these records has these lines.
fn check(records: Vec<Record>, lines: &[&str]) {
    let component = component();
    let mut metrics = Metrics::new(&component.meter_provider.meter("portico"));
    records.iter().for_each(|record| metrics.record(record));
    let text = scrape(&component);
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "{line}\nnot in\n{text}");
    }
}

fn request(change: impl FnOnce(&mut RequestRecord)) -> Record {
    let mut record = crate::fixture::request(Instant::now());
    change(&mut record);
    Record::Request(Box::new(record))
}

fn connection(change: impl FnOnce(&mut ConnectionRecord)) -> Record {
    let mut record = crate::fixture::connection(Instant::now());
    change(&mut record);
    Record::Connection(Box::new(record))
}

const WEB: &str = "portico_backend_service_name=\"web\",portico_backend_service_namespace=\"shop\"";
const DB: &str = "portico_backend_service_name=\"db\",portico_backend_service_namespace=\"shop\"";

#[test]
fn requests_are_told_by_service_and_status() {
    let failed = |record: &mut RequestRecord| {
        (record.outcome, record.status) = (Outcome::UpstreamTimeout, 504);
        (record.attempts[0].outcome, record.attempts[0].status) = (Outcome::UpstreamTimeout, None);
    };
    let unknown = |record: &mut RequestRecord| {
        (record.outcome, record.status, record.target) = (Outcome::UnknownName, 404, None);
        record.attempts.clear();
    };
    let server = "http_request_method=\"GET\",http_response_status_code=\"200\",network_protocol_version=\"1.1\"";
    let told = [
        format!("http_server_request_duration_seconds_count{{{server},{WEB},url_scheme=\"http\"}} 2"),
        format!("http_server_request_duration_seconds_bucket{{{server},{WEB},url_scheme=\"http\",le=\"0.01\"}} 2"),
        format!("http_server_request_duration_seconds_bucket{{{server},{WEB},url_scheme=\"http\",le=\"0.005\"}} 0"),
        format!("portico_network_io_bytes_total{{network_io_direction=\"transmit\",{WEB}}} 3072"),
        format!("portico_upstream_connect_duration_seconds_count{{portico_backend_locality=\"node\",{WEB}}} 3"),
    ];
    let mut lines: Vec<&str> = told.iter().map(String::as_str).collect();
    lines.extend([
        "http_server_request_duration_seconds_count{error_type=\"timeout\",http_request_method=\"GET\",\
         http_response_status_code=\"504\",network_protocol_version=\"1.1\",portico_backend_service_name=\"web\",\
         portico_backend_service_namespace=\"shop\",portico_reason=\"UPSTREAM_TIMEOUT\",url_scheme=\"http\"} 1",
        "http_server_request_duration_seconds_count{error_type=\"no_route\",http_request_method=\"GET\",\
         http_response_status_code=\"404\",network_protocol_version=\"1.1\",portico_reason=\"UNKNOWN_NAME\",\
         url_scheme=\"http\"} 1",
        "http_client_request_duration_seconds_count{http_request_method=\"GET\",http_response_status_code=\"200\",\
         server_address=\"web.shop.svc\",server_port=\"80\"} 2",
        "http_client_request_duration_seconds_count{error_type=\"timeout\",http_request_method=\"GET\",\
         server_address=\"web.shop.svc\",server_port=\"80\"} 1",
    ]);
    check(vec![request(|_| {}), request(|_| {}), request(failed), request(unknown)], &lines);
}

#[test]
fn connections_are_told_by_how_they_ended() {
    let closed = |reason: &str, number: u64| {
        format!(
            "portico_connection_closed_total{{network_transport=\"tcp\",{DB},\
             portico_connection_close_reason=\"{reason}\",portico_listener_kind=\"cluster_ip\"}} {number}"
        )
    };
    // The service sorts between, so the labels are put in order here.
    let sorted = |line: String| {
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = rest.split_once('}').unwrap();
        let mut labels: Vec<_> = labels.split(',').collect();
        labels.sort();
        format!("{name}{{{}}}{value}", labels.join(","))
    };
    let lines = [
        sorted(closed("COMPLETE", 1)),
        sorted(closed("IDLE_TIMEOUT", 2)),
        format!("portico_connection_duration_seconds_count{{network_transport=\"tcp\",{DB}}} 3"),
        format!("portico_network_io_bytes_total{{network_io_direction=\"receive\",{DB}}} 900"),
        format!("portico_network_io_bytes_total{{network_io_direction=\"transmit\",{DB}}} 21000"),
        format!("portico_upstream_retries_total{{error_type=\"connection_refused\",{DB}}} 3"),
        format!("portico_upstream_ejections_total{{error_type=\"connection_refused\",{DB}}} 4"),
        format!(
            "portico_upstream_connect_duration_seconds_count{{error_type=\"connection_refused\",\
             portico_backend_locality=\"node\",{DB}}} 3"
        ),
    ];
    let idle = |record: &mut ConnectionRecord| record.outcome = Outcome::IdleTimeout;
    let refused = |record: &mut ConnectionRecord| {
        // A flow that was refused after it had sent.
        (record.protocol, record.outcome) = ("udp", Outcome::ConnectRefused);
        record.attempts.remove(0);
        (record.received, record.sent) = (0, 0);
    };
    let records = vec![connection(|_| {}), connection(idle), connection(idle), connection(refused)];
    check(records, &lines.each_ref().map(String::as_str));
}

#[test]
fn series_are_found_again_when_tables_change() {
    // Each record has a target of its own, as if there were a new table for each.
    let records = (0..5000).map(|number| {
        request(|record| record.target = Some(target(&format!("web-{}", number % 1000), Balance::Random)))
    });
    let lines = ["http_client_request_duration_seconds_count{http_request_method=\"GET\",\
                  http_response_status_code=\"200\",server_address=\"web-7.shop.svc\",server_port=\"80\"} 5"];
    check(records.collect(), &lines);
}

#[test]
fn services_beyond_the_limit_share_a_series() {
    let records: Vec<_> = (0..3000)
        .map(|number| request(|record| record.target = Some(target(&format!("web-{number}"), Balance::Random))))
        .collect();
    check(records, &["http_client_request_duration_seconds_count{otel_metric_overflow=\"true\"} 1000"]);
}

#[test]
fn what_is_open_is_exact_at_any_time() {
    let component = component();
    let node = NodeIdentity { name: "worker-1".into() };
    let reporting = start_with(&component, node, AccessLog::Off, std::io::sink()).unwrap();
    let workers: Vec<_> = (0..2).map(|_| Rc::new(reporting.worker().into_reporter())).collect();
    let http = workers[0].count(FrontendKind::NodePort);
    workers[0].connection(downstream(FrontendKind::NodePort), "http").close(Outcome::Malformed("no HTTP"));
    let tcp = workers[1].connection(downstream(FrontendKind::NodePort), "tcp");
    let udp = workers[1].connection(downstream(FrontendKind::ClusterIp), "udp");
    let call = workers[0].request(downstream(FrontendKind::NodePort), &Request::post("/").body(()).unwrap(), None);
    let line = |name: &str, kind: &str, transport: &str| {
        let text = scrape(&component);
        let line = format!("{name}{{network_transport=\"{transport}\",portico_listener_kind=\"{kind}\"}} ");
        let found = text.lines().find_map(|found| found.strip_prefix(line.as_str()));
        found.unwrap_or_else(|| panic!("{line}\nnot in\n{text}")).parse::<u64>().unwrap()
    };
    let active = |kind, transport| line("portico_connection_active", kind, transport);
    let accepted = |kind, transport| line("portico_connection_accepted_total", kind, transport);
    let in_flight = "http_server_active_requests{http_request_method=\"POST\",url_scheme=\"http\"} 1";
    assert_eq!((active("node_port", "tcp"), active("cluster_ip", "udp")), (2, 1));
    assert!(scrape(&component).contains(in_flight));
    drop(http);
    tcp.close(Outcome::Complete);
    call.close(Outcome::Complete);
    assert_eq!((active("node_port", "tcp"), accepted("node_port", "tcp")), (0, 2));
    assert_eq!(active("cluster_ip", "udp"), 1);
    assert!(!scrape(&component).contains(in_flight));
    drop(udp);
    assert_eq!((active("cluster_ip", "udp"), accepted("cluster_ip", "udp")), (0, 1));
}
