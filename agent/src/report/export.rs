//! The reporting thread of an agent: takes the records of all workers and makes metrics, spans, log records and log lines of them.
//!
//! The queue is bounded and workers never wait for it. What finds it full is counted and gone; what came through it is
//! counted too, so that nothing is lost without a number ([`RecordCounts`]).

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use opentelemetry::{logs::LoggerProvider as _, metrics::MeterProvider as _};
use opentelemetry_sdk::logs::SdkLogger;
use runtime::telemetry::{Component, SpanSink};

use super::{
    access_log::{self, AccessLog},
    clock::Clock,
    event,
    metrics::{
        Metrics,
        shards::{RecordCounts, Shards},
    },
    record::{Record, Reporter, Shard},
    span,
    trace::{Sampling, TraceState},
};

/// Batches that may wait. With the size of a batch this is a quarter second of a node under full load.
const QUEUE: usize = 1024;

/// A shutdown never takes longer than this: standard output may be a pipe that nobody reads.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The least time between two log lines about dropped records.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Which agent it is that reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// Name of its Node object.
    pub name: String,
}

/// The reporting thread, as its agent holds it. When it is dropped the thread goes on until all workers are gone.
#[derive(Debug)]
pub struct Reporting {
    queue: SyncSender<Vec<Record>>,
    shards: Shards,
    traces: TraceState,
    detail: bool,
    stop: Arc<AtomicBool>,
    /// Ends, with an error, when the thread does.
    ended: Receiver<()>,
    node: NodeIdentity,
}

/// What a worker takes along to its thread.
#[derive(Debug)]
pub struct WorkerReporting {
    queue: SyncSender<Vec<Record>>,
    shard: Arc<Shard>,
    traces: TraceState,
    detail: bool,
}

/// Starts the reporting thread of an agent.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(component: &Component, node: NodeIdentity, access_log: AccessLog) -> io::Result<Reporting> {
    start_with(component, node, access_log, io::stdout())
}

/// As [`start`], with the log lines going to `lines`, which gets whole lines in each write.
///
/// # Errors
/// When the thread cannot be started.
pub fn start_with(
    component: &Component,
    node: NodeIdentity,
    access_log: AccessLog,
    lines: impl Write + Send + 'static,
) -> io::Result<Reporting> {
    let (queue, records) = sync_channel(QUEUE);
    let (alive, ended) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let meter = component.meter_provider.meter("portico");
    let shards = Shards::default();
    shards.observe(&meter);
    let logger = component.logger_provider.as_ref().map(|provider| provider.logger("portico"));
    let traces = match component.spans {
        Some(_) => TraceState::new(Sampling::asked(component.sampling)),
        None => TraceState::off(),
    };
    let detail = access_log != AccessLog::Off || logger.is_some();
    let mut thread = Thread {
        metrics: Metrics::new(&meter),
        shards: shards.clone(),
        spans: component.spans.clone(),
        logger,
        access_log,
        node: node.clone(),
        lines,
        buffer: Vec::new(),
        dropped: Dropped::default(),
    };
    let stopping = stop.clone();
    thread::Builder::new().name(format!("report {}", node.name)).spawn(move || {
        // Nothing is ever sent: the drop of this end is the message.
        let _alive = alive;
        thread.run(&records, &stopping);
    })?;
    Ok(Reporting { queue, shards, traces, detail, stop, ended, node })
}

// === impl Reporting ===

impl Reporting {
    /// The end of one more worker.
    pub fn worker(&self) -> WorkerReporting {
        WorkerReporting {
            queue: self.queue.clone(),
            shard: self.shards.add(),
            traces: self.traces,
            detail: self.detail,
        }
    }

    /// What became of the records so far.
    pub fn records(&self) -> RecordCounts {
        self.shards.records()
    }

