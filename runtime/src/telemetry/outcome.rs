//! How an export really ended.
//!
//! The exporters of the SDK tell success from failure, but not why they gave up, nor how many records the collector
//! refused in an answer that is otherwise a success. They do say so in events, so one export runs under a
//! subscriber of its own that reads them. The events have names, which the tests pin against the exporters in use. As a
//! side effect these lines do not reach the log for every batch; [`super::account`] writes one a minute.

use super::account::Loss;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

/// The target of the exporters' events.
const TARGET: &str = "opentelemetry-otlp";

/// Listens to the exports of one exporter, which come one after the other.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    heard: Arc<Heard>,
    dispatch: Dispatch,
}

#[derive(Debug, Default)]
struct Heard {
    /// Records in a batch that was otherwise accepted.
    rejected: AtomicU64,
    /// One more than the number of a [`Loss`], or zero.
    loss: AtomicU64,
}

impl Outcome {
    pub(super) fn new() -> Self {
        let heard = Arc::new(Heard::default());
        let dispatch = Dispatch::new(Listener(heard.clone()));
        Outcome { heard, dispatch }
    }

    /// Runs one export: how many records were rejected, or why all of them were lost.
    pub(super) async fn of(&self, export: impl Future<Output = OTelSdkResult>) -> Result<u64, (Loss, String)> {
        self.heard.rejected.store(0, Ordering::Relaxed);
        self.heard.loss.store(0, Ordering::Relaxed);
        let result = export.with_subscriber(self.dispatch.clone()).await;
        let Err(error) = result else { return Ok(self.heard.rejected.load(Ordering::Relaxed)) };
        let heard = self.heard.loss.load(Ordering::Relaxed);
        let loss = match &error {
            OTelSdkError::AlreadyShutdown => Loss::AlreadyShutdown,
            OTelSdkError::Timeout(_) => Loss::Timeout,
            // A failure without a word, such as a body over the limit, would be the same next time.
            OTelSdkError::InternalFailure(_) => {
                heard.checked_sub(1).map_or(Loss::Permanent, |at| Loss::ALL[at as usize])
            }
        };
        Err((loss, error.to_string()))
    }
}

struct Listener(Arc<Heard>);

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == TARGET && *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let name = event.metadata().name();
        let loss = match name {
            "Export.Failed.NonRetryable" => Some(Loss::Permanent),
            "Export.Failed.Exhausted" | "Export.Failed.DeadlineExceeded" => Some(Loss::RetryExhausted),
            _ => None,
        };
        if let Some(loss) = loss {
            self.0.loss.store(loss as u64 + 1, Ordering::Relaxed);
        } else if name.ends_with(".PartialSuccess") {
            event.record(&mut Rejected(&self.0.rejected));
        }
    }

    // The exporters have no spans; whatever spans run by here are nobody's.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Reads the one number of a partial success: `rejected_spans`, `rejected_data_points` or `rejected_log_records`.
struct Rejected<'a>(&'a AtomicU64);

impl Visit for Rejected<'_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name().starts_with("rejected_") {
            self.0.store(u64::try_from(value).unwrap_or(0), Ordering::Relaxed);
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended(export: impl Future<Output = OTelSdkResult>) -> Result<u64, Loss> {
        Outcome::new().of(export).await.map_err(|(loss, _)| loss)
    }

    fn failure() -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure("refused".into()))
    }

    #[tokio::test]
    async fn events_of_the_exporters_say_why() {
        let permanent = async {
            tracing::warn!(name: "Export.Failed.NonRetryable", target: TARGET, retries = 1);
            failure()
        };
        assert_eq!(ended(permanent).await, Err(Loss::Permanent));
        let exhausted = async {
            tracing::warn!(name: "Export.Failed.Exhausted", target: TARGET, retries = 3);
            failure()
        };
        assert_eq!(ended(exhausted).await, Err(Loss::RetryExhausted));
        let partial = async {
            tracing::warn!(name: "TonicTracesClient.PartialSuccess", target: TARGET, rejected_spans = 7_i64);
            Ok(())
        };
        assert_eq!(ended(partial).await, Ok(7));
        let elsewhere = async {
            tracing::warn!(name: "Export.Failed.Exhausted", target: "elsewhere", retries = 3);
            failure()
        };
        assert_eq!(ended(elsewhere).await, Err(Loss::Permanent));
    }

    #[tokio::test]
    async fn one_export_does_not_color_the_next() {
        let outcome = Outcome::new();
        let partial = async {
            tracing::warn!(name: "TonicTracesClient.PartialSuccess", target: TARGET, rejected_spans = 7_i64);
            Ok(())
        };
        assert_eq!(outcome.of(partial).await.unwrap(), 7);
        assert_eq!(outcome.of(async { Ok(()) }).await.unwrap(), 0);
    }
}
