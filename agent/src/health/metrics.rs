//! What operators chart of kube-proxy, under the same names (S20).
//!
//! Counters are named here without `_total`, which the exporter appends.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use tokio::sync::watch;

use super::proxy::Question;
use crate::{
    apply::{
        control::Progress,
        programming::{Programming, Triggers},
    },
    table::{Family, Origin},
};

/// The instruments that are written as things happen; the others are read when somebody scrapes.
#[derive(Clone, Debug)]
pub struct Metrics {
    network_programming: Histogram<f64>,
    rounds: [Histogram<f64>; 2],
    answers: [Counter<u64>; 2],
}

// === impl Metrics ===

impl Metrics {
    /// The instruments of `meter`.
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, description: &'static str, buckets: Vec<f64>| {
            meter.f64_histogram(name).with_description(description).with_boundaries(buckets).build()
        };
        let rounds: Vec<f64> = (0..15).map(|power| 0.001 * f64::from(1 << power)).collect();
        let count = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        Self {
            network_programming: seconds(
                "kubeproxy_network_programming_duration_seconds",
                "From the change of a Service or Pod to the table that serves it",
                network_programming_buckets(),
            ),
            rounds: [
                seconds("kubeproxy_sync_proxy_rules_duration_seconds", "Making and publishing a table", rounds.clone()),
                // Only what changed is compiled; a round in which everything did is as full as one gets.
                seconds("kubeproxy_sync_full_proxy_rules_duration_seconds", "Making a table from nothing", rounds),
            ],
            answers: [
                count("kubeproxy_proxy_healthz", "Answers of /healthz"),
                count("kubeproxy_proxy_livez", "Answers of /livez"),
            ],
        }
    }

    /// A table was published, which took `took` and put changes of `triggers` into force.
    pub fn programmed(&self, took: Duration, full: bool, triggers: &Triggers, now: SystemTime) {
        for family in Family::ALL {
            let family = [KeyValue::new("ip_family", family.label())];
            self.rounds[0].record(took.as_secs_f64(), &family);
            if full {
                self.rounds[1].record(took.as_secs_f64(), &family);
            }
        }
        let late = |time: &SystemTime| now.duration_since(*time).unwrap_or_default().as_secs_f64();
        for time in triggers.values().flatten() {
            for family in Family::ALL {
                self.network_programming.record(late(time), &[KeyValue::new("ip_family", family.label())]);
            }
        }
    }

    /// A probe was answered.
    pub fn answered(&self, question: Question, status: u16) {
        let counter = match question {
            Question::Health => &self.answers[0],
            Question::Life => &self.answers[1],
        };
        counter.add(1, &[KeyValue::new("code", status.to_string())]);
    }
}

/// Registers what is read when somebody scrapes.
pub fn observe(meter: &Meter, programming: &Programming, progress: &watch::Receiver<Progress>) {
    type Read = fn(&crate::apply::programming::FamilyState) -> Option<SystemTime>;
    let times: [(&'static str, &'static str, Read); 2] = [
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a table was published last", |state| state.updated),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change arrived last", |state| {
            state.queued
        }),
    ];
    for (name, description, read) in times {
        let programming = programming.clone();
        let gauge = meter.f64_observable_gauge(name).with_description(description).with_callback(move |gauge| {
            for state in programming.pace().states(std::time::Instant::now()) {
                if let Some(since) = read(&state).and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
                    gauge.observe(since.as_secs_f64(), &[KeyValue::new("ip_family", state.family.label())]);
                }
            }
        });
        gauge.build();
    }
    observe_changes(meter, programming);
    let progress = progress.clone();
    meter
        .u64_observable_gauge("kubeproxy_sync_proxy_rules_no_local_endpoints_total")
        .with_description("Service ports with policy Local that have endpoints, but none on this node")
        .with_callback(move |gauge| {
            let table = progress.borrow().table.clone();
            for family in Family::ALL {
                for from in [Origin::Internal, Origin::External] {
                    let policy = KeyValue::new("traffic_policy", from.label());
                    let labels = [KeyValue::new("ip_family", family.label()), policy];
                    gauge.observe(table.without_local_endpoints(family, from) as u64, &labels);
                }
            }
        })
        .build();
}

fn observe_changes(meter: &Meter, programming: &Programming) {
    type Read = fn(&crate::apply::programming::Changes) -> u64;
    let all: [(&'static str, &'static str, Read); 2] = [
        (
            "kubeproxy_sync_proxy_rules_service_changes",
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            |changes| changes.services,
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            |changes| changes.endpoints,
        ),
    ];
    for (total, pending, read) in all {
        let seen = programming.clone();
        let counter = meter.u64_observable_counter(total).with_description("Changes seen");
        counter.with_callback(move |counter| counter.observe(read(&seen.changes().0), &[])).build();
        let waiting = programming.clone();
        let gauge = meter.u64_observable_gauge(pending).with_description("Changes that are not in force");
        gauge.with_callback(move |gauge| gauge.observe(read(&waiting.changes().1), &[])).build();
    }
}

/// 0, 0.25, 0.5, then each second, each five, each thirty up to five minutes.
fn network_programming_buckets() -> Vec<f64> {
    let seconds = (1..=59).chain((60..=115).step_by(5)).chain((120..=300).step_by(30));
    [0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_kube_proxy() {
        let buckets = network_programming_buckets();
        assert_eq!(buckets.len(), 3 + 59 + 12 + 7);
        assert!(buckets.is_sorted());
        assert_eq!(buckets.last(), Some(&300.0));
    }
}
