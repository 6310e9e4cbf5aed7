//! The instruments: names, units and buckets.

use opentelemetry::metrics::{Counter, Histogram, Meter};

/// Buckets of the HTTP conventions, with three below them: what a hop within a node adds is less than 5 ms.
const REQUEST_SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Connections live from a ping to a day.
const CONNECTION_SECONDS: [f64; 12] =
    [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

pub(super) struct Instruments {
    pub(super) server_duration: Histogram<f64>,
    pub(super) client_duration: Histogram<f64>,
    pub(super) connect_duration: Histogram<f64>,
    pub(super) connection_duration: Histogram<f64>,
    pub(super) connections_closed: Counter<u64>,
    pub(super) io: Counter<u64>,
    pub(super) retries: Counter<u64>,
    pub(super) ejections: Counter<u64>,
}

// === impl Instruments ===

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, description: &'static str, buckets: &[f64]| {
            let builder = meter.f64_histogram(name).with_unit("s").with_description(description);
            builder.with_boundaries(buckets.to_vec()).build()
        };
        let count = |name: &'static str, unit: &'static str, description: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(description).build()
        };
        Self {
            server_duration: seconds(
                "http.server.request.duration",
                "From the head of a request to the end of its answer",
                &REQUEST_SECONDS,
            ),
            client_duration: seconds(
                "http.client.request.duration",
                "Attempts of requests, each from the choice of an endpoint to the end of its answer",
                &REQUEST_SECONDS,
            ),
            connect_duration: seconds(
                "portico.upstream.connect.duration",
                "From the choice of an endpoint to a connection, or to the failure to get one",
                &REQUEST_SECONDS,
            ),
            connection_duration: seconds(
                "portico.connection.duration",
                "Connections and flows from accept to close; those of HTTP are told by their requests",
                &CONNECTION_SECONDS,
            ),
            connections_closed: count(
                "portico.connection.closed",
                "{connection}",
                "Connections and flows that ended; those of HTTP are told by their requests",
            ),
            io: count(
                "portico.network.io",
                "By",
                "Bytes from and to clients, counted when a request or connection ends",
            ),
            retries: count("portico.upstream.retries", "{attempt}", "Attempts that were followed by another"),
            ejections: count(
                "portico.upstream.ejections",
                "{ejection}",
                "Times that a worker left an endpoint out because it could not connect to it",
            ),
        }
    }
}
