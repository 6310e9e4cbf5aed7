//! Components side by side, without a collector. Exports are tested in `tests/otlp.rs`, against one.

use super::*;

fn scrape(component: &Component) -> String {
    prometheus::TextEncoder::new().encode_to_string(&component.registry.gather()).unwrap()
}

#[test]
fn components_do_not_share_names_or_numbers() {
    let telemetry = Telemetry::new(Settings::disabled()).unwrap();
    let one = telemetry.component("portico-agent", vec![KeyValue::new("k8s.node.name", "one")]).unwrap();
    let two = telemetry.component("portico-agent", vec![KeyValue::new("k8s.node.name", "two")]).unwrap();
    one.meter_provider.meter("test").u64_counter("portico.connection.accepted").build().add(3, &[]);
    let text = scrape(&one);
    assert!(text.contains("portico_connection_accepted_total 3"), "{text}");
    assert!(text.contains("k8s_node_name=\"one\"") && text.contains("service_name=\"portico-agent\""), "{text}");
    assert!(!scrape(&two).contains("accepted"));
}

#[test]
fn without_a_destination_nothing_pretends_to_export() {
    let telemetry = Telemetry::new(Settings::disabled()).unwrap();
    let component = telemetry.component("portico-gateway", Vec::new()).unwrap();
    assert!(telemetry.reactor.is_none());
    assert!(component.tracer.is_none() && component.logger_provider.is_none());
    assert_eq!(component.span_counts(), SpanCounts::default());
    assert!(!scrape(&component).contains("otel_sdk"));
    component.shutdown(MAX_FLUSH).unwrap();
}

#[test]
fn the_environment_overrides_what_the_component_says_of_itself() {
    let vars =
        [("OTEL_SERVICE_NAME", "edge"), ("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop,k8s.node.name=theirs")];
    let lookup = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let settings = Settings::parse(lookup, &mut Problems::new());
    let telemetry = Telemetry::new(settings).unwrap();
    let resource = telemetry.resource("portico-agent", vec![KeyValue::new("k8s.node.name", "ours")]);
    for (key, value) in [("service.name", "edge"), ("service.namespace", "shop"), ("k8s.node.name", "theirs")] {
        assert_eq!(resource.get(&key.into()).map(|found| found.to_string()).as_deref(), Some(value), "{key}");
    }
}

#[test]
fn files_that_are_missing_are_named() {
    let vars = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nonexistent/ca.pem"),
    ];
    for protocol in ["grpc", "http/protobuf"] {
        let lookup = |name: &str| {
            let found = vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            found.or_else(|| (name == "OTEL_EXPORTER_OTLP_PROTOCOL").then(|| protocol.to_owned()))
        };
        let telemetry = Telemetry::new(Settings::parse(lookup, &mut Problems::new())).unwrap();
        let error = telemetry.component("portico-agent", Vec::new()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            source.contains("/nonexistent/ca.pem") && source.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"),
            "{protocol}: {source}"
        );
    }
}
