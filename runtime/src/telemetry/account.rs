//! What became of every span: the SDK counts only some losses and tells nobody.
//!
//! The invariant is `ended = pending + exported + lost`, read when nothing is in motion. A span enters as pending when
//! it ends and leaves when the export of its batch is over, so the bound of the queue holds for the batch under way too.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The least time between two log lines about losses.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Why records were lost. The words are values of `error.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// More records ended than could be exported.
    QueueFull,
    /// They ended after the flush.
    AlreadyShutdown,
    /// The collector accepted their batch, but not them.
    Rejected,
    /// The collector could not be reached or was busy, repeatedly.
    RetryExhausted,
    /// The collector answered that trying again would be of no use.
    Permanent,
    /// The export took longer than it may.
    Timeout,
}

impl Loss {
    /// Every kind, in the order of [`SpanCounts::lost`].
    pub const ALL: [Loss; 6] =
        [Loss::QueueFull, Loss::AlreadyShutdown, Loss::Rejected, Loss::RetryExhausted, Loss::Permanent, Loss::Timeout];

    /// The value of `error.type`. The first two are prescribed by the semantic conventions.
    pub fn label(self) -> &'static str {
        match self {
            Loss::QueueFull => "queue_full",
            Loss::AlreadyShutdown => "already_shutdown",
            Loss::Rejected => "rejected",
            Loss::RetryExhausted => "retry_exhausted",
            Loss::Permanent => "permanent",
            Loss::Timeout => "timeout",
        }
    }

    /// Lost before it came to an export.
    fn in_processor(self) -> bool {
        matches!(self, Loss::QueueFull | Loss::AlreadyShutdown)
    }
}

/// The account of one component's spans at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// Recorded spans that ended.
    pub ended: u64,
    /// Waiting, or in the export under way.
    pub pending: u64,
    /// Handed to an exporter, whatever came of it.
    pub submitted: u64,
    /// Accepted by the collector.
    pub exported: u64,
    /// Lost, by [`Loss`].
    pub lost: [u64; Loss::ALL.len()],
}

impl SpanCounts {
    /// Spans lost for one reason.
    pub fn lost_to(&self, loss: Loss) -> u64 {
        self.lost[loss as usize]
    }

    /// Spans lost for any reason.
    pub fn lost_total(&self) -> u64 {
        self.lost.iter().sum()
    }
}

/// The counters behind [`SpanCounts`].
#[derive(Debug)]
pub(super) struct Account {
    capacity: usize,
    ended: AtomicU64,
    pending: AtomicUsize,
    submitted: AtomicU64,
    exported: AtomicU64,
    lost: [AtomicU64; Loss::ALL.len()],
    notice: Notice,
}

impl Account {
    pub(super) fn new(capacity: usize) -> Self {
        Account {
            capacity,
            ended: AtomicU64::new(0),
            pending: AtomicUsize::new(0),
            submitted: AtomicU64::new(0),
            exported: AtomicU64::new(0),
            lost: Default::default(),
            notice: Notice::default(),
        }
    }

    /// Notes a span that ended; `false` means that there is no room and it is lost.
    pub(super) fn enter(&self) -> bool {
        self.ended.fetch_add(1, Ordering::Relaxed);
        // Add first, then look: two workers that race for the last place cannot both get it.
        if self.pending.fetch_add(1, Ordering::AcqRel) < self.capacity {
            return true;
        }
        self.pending.fetch_sub(1, Ordering::AcqRel);
        self.lose(1, Loss::QueueFull, "the queue is full");
        false
    }

    /// Notes a span that ended when it is too late to export it.
    pub(super) fn late(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.lose(1, Loss::AlreadyShutdown, "the span ended after the flush");
    }

    /// Notes a batch that goes to the exporter.
    pub(super) fn submit(&self, batch: usize) {
        self.submitted.fetch_add(batch as u64, Ordering::Relaxed);
    }

    /// Notes how the export of a batch ended: how many the collector did not take, or why it took none.
    pub(super) fn settle(&self, batch: usize, outcome: Result<u64, (Loss, String)>) {
        let batch_size = batch as u64;
        match outcome {
            Ok(rejected) => {
                let rejected = rejected.min(batch_size);
                self.exported.fetch_add(batch_size - rejected, Ordering::Relaxed);
                if rejected > 0 {
                    self.lose(rejected, Loss::Rejected, "the collector rejected them");
                }
            }
            Err((loss, reason)) => self.lose(batch_size, loss, &reason),
        }
        self.pending.fetch_sub(batch, Ordering::AcqRel);
    }

    /// Notes that nobody is left to export what is pending.
    pub(super) fn abandon(&self) {
        let pending = self.pending.swap(0, Ordering::AcqRel) as u64;
        if pending > 0 {
            self.lose(pending, Loss::AlreadyShutdown, "they were not flushed");
        }
    }

    pub(super) fn counts(&self) -> SpanCounts {
        SpanCounts {
            ended: self.ended.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Acquire) as u64,
            submitted: self.submitted.load(Ordering::Relaxed),
            exported: self.exported.load(Ordering::Relaxed),
            lost: std::array::from_fn(|at| self.lost[at].load(Ordering::Relaxed)),
        }
    }

    fn lose(&self, spans: u64, loss: Loss, reason: &str) {
        self.lost[loss as usize].fetch_add(spans, Ordering::Relaxed);
        if let Some(lost) = self.notice.note(spans, Instant::now()) {
            tracing::warn!(spans = lost, error.type = loss.label(), reason, "spans are lost");
        }
    }
}