    /// Waits until everything that was queued is worked through, and ends the thread; in all no longer than five seconds.
    /// It blocks. To be called after the workers ended: what they queue later is not waited for. Spans and log records are
    /// with the SDK then, which [`Component::shutdown`] flushes.
    pub fn shutdown(self) -> RecordCounts {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + LAST_WORDS;
        // An empty batch wakes the thread, if it sleeps; with a full queue it does not.
        match self.queue.try_send(Vec::new()) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        drop(self.queue);
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(end.saturating_duration_since(Instant::now())) {
            let records = self.shards.records().queued();
            tracing::warn!(node = self.node.name, records, "records are not reported: standard output takes no more");
        }
        self.shards.records()
    }
}

// === impl WorkerReporting ===

impl WorkerReporting {
    /// The worker's reporter, made on its thread.
    pub fn into_reporter(self) -> Reporter {
        Reporter::new(self.queue, self.shard, self.traces).with_detail(self.detail)
    }
}

/// What the reporting thread owns.
struct Thread<W> {
    metrics: Metrics,
    shards: Shards,
    spans: Option<SpanSink>,
    logger: Option<SdkLogger>,
    access_log: AccessLog,
    node: NodeIdentity,
    lines: W,
    buffer: Vec<u8>,
    dropped: Dropped,
}

// === impl Thread ===

impl<W: Write> Thread<W> {
    /// Works until all senders are gone, or until it was told to stop and the queue is empty.
    fn run(&mut self, records: &Receiver<Vec<Record>>, stop: &AtomicBool) {
        while let Ok(batch) = records.recv() {
            self.batch(batch);
            if stop.load(Ordering::Acquire) {
                records.try_iter().for_each(|batch| self.batch(batch));
                break;
            }
        }
    }

    fn batch(&mut self, batch: Vec<Record>) {
        let clock = Clock::now();
        let size = batch.len();
        for record in batch {
            self.metrics.record(&record);
            if let Some(sink) = self.spans.as_ref().filter(|_| record.trace().sampled) {
                span::spans(&record, &clock, sink.scope(), |span| sink.end(span));
            }
            if let Some(logger) = self.logger.as_ref().filter(|_| event::wants(&record)) {
                event::emit(&record, &clock, logger);
            }
            if self.access_log.wants(&record) {
                access_log::line(&record, &clock, &self.node.name, &mut self.buffer);
            }
        }
        self.flush();
        self.shards.exported(size);
        if let Some(records) = self.dropped.note(self.shards.records().dropped, Instant::now()) {
            tracing::warn!(node = self.node.name, records, "records are dropped: reporting cannot keep up");
        }
    }

    /// Writes the lines of one batch at once, so that those of two agents in one process do not mix.
    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let written = self.lines.write_all(&self.buffer).and_then(|()| self.lines.flush());
        self.buffer.clear();
        if let Err(error) = written {
            tracing::warn!(node = self.node.name, %error, "the access log cannot be written and ends here");
            self.access_log = AccessLog::Off;
        }
    }
}

/// Gathers drops for one log line a minute.
#[derive(Debug, Default)]
struct Dropped {
    told: u64,
    last: Option<Instant>,
}

// === impl Dropped ===

impl Dropped {
    /// How many were dropped since the last line, if there should be one now. `total` only grows.
    fn note(&mut self, total: u64, now: Instant) -> Option<u64> {
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= LINE_EVERY);
        if total == self.told || !is_due {
            return None;
        }
        self.last = Some(now);
        Some(total - std::mem::replace(&mut self.told, total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_make_one_line_a_minute() {
        let (mut dropped, start) = (Dropped::default(), Instant::now());
        assert_eq!(dropped.note(0, start), None);
        assert_eq!(dropped.note(3, start), Some(3));
        assert_eq!(dropped.note(5, start + LINE_EVERY / 2), None);
        assert_eq!(dropped.note(6, start + LINE_EVERY), Some(3));
        assert_eq!(dropped.note(6, start + 3 * LINE_EVERY), None);
    }
}
