//! The standard `OTEL_*` variables, parsed.
//!
//! Names, defaults and precedence follow the OpenTelemetry specification (configuration/sdk-environment-variables and
//! protocol/exporter) with four deliberate differences: nothing is exported unless an endpoint or exporter is named,
//! the default protocol is `grpc`, the default sampler is `parentbased_traceidratio` with 0.01, and the span queue holds
//! 16384.
//! As it demands, a value that is wrong counts as unset; each is noted, so that one start shows all of them.
//! `OTEL_EXPORTER_OTLP_*HEADERS`, `OTEL_SPAN_*` and `OTEL_ATTRIBUTE_*` are read by the SDK itself.

use crate::args::Problems;
use crate::args::parse::{number, one_of};
use opentelemetry::KeyValue;
use opentelemetry_otlp::Compression;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use std::time::Duration;

const DEFAULT_RATIO: f64 = 0.01;
const DEFAULT_SPAN_QUEUE: usize = 16_384;
/// The queue is allocated at once, about half a KiB per span: this many are half a GiB.
const MAX_QUEUE: u64 = 1 << 20;
/// A day. It is beyond use, and far from where times overflow.
const MAX_MILLIS: u64 = 24 * 60 * 60 * 1000;
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// What is exported, where to, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Overrides the component's own service name.
    pub service_name: Option<String>,
    /// Resource attributes that override the component's own.
    pub resource: Vec<KeyValue>,
    /// Where spans go; `None` exports none.
    pub traces: Option<Destination>,
    /// Where metrics go; `None` leaves them to the scrape.
    pub metrics: Option<Destination>,
    /// Where log records go; `None` exports none.
    pub logs: Option<Destination>,
    /// Which spans are recorded.
    pub sampling: Sampling,
    /// How spans are gathered into batches.
    pub batch: Batch,
    /// The time between two exports of metrics.
    pub metric_interval: Duration,
    /// How long one export of metrics may take.
    pub metric_timeout: Duration,
    /// Whether counters start over with each export.
    pub temporality: Temporality,
}

/// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`, as data: whoever builds spans after the fact has to decide before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The share of traces that begin here, 0 to 1; `None` if nobody asked for one.
    pub ratio: Option<f64>,
    /// A parent decides for its children.
    pub parent_based: bool,
}

/// The collector of one signal.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// An absolute URL; for HTTP with the path of the signal.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// How long one attempt may take, and when retrying ends.
    pub timeout: Duration,
    /// Compression of requests.
    pub compression: Option<Compression>,
    /// Certificates to trust instead of the system's, and our own for mutual TLS.
    pub tls: Tls,
}

/// The protocols of OTLP that are spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`.
    Grpc,
    /// `http/protobuf`.
    Http,
}

/// Files in PEM form, read when the exporter is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Trusted certificates.
    pub authority: Option<PathBuf>,
    /// Our certificate chain.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// `OTEL_BSP_*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Spans that may wait, those of the batch under way included; further ones are dropped and counted.
    pub queue: usize,
    /// Spans in one export.
    pub size: usize,
    /// The longest that a span waits for its batch to fill.
    pub delay: Duration,
    /// How long one export may take, retries included.
    pub timeout: Duration,
}

impl Sampling {
    /// The same for the SDK.
    pub fn sampler(&self) -> Sampler {
        let root = match self.ratio.unwrap_or(DEFAULT_RATIO) {
            1.0 => Sampler::AlwaysOn,
            0.0 => Sampler::AlwaysOff,
            ratio => Sampler::TraceIdRatioBased(ratio),
        };
        if self.parent_based { Sampler::ParentBased(Box::new(root)) } else { root }
    }
}

impl Settings {
    /// Nothing is exported; the names are the component's own.
    pub fn disabled() -> Self {
        Settings::parse(|_| None, &mut Problems::new())
    }

    /// Parses the variables that `lookup` knows. Empty counts as unset.
    pub fn parse(lookup: impl Fn(&str) -> Option<String>, problems: &mut Problems) -> Self {
        let mut vars = Vars { lookup: &lookup, problems };
        let resource = vars.resource();
        let named = resource.iter().find(|attribute| attribute.key.as_str() == "service.name");
        let named = named.map(|attribute| attribute.value.to_string());
        let size = vars.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MAX_QUEUE, 512);
        let queue = vars.number("OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE, DEFAULT_SPAN_QUEUE as u64);
        // The specification asks for a batch no larger than the queue.
        let batch = Batch {
            queue: queue as usize,
            size: size.min(queue) as usize,
            delay: vars.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            timeout: vars.millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
        };
        let disabled = vars.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let mut destination = |signal| if disabled { None } else { vars.destination(signal) };
        Settings {
            traces: destination("traces"),
            metrics: destination("metrics"),
            logs: destination("logs"),
            service_name: vars.get("OTEL_SERVICE_NAME").or(named),
            resource,
            sampling: vars.sampling(),
            batch,
            metric_interval: vars.millis("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
            metric_timeout: vars.millis("OTEL_METRIC_EXPORT_TIMEOUT", 30_000),
            temporality: vars.temporality(),
        }
    }
}

/// The variables, and what is wrong with them.
struct Vars<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: &'a mut Problems,
}

