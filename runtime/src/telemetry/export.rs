//! Wrappers around the SDK's exporters and its span processor: they give exports a runtime and a bound in time, and
//! account for what is lost.
//!
//! The SDK exports from threads of its own, which know no tokio runtime, while gRPC and HTTP need one. [`Reactor`] is
//! that runtime. It does not matter where, or whether, the rest of the process runs tokio: not even a blocked worker delays
//! an export.

use super::account::{Account, Loss, Notice};
use super::outcome::Outcome;
use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::context::TokioContext;

/// The runtime of all exporters of a process: one thread.
#[derive(Debug)]
pub(super) struct Reactor {
    /// Taken only by the drop.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Reactor {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("telemetry").enable_all().build()?;
        Ok(Reactor { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // Waiting for it, as a plain drop does, is forbidden on a thread that runs tokio, and that may be this one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An exporter whose exports run in the reactor's context, end in time, and are judged.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    /// Keeps the runtime alive for as long as anything exports.
    reactor: Arc<Reactor>,
    /// How long one export may take, retries included.
    limit: Duration,
    outcome: Outcome,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, reactor: Arc<Reactor>, limit: Duration) -> Self {
        Watched { exporter, reactor, limit, outcome: Outcome::new() }
    }

    /// Runs one export: how many records were rejected, or why all were lost.
    async fn run(&self, export: impl Future<Output = OTelSdkResult> + Send) -> Result<u64, (Loss, String)> {
        // The timeout is made inside the context, because making a timer needs one too.
        let bounded =
            async { tokio::time::timeout(self.limit, export).await.unwrap_or(Err(OTelSdkError::Timeout(self.limit))) };
        self.outcome.of(TokioContext::new(bounded, self.reactor.handle.clone())).await
    }
}

/// A span exporter that keeps the account. It always reports success to the SDK, which would log each failure.
#[derive(Debug)]
pub(super) struct Spans<E> {
    pub(super) watched: Watched<E>,
    pub(super) account: Arc<Account>,
}

impl<E: SpanExporter> SpanExporter for Spans<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let size = batch.len();
        self.account.submit(size);
        let outcome = self.watched.run(self.watched.exporter.export(batch)).await;
        self.account.settle(size, outcome);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.watched.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.watched.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.watched.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.watched.exporter.set_resource(resource);
    }
}

/// The batch processor with an entrance that counts. Its queue is as long as the account allows, so it never refuses a
/// span that the account let in.
#[derive(Debug)]
pub(super) struct Entrance {
    pub(super) batch: BatchSpanProcessor,
    pub(super) account: Arc<Account>,
    pub(super) closed: AtomicBool,
}

impl SpanProcessor for Entrance {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batch.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.closed.load(Ordering::Acquire) {
            self.account.late();
        } else if self.account.enter() {
            self.batch.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batch.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.closed.store(true, Ordering::Release);
        let result = self.batch.shutdown_with_timeout(timeout);
        if result.is_ok() {
            // What slipped in between the two lines above is in a queue that nobody reads any more.
            self.account.abandon();
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batch.set_resource(resource);
    }
}

/// An entrance as the provider owns it, while spans that are built after the fact come in beside it.
#[derive(Debug)]
pub(super) struct SharedEntrance(pub(super) Arc<Entrance>);

impl SpanProcessor for SharedEntrance {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }
}

/// An exporter of metrics or log records: failures make one log line a minute.
#[derive(Debug)]
pub(super) struct Reported<E> {
    watched: Watched<E>,
    signal: &'static str,
    notice: Notice,
}

impl<E> Reported<E> {
    pub(super) fn new(watched: Watched<E>, signal: &'static str) -> Self {
        Reported { watched, signal, notice: Notice::default() }
    }

    fn report(&self, outcome: Result<u64, (Loss, String)>) {
        let (loss, reason) = match outcome {
            Ok(0) => return,
            Ok(_) => (Loss::Rejected, String::from("the collector rejected records")),
            Err(failed) => failed,
        };
        if let Some(exports) = self.notice.note(1, Instant::now()) {
            tracing::warn!(signal = self.signal, exports, error.type = loss.label(), reason, "exports failed");
        }
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Reported<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let outcome = self.watched.run(self.watched.exporter.export(metrics)).await;
        self.report(outcome);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.watched.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.watched.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.watched.exporter.temporality()
    }
}

impl<E: LogExporter> LogExporter for Reported<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let outcome = self.watched.run(self.watched.exporter.export(batch)).await;
        self.report(outcome);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.watched.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.watched.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use std::time::SystemTime;

    /// Takes every span.
    #[derive(Debug)]
    struct Sink;

    impl SpanExporter for Sink {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Ok(())
        }
    }

    fn entrance() -> Entrance {
        let account = Arc::new(Account::new(100));
        let reactor = Arc::new(Reactor::start().unwrap());
        let watched = Watched::new(Sink, reactor, Duration::from_secs(60));
        let batch = BatchSpanProcessor::builder(Spans { watched, account: account.clone() }).build();
        Entrance { batch, account, closed: AtomicBool::new(false) }
    }

    fn span(flags: TraceFlags) -> SpanData {
        let (trace, span) = (TraceId::from_bytes([1; 16]), SpanId::from_bytes([1; 8]));
        SpanData {
            span_context: SpanContext::new(trace, span, flags, false, TraceState::default()),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Server,
            name: "GET web.shop".into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: Default::default(),
        }
    }

    #[test]
    fn spans_that_come_too_late_are_counted() {
        let entrance = entrance();
        entrance.on_end(span(TraceFlags::SAMPLED));
        entrance.shutdown_with_timeout(Duration::from_secs(60)).unwrap();
        entrance.on_end(span(TraceFlags::SAMPLED));
        let counts = entrance.account.counts();
        assert_eq!((counts.ended, counts.exported, counts.pending), (2, 1, 0));
        assert_eq!(counts.lost_to(Loss::AlreadyShutdown), 1);
    }

    #[test]
    fn spans_that_were_not_sampled_are_nobodys() {
        let entrance = entrance();
        entrance.on_end(span(TraceFlags::default()));
        entrance.shutdown_with_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(entrance.account.counts().ended, 0);
    }

    #[tokio::test]
    async fn a_reactor_may_end_on_a_thread_that_runs_tokio() {
        drop(Reactor::start().unwrap());
    }
}
