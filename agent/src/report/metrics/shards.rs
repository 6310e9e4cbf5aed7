//! What workers count themselves, summed when somebody reads it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use opentelemetry::{KeyValue, metrics::Meter};

use crate::report::{
    attributes::scheme,
    method::METHODS,
    record::{Shard, Slot},
};

/// The shards of all workers, and what the reporting thread has worked through.
#[derive(Clone, Debug, Default)]
pub struct Shards {
    /// Locked when a worker starts and when somebody reads, never on the path of a request.
    shards: Arc<Mutex<Vec<Arc<Shard>>>>,
    exported: Arc<AtomicU64>,
}

/// The account of the records of all workers at one moment: closed = queued + exported + dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Records closed.
    pub closed: u64,
    /// Records worked through: they are in the metrics, and were logged and traced as configured.
    pub exported: u64,
    /// Records that found the queue full, or nobody at its end.
    pub dropped: u64,
}

// === impl RecordCounts ===

impl RecordCounts {
    /// Records that wait with their worker or in the queue.
    pub fn queued(&self) -> u64 {
        self.closed.saturating_sub(self.exported + self.dropped)
    }
}

// === impl Shards ===

impl Shards {
    /// The shard of one more worker.
    pub fn add(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::default());
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).push(shard.clone());
        shard
    }

    /// The reporting thread has worked through this many records.
    pub fn exported(&self, records: usize) {
        self.exported.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// What became of all records.
    pub fn records(&self) -> RecordCounts {
        // In this order, so that a record that moves on while we look is not counted as gone before it was closed.
        let exported = self.exported.load(Ordering::Relaxed);
        let dropped = self.sum(|shard| &shard.dropped);
        RecordCounts { closed: self.sum(|shard| &shard.closed), exported, dropped }
    }

    /// Shows the sums as metrics.
    pub fn observe(&self, meter: &Meter) {
        let shards = self.clone();
        meter
            .u64_observable_counter("portico.telemetry.records")
            .with_unit("{record}")
            .with_description("Records of requests and connections: closed, and of these exported or dropped")
            .with_callback(move |out| {
                let counts = shards.records();
                let results = [("closed", counts.closed), ("exported", counts.exported), ("dropped", counts.dropped)];
                for (result, number) in results {
                    out.observe(number, &[KeyValue::new("result", result)]);
                }
            })
            .build();
        let shards = self.clone();
        meter
            .u64_observable_counter("portico.connection.accepted")
            .with_unit("{connection}")
            .with_description("Connections and flows that came")
            .with_callback(move |out| shards.by_slot(|number, _, attributes| out.observe(number, attributes)))
            .build();
        let shards = self.clone();
        meter
            .i64_observable_up_down_counter("portico.connection.active")
            .with_unit("{connection}")
            .with_description("Connections and flows that are open")
            .with_callback(move |out| shards.by_slot(|_, open, attributes| out.observe(open as i64, attributes)))
            .build();
        let shards = self.clone();
        meter
            .i64_observable_up_down_counter("http.server.active_requests")
            .with_unit("{request}")
            .with_description("Requests in flight")
            .with_callback(move |out| {
                for (tls, (at, method)) in [false, true]
                    .into_iter()
                    .flat_map(|tls| METHODS.iter().enumerate().map(move |method| (tls, method)))
                {
                    let active = shards.sum(|shard| &shard.requests[usize::from(tls)][at]);
                    let attributes =
                        [KeyValue::new("http.request.method", *method), KeyValue::new("url.scheme", scheme(tls))];
                    // The two that are always there show that nothing is in flight; the others show when they are.
                    if active > 0 || at == 0 {
                        out.observe(active as i64, &attributes);
                    }
                }
            })
            .build();
    }

    /// Tells accepted and open connections of each kind that ever came.
    fn by_slot(&self, mut tell: impl FnMut(u64, u64, &[KeyValue])) {
        for (slot, kind, transport) in Slot::all() {
            let open = self.sum(|shard| slot.pick(&shard.open));
            let accepted = self.sum(|shard| slot.pick(&shard.accepted));
            if accepted > 0 {
                let attributes = [
                    KeyValue::new("portico.listener.kind", kind.label()),
                    KeyValue::new("network.transport", transport),
                ];
                tell(accepted, open, &attributes);
            }
        }
    }

    fn sum(&self, counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }
}
