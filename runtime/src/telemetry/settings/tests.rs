//! Variables in, settings and problems out.

use super::*;

/// Parses the given variables; the text holds one line per problem.
fn parse(vars: &[(&str, &str)]) -> (Settings, String) {
    let lookup = |name: &str| {
        let found = vars.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let mut problems = Problems::new();
    let settings = Settings::parse(lookup, &mut problems);
    (settings, problems.finish().err().map(|problems| problems.to_string()).unwrap_or_default())
}

/// Parses variables that have nothing wrong with them.
fn good(vars: &[(&str, &str)]) -> Settings {
    let (settings, problems) = parse(vars);
    assert_eq!(problems, "");
    settings
}

const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

#[test]
fn nothing_is_exported_unless_asked_for() {
    for vars in [
        &[][..],
        &[(ALL, "")],
        &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
        &[(ALL, "http://c:4317"), ("OTEL_SDK_DISABLED", "TRUE")],
    ] {
        let settings = good(vars);
        assert_eq!((settings.traces, settings.metrics, settings.logs), (None, None, None), "{vars:?}");
    }
}

#[test]
fn one_endpoint_serves_all_signals_and_each_can_be_turned_off() {
    let settings = good(&[(ALL, "http://c:4317"), ("OTEL_METRICS_EXPORTER", "none")]);
    let traces = settings.traces.unwrap();
    assert_eq!((traces.endpoint.as_str(), traces.protocol), ("http://c:4317", Protocol::Grpc));
    assert_eq!(traces.timeout, Duration::from_secs(10));
    assert_eq!(settings.metrics, None);
    assert!(settings.logs.is_some());
}

#[test]
fn an_exporter_without_endpoint_uses_the_standard_one() {
    let settings = good(&[("OTEL_TRACES_EXPORTER", "otlp")]);
    assert_eq!(settings.traces.unwrap().endpoint, "http://localhost:4317");
    assert_eq!(settings.metrics, None);
}

#[test]
fn http_endpoints_get_the_path_of_the_signal_unless_they_name_it() {
    let settings = good(&[
        (ALL, "https://c/base/"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:4318/own"),
        ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc"),
    ]);
    assert_eq!(settings.traces.unwrap().endpoint, "http://t:4318/own");
    assert_eq!(settings.metrics.unwrap().endpoint, "https://c/base/v1/metrics");
    let logs = settings.logs.unwrap();
    assert_eq!((logs.endpoint.as_str(), logs.protocol), ("https://c/base/", Protocol::Grpc));
}

#[test]
fn a_grpc_endpoint_without_scheme_is_secure_unless_said_otherwise() {
    let endpoint = |vars: &[(&str, &str)]| good(vars).traces.unwrap().endpoint;
    assert_eq!(endpoint(&[(ALL, "c:4317")]), "https://c:4317");
    assert_eq!(endpoint(&[(ALL, "c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]), "http://c:4317");
    assert_eq!(endpoint(&[(ALL, "https://c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]), "https://c:4317");
}

#[test]
fn options_of_one_signal_win_over_those_of_all() {
    let settings = good(&[
        (ALL, "http://c:4317"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
    ]);
    let (traces, logs) = (settings.traces.unwrap(), settings.logs.unwrap());
    assert_eq!((traces.timeout, logs.timeout), (Duration::from_millis(500), Duration::from_secs(2)));
    assert_eq!((traces.compression, logs.compression), (Some(Compression::Gzip), None));
    assert_eq!(logs.tls.authority, Some("/ca.pem".into()));
}

#[test]
fn samplers() {
    let parent = |root| Sampler::ParentBased(Box::new(root));
    type Case<'a> = (&'a [(&'a str, &'a str)], Option<f64>, Sampler);
    let cases: [Case<'_>; 6] = [
        (&[], None, parent(Sampler::TraceIdRatioBased(0.01))),
        (&[("OTEL_TRACES_SAMPLER_ARG", "0.5")], Some(0.5), parent(Sampler::TraceIdRatioBased(0.5))),
        (&[("OTEL_TRACES_SAMPLER", "always_on"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")], Some(1.0), Sampler::AlwaysOn),
        (&[("OTEL_TRACES_SAMPLER", "traceidratio")], Some(1.0), Sampler::AlwaysOn),
        (
            &[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")],
            Some(0.25),
            Sampler::TraceIdRatioBased(0.25),
        ),
        (&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")], Some(0.0), parent(Sampler::AlwaysOff)),
    ];
    for (vars, ratio, expected) in cases {
        let sampling = good(vars).sampling;
        assert_eq!(sampling.ratio, ratio, "{vars:?}");
        assert_eq!(format!("{:?}", sampling.sampler()), format!("{expected:?}"), "{vars:?}");
    }
}

#[test]
fn the_batch_never_exceeds_the_queue() {
    let batch = good(&[]).batch;
    assert_eq!((batch.queue, batch.size), (16_384, 512));
    let batch = good(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100")]).batch;
    assert_eq!((batch.queue, batch.size), (100, 100));
}

#[test]
fn resource_attributes_are_decoded_and_may_name_the_service() {
    let settings = good(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=edge, k8s.cluster.name=a%2Cb ,")]);
    assert_eq!(settings.service_name.as_deref(), Some("edge"));
    assert_eq!(settings.resource[1], KeyValue::new("k8s.cluster.name", "a,b"));
    let settings = good(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=edge"), ("OTEL_SERVICE_NAME", "portico-agent")]);
    assert_eq!(settings.service_name.as_deref(), Some("portico-agent"));
}

#[test]
fn wrong_values_are_all_reported_and_count_as_unset() {
    let (settings, problems) = parse(&[
        (ALL, "http://c:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "not a url"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
        ("OTEL_TRACES_SAMPLER", "always-on"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b"),
    ]);
    assert_eq!(settings.traces, None);
    assert_eq!(settings.metrics.unwrap().protocol, Protocol::Grpc);
    assert_eq!(settings.batch.queue, DEFAULT_SPAN_QUEUE);
    assert_eq!(settings.sampling, Settings::disabled().sampling);
    assert!(settings.resource.is_empty());
    for line in [
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: \"not a url\" is not a URL with scheme http or https; give a URL, such as",
        "OTEL_EXPORTER_OTLP_PROTOCOL: \"http/json\" is not one of grpc, http/protobuf",
        "OTEL_METRICS_EXPORTER: \"prometheus\" is not one of otlp, none",
        "OTEL_TRACES_SAMPLER: \"always-on\" is not one of",
        "did you mean always_on?",
        "OTEL_TRACES_SAMPLER_ARG: \"2\" is not between 0 and 1",
        "OTEL_BSP_MAX_QUEUE_SIZE: \"0\" is not between",
        "OTEL_RESOURCE_ATTRIBUTES: \"a=1,b\" has an item that is not a pair: \"b\"",
    ] {
        assert!(problems.contains(line), "{line}\nnot in\n{problems}");
    }
}