impl Vars<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// A variable of the exporter: that of the signal, else that of all signals. The name found comes with it.
    fn otlp(&self, signal: &str, option: &str) -> Option<(String, String)> {
        let one = format!("OTEL_EXPORTER_OTLP_{}_{option}", signal.to_uppercase());
        let all = format!("OTEL_EXPORTER_OTLP_{option}");
        [one, all].into_iter().find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn number(&mut self, name: &str, most: u64, default: u64) -> u64 {
        let value = self.get(name).and_then(|raw| self.problems.value(name, &raw, number(1..=most), ""));
        value.unwrap_or(default)
    }

    fn millis(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, MAX_MILLIS, default))
    }

    fn choice(&mut self, name: &str, raw: &str, choices: &'static [&'static str]) -> Option<&'static str> {
        self.problems.value(name, &raw.to_ascii_lowercase(), one_of(choices), "")
    }

    fn destination(&mut self, signal: &str) -> Option<Destination> {
        let exporter = format!("OTEL_{}_EXPORTER", signal.to_uppercase());
        let wanted = self.get(&exporter).and_then(|raw| self.choice(&exporter, &raw, &["otlp", "none"]));
        let named = self.otlp(signal, "ENDPOINT");
        if wanted == Some("none") || (wanted.is_none() && named.is_none()) {
            return None;
        }
        let protocol = self.protocol(signal);
        Some(Destination {
            endpoint: self.endpoint(signal, protocol, named)?,
            protocol,
            timeout: self.timeout(signal),
            compression: self.compression(signal),
            tls: Tls {
                authority: self.otlp(signal, "CERTIFICATE").map(|(_, path)| path.into()),
                certificate: self.otlp(signal, "CLIENT_CERTIFICATE").map(|(_, path)| path.into()),
                key: self.otlp(signal, "CLIENT_KEY").map(|(_, path)| path.into()),
            },
        })
    }

    fn protocol(&mut self, signal: &str) -> Protocol {
        let chosen =
            self.otlp(signal, "PROTOCOL").and_then(|(name, raw)| self.choice(&name, &raw, &["grpc", "http/protobuf"]));
        if chosen == Some("http/protobuf") { Protocol::Http } else { Protocol::Grpc }
    }

    /// The URL to send to. A wrong one exports nothing: to send to the default instead would surprise more.
    fn endpoint(&mut self, signal: &str, protocol: Protocol, named: Option<(String, String)>) -> Option<String> {
        let default = match protocol {
            Protocol::Grpc => "http://localhost:4317",
            Protocol::Http => "http://localhost:4318",
        };
        let (name, raw) = named.unwrap_or_else(|| ("OTEL_EXPORTER_OTLP_ENDPOINT".into(), default.into()));
        // For gRPC an endpoint may lack the scheme; then INSECURE decides.
        let insecure = self.otlp(signal, "INSECURE").is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let scheme = if insecure { "http" } else { "https" };
        let mut url = match protocol {
            Protocol::Grpc if !raw.contains("://") => format!("{scheme}://{raw}"),
            _ => raw.clone(),
        };
        // For HTTP the endpoint of all signals is a base; that of one signal is used as it is.
        if protocol == Protocol::Http && name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
            url = format!("{}/v1/{signal}", url.trim_end_matches('/'));
        }
        self.problems.value(&name, &raw, |_| check_url(&url), "give a URL, such as http://collector:4317")?;
        Some(url)
    }

    fn timeout(&mut self, signal: &str) -> Duration {
        let millis = self
            .otlp(signal, "TIMEOUT")
            .and_then(|(name, raw)| self.problems.value(&name, &raw, number(1..=MAX_MILLIS), ""));
        Duration::from_millis(millis.unwrap_or(10_000))
    }

    fn compression(&mut self, signal: &str) -> Option<Compression> {
        let (name, raw) = self.otlp(signal, "COMPRESSION")?;
        let chosen = self.choice(&name, &raw, &["gzip", "none"])?;
        (chosen == "gzip").then_some(Compression::Gzip)
    }

    fn sampling(&mut self) -> Sampling {
        const ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
        const NAME: &str = "OTEL_TRACES_SAMPLER";
        let chosen = self.get(NAME).and_then(|raw| self.choice(NAME, &raw, &SAMPLERS));
        let argument = self.get(ARG).and_then(|raw| self.problems.value(ARG, &raw, number(0.0..=1.0), ""));
        let ratio = match chosen {
            Some("always_on" | "parentbased_always_on") => Some(1.0),
            Some("always_off" | "parentbased_always_off") => Some(0.0),
            // A ratio sampler that is named without a ratio takes all, says the specification.
            Some(_) => argument.or(Some(1.0)),
            None => argument,
        };
        Sampling { ratio, parent_based: chosen.is_none_or(|name| name.starts_with("parentbased")) }
    }

    fn temporality(&mut self) -> Temporality {
        const NAME: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let chosen = self.get(NAME).and_then(|raw| self.choice(NAME, &raw, &["cumulative", "delta", "lowmemory"]));
        match chosen {
            Some("delta") => Temporality::Delta,
            Some("lowmemory") => Temporality::LowMemory,
            _ => Temporality::Cumulative,
        }
    }

    /// `key=value` pairs separated by commas, values percent-encoded. An error discards the whole list, as specified.
    fn resource(&mut self) -> Vec<KeyValue> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let Some(raw) = self.get(NAME) else { return Vec::new() };
        let pairs = |raw: &str| raw.split(',').filter(|pair| !pair.trim().is_empty()).map(pair).collect();
        self.problems.value(NAME, &raw, pairs, "give key=value pairs separated by commas").unwrap_or_default()
    }
}

fn pair(text: &str) -> Result<KeyValue, String> {
    let wrong = || format!("has an item that is not a pair: {text:?}");
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let decode = |part: &str| percent_decode_str(part.trim()).decode_utf8().map(String::from).map_err(|_| wrong());
    match (decode(key)?, decode(value)?) {
        (key, _) if key.is_empty() => Err(wrong()),
        (key, value) => Ok(KeyValue::new(key, value)),
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let wrong = String::from("is not a URL with scheme http or https");
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")) => Ok(()),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests;