/// Shows an account as the metrics that the semantic conventions define for SDKs (otel/sdk-metrics).
pub(super) fn observe(account: &Arc<Account>, meter: &Meter, exporter: &'static str) {
    let processor = [component("batching_span_processor")];
    let exporter = [component(exporter)];
    let capacity = account.capacity as u64;
    let (processed, exported, queued) = (account.clone(), account.clone(), account.clone());
    let of_processor = processor.clone();
    meter
        .u64_observable_counter("otel.sdk.processor.span.processed")
        .with_unit("{span}")
        .with_description("Spans whose processing has finished, successful or not.")
        .with_callback(move |out| {
            let counts = processed.counts();
            report(out, counts.submitted, &counts, &of_processor, Loss::in_processor);
        })
        .build();
    meter
        .u64_observable_counter("otel.sdk.exporter.span.exported")
        .with_unit("{span}")
        .with_description("Spans whose export has finished, successful or not.")
        .with_callback(move |out| {
            let counts = exported.counts();
            report(out, counts.exported, &counts, &exporter, |loss| !loss.in_processor());
        })
        .build();
    let of_queue = processor.clone();
    meter
        .u64_observable_gauge("otel.sdk.processor.span.queue.size")
        .with_unit("{span}")
        .with_description("Spans that wait, or are in the export under way.")
        .with_callback(move |out| out.observe(queued.counts().pending, &of_queue))
        .build();
    meter
        .u64_observable_gauge("otel.sdk.processor.span.queue.capacity")
        .with_unit("{span}")
        .with_description("Spans that may wait.")
        .with_callback(move |out| out.observe(capacity, &processor))
        .build();
}

fn component(kind: &'static str) -> KeyValue {
    KeyValue::new("otel.component.type", kind)
}

/// Writes successes without, and losses with their `error.type`. Losses that never happened are shown as zero, so
/// that a rate can be computed from the first one on.
fn report(
    out: &dyn AsyncInstrument<u64>,
    done: u64,
    counts: &SpanCounts,
    attributes: &[KeyValue; 1],
    shown: impl Fn(Loss) -> bool,
) {
    out.observe(done, attributes);
    for loss in Loss::ALL.into_iter().filter(|loss| shown(*loss)) {
        let error = KeyValue::new("error.type", loss.label());
        out.observe(counts.lost_to(loss), &[attributes[0].clone(), error]);
    }
}

/// Gathers losses for one log line at a time.
#[derive(Debug, Default)]
pub(super) struct Notice {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Notice {
    /// Notes losses. The answer, at most once a minute, is how many came together since the last one.
    pub(super) fn note(&self, lost: u64, now: Instant) -> Option<u64> {
        // Only the path of a loss comes here; that of an exported span takes no lock.
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (last, gathered) = &mut *state;
        *gathered += lost;
        if last.is_some_and(|last| now.saturating_duration_since(last) < LINE_EVERY) {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(gathered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(account: &Account) -> SpanCounts {
        let counts = account.counts();
        assert_eq!(counts.ended, counts.pending + counts.exported + counts.lost_total(), "{counts:?}");
        counts
    }

    #[test]
    fn every_span_is_pending_exported_or_lost() {
        let account = Account::new(10);
        let entered = (0..15).filter(|_| account.enter()).count();
        assert_eq!(entered, 10);
        assert_eq!(balance(&account).lost_to(Loss::QueueFull), 5);
        account.submit(6);
        account.settle(6, Ok(2));
        assert_eq!(
            balance(&account),
            SpanCounts { ended: 15, pending: 4, submitted: 6, exported: 4, lost: [5, 0, 2, 0, 0, 0] }
        );
        account.submit(3);
        account.settle(3, Err((Loss::RetryExhausted, "refused".into())));
        assert!(account.enter(), "what was settled made room");
        account.late();
        account.abandon();
        let counts = balance(&account);
        assert_eq!(counts.pending, 0);
        assert_eq!(counts.lost_to(Loss::RetryExhausted), 3);
        assert_eq!(counts.lost_to(Loss::AlreadyShutdown), 3);
    }

    #[test]
    fn a_collector_cannot_reject_more_than_it_got() {
        let account = Account::new(10);
        account.enter();
        account.submit(1);
        account.settle(1, Ok(99));
        assert_eq!(balance(&account).lost_to(Loss::Rejected), 1);
    }

    #[test]
    fn the_queue_holds_under_contention() {
        let account = Account::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).filter(|_| account.enter()).count());
            }
        });
        let counts = balance(&account);
        // A place that is being given back may be refused to another: never over, and after the storm exact.
        assert!(counts.pending <= 1000 && counts.ended == 4000, "{counts:?}");
    }

    #[test]
    fn losses_make_one_line_a_minute() {
        let (notice, start) = (Notice::default(), Instant::now());
        assert_eq!(notice.note(3, start), Some(3));
        assert_eq!(notice.note(4, start + LINE_EVERY / 2), None);
        assert_eq!(notice.note(5, start + LINE_EVERY - Duration::from_millis(1)), None);
        assert_eq!(notice.note(1, start + LINE_EVERY), Some(10));
        assert_eq!(notice.note(1, start + LINE_EVERY), None);
    }
}
