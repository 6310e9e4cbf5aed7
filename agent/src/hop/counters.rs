//! How handing over went, beside what the records of connections tell. Only what goes wrong is counted here, so that all
//! workers may write to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::{State, introduction::micros, seal::Refusal};
use crate::report::via::Bypass;

/// Refused headers are logged no more often than this.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// The counters.
#[derive(Debug, Default)]
pub struct Counters {
    refused: [AtomicU64; Refusal::LABELS.len()],
    bypassed: [AtomicU64; Bypass::ALL.len()],
    /// When a refusal was logged last, in microseconds since 1970.
    logged: AtomicU64,
}

// === impl Counters ===

impl Counters {
    /// Counts a refused header. Says whether it should be logged: a flood of them must not flood the log.
    pub fn refused(&self, refusal: Refusal, now: SystemTime) -> bool {
        self.refused[refusal.index()].fetch_add(1, Relaxed);
        let (now, last) = (micros(now), self.logged.load(Relaxed));
        let is_due = now.saturating_sub(last) >= LOG_EVERY.as_micros() as u64;
        is_due && self.logged.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    /// Counts a connection that was not handed over.
    pub fn bypassed(&self, bypass: Bypass) {
        self.bypassed[bypass as usize].fetch_add(1, Relaxed);
    }

    /// Shows the counters whenever somebody scrapes.
    pub fn observe(state: &Arc<State>, meter: &Meter) {
        let shown = state.clone();
        meter
            .u64_observable_counter("portico.hop.refused")
            .with_unit("{connection}")
            .with_description("Connections of other agents, or of whoever poses as one, that were refused")
            .with_callback(move |counter| {
                for (label, count) in Refusal::LABELS.iter().zip(&shown.counters.refused) {
                    counter.observe(count.load(Relaxed), &[KeyValue::new("reason", *label)]);
                }
            })
            .build();
        let shown = state.clone();
        meter
            .u64_observable_counter("portico.hop.bypassed")
            .with_unit("{connection}")
            .with_description("Connections whose endpoint sees this node, because they could not be handed over")
            .with_callback(move |counter| {
                for (bypass, count) in Bypass::ALL.iter().zip(&shown.counters.bypassed) {
                    counter.observe(count.load(Relaxed), &[KeyValue::new("reason", bypass.label())]);
                }
            })
            .build();
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_logged() {
        let counters = Counters::default();
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
        let logged = [0, 0, 1, 4, 5, 9, 30].map(|second| counters.refused(Refusal::Code, at(second)));
        assert_eq!(logged, [true, false, false, false, true, false, true]);
        assert_eq!(counters.refused[Refusal::Code.index()].load(Relaxed), 7);
    }
}
