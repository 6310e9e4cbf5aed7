//! What was asked and how it ended: counted by each worker for itself, summed when somebody reads it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use opentelemetry::{
    KeyValue,
    metrics::{Histogram, Meter},
};

/// Types that are told apart; the last stands for all others.
const TYPES: [&str; 9] = ["A", "AAAA", "SRV", "PTR", "TXT", "CNAME", "SOA", "NS", "other"];

/// Codes that are told apart; the last stands for all others.
const CODES: [&str; 7] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];

/// Who knew the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cluster's own zone.
    Zone,
    /// A reply that was kept.
    Cache,
    /// Another server, asked for this question or for the same one a moment ago.
    Upstream,
}

/// The counters of one worker. Nobody else writes them.
#[derive(Debug, Default)]
pub struct Counters {
    responses: [[AtomicU64; CODES.len()]; TYPES.len()],
    sources: [AtomicU64; Source::ALL.len()],
    dropped: AtomicU64,
}

/// The counters of all workers, and how long other servers took.
#[derive(Clone, Debug)]
pub struct Metrics {
    workers: Arc<[Arc<Counters>]>,
    /// Seconds that one attempt at another server took.
    pub forward: Histogram<f64>,
}

// === impl Source ===

impl Source {
    const ALL: [Source; 3] = [Source::Zone, Source::Cache, Source::Upstream];

    fn label(self) -> &'static str {
        match self {
            Source::Zone => "zone",
            Source::Cache => "cache",
            Source::Upstream => "upstream",
        }
    }
}

// === impl Counters ===

impl Counters {
    /// A response was sent.
    pub fn responded(&self, kind: Option<RecordType>, code: ResponseCode) {
        self.responses[type_index(kind)][code_index(code)].fetch_add(1, Ordering::Relaxed);
    }

    /// An answer came from there.
    pub fn answered(&self, source: Source) {
        self.sources[source as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A question was not answered, because too many wait.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

fn type_index(kind: Option<RecordType>) -> usize {
    match kind {
        Some(RecordType::A) => 0,
        Some(RecordType::AAAA) => 1,
        Some(RecordType::SRV) => 2,
        Some(RecordType::PTR) => 3,
        Some(RecordType::TXT) => 4,
        Some(RecordType::CNAME) => 5,
        Some(RecordType::SOA) => 6,
        Some(RecordType::NS) => 7,
        _ => TYPES.len() - 1,
    }
}

fn code_index(code: ResponseCode) -> usize {
    usize::from(u16::from(code)).min(CODES.len() - 1)
}

// === impl Metrics ===

impl Metrics {
    /// Counters for so many workers, shown by `meter`.
    pub fn new(meter: &Meter, workers: usize) -> Self {
        let workers: Arc<[Arc<Counters>]> = (0..workers).map(|_| Arc::default()).collect();
        let seen = workers.clone();
        meter
            .u64_observable_counter("portico.dns.responses")
            .with_unit("{response}")
            .with_description("DNS responses, by the type that was asked for and how it ended")
            .with_callback(move |out| {
                for (kind, type_name) in TYPES.iter().enumerate() {
                    for (code, code_name) in CODES.iter().enumerate() {
                        let number = sum(&seen, |counters| &counters.responses[kind][code]);
                        if number > 0 {
                            let attributes = [
                                KeyValue::new("dns.question.type", *type_name),
                                KeyValue::new("dns.response.code", *code_name),
                            ];
                            out.observe(number, &attributes);
                        }
                    }
                }
            })
            .build();
        let seen = workers.clone();
        meter
            .u64_observable_counter("portico.dns.answers")
            .with_unit("{answer}")
            .with_description("DNS answers, by who knew them: the zone of the cluster, the cache or another server")
            .with_callback(move |out| {
                for source in Source::ALL {
                    let number = sum(&seen, |counters| &counters.sources[source as usize]);
                    out.observe(number, &[KeyValue::new("source", source.label())]);
                }
            })
            .build();
        let seen = workers.clone();
        meter
            .u64_observable_counter("portico.dns.dropped")
            .with_unit("{question}")
            .with_description("DNS questions refused or left unanswered because too many wait")
            .with_callback(move |out| out.observe(sum(&seen, |counters| &counters.dropped), &[]))
            .build();
        let forward = meter
            .f64_histogram("portico.dns.forward.duration")
            .with_unit("s")
            .with_description("Time of one attempt at another DNS server")
            .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])
            .build();
        Self { workers, forward }
    }

    /// The counters of one worker.
    pub fn worker(&self, index: usize) -> Arc<Counters> {
        self.workers.get(index).cloned().unwrap_or_default()
    }
}

fn sum(workers: &[Arc<Counters>], counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
    workers.iter().map(|counters| counter(counters).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
}
