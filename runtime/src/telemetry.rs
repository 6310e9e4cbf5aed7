//! Telemetry: the log, and per component a tracer, a meter, a logger and a registry.
//!
//! A process may hold several components, such as a gateway and three agents, which must not share names or numbers. So
//! nothing here is global but the log subscriber: a `Component` owns its providers, and whoever has no component
//! cannot record anything. Metrics can always be scraped from the component's registry; what is exported over OTLP, and
//! where to, is up to the standard `OTEL_*` variables (`settings`).
//!
//! The path of a request never waits for a collector: a span goes into a bounded queue or is counted as lost
//! (`account`). Exports run on threads of the SDK with a tokio runtime of their own (`export`).

pub mod account;
mod export;
mod logging;
pub mod otlp;
mod outcome;
pub mod settings;

use self::account::{Account, SpanCounts};
use self::export::{Entrance, Reactor, Reported, SharedEntrance, Spans, Watched};
use self::settings::{Sampling, Settings};
use crate::args::Problems;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData, SpanProcessor,
};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

pub use logging::init_logging;

/// A flush never takes longer than this: a process that was told to end must not wait for a collector that is gone.
const MAX_FLUSH: Duration = Duration::from_secs(5);
/// How long one export of log records may take.
const LOG_TIMEOUT: Duration = Duration::from_secs(30);

/// Why telemetry could not be set up or flushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread of the exporters did not start.
    #[error("cannot start the telemetry runtime")]
    Reactor(#[source] std::io::Error),
    /// An exporter does not accept its settings.
    #[error("cannot export {signal}")]
    Exporter {
        /// `traces`, `metrics` or `logs`.
        signal: &'static str,
        /// What is wrong.
        #[source]
        source: otlp::Error,
    },
    /// The registry refused the reader.
    #[error("cannot set up metrics")]
    Metrics(#[source] OTelSdkError),
    /// Not everything was handed over in time.
    #[error("{} not flushed within {limit:?}", signals.join(" and "))]
    Unflushed {
        /// The signals whose provider did not finish.
        signals: Vec<&'static str>,
        /// The time they had.
        limit: Duration,
    },
}

/// Makes components; one per process.
#[derive(Debug)]
pub struct Telemetry {
    settings: Settings,
    /// `None` if nothing is exported: then there is no thread either.
    reactor: Option<Arc<Reactor>>,
}

impl Telemetry {
    /// Settings from the environment. A variable that is wrong is logged and counts as unset, as specified.
    ///
    /// # Errors
    /// [`Error::Reactor`].
    pub fn from_env() -> Result<Self, Error> {
        let mut problems = Problems::new();
        let settings = Settings::parse(|name| std::env::var(name).ok(), &mut problems);
        for line in problems.lines() {
            tracing::warn!("ignored: {line}");
        }
        Telemetry::new(settings)
    }

    /// Settings as given.
    ///
    /// # Errors
    /// [`Error::Reactor`].
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let exports = settings.traces.is_some() || settings.metrics.is_some() || settings.logs.is_some();
        let reactor = if exports { Some(Arc::new(Reactor::start().map_err(Error::Reactor)?)) } else { None };
        Ok(Telemetry { settings, reactor })
    }

    /// A component with providers of its own. `service_name` and `extra` describe it in all signals; the environment
    /// overrides them.
    ///
    /// It can be called inside and outside of a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Exporter`] if files for TLS are missing or wrong, [`Error::Metrics`].
    pub fn component(&self, service_name: &str, extra: Vec<KeyValue>) -> Result<Component, Error> {
        let resource = self.resource(service_name, extra);
        let registry = prometheus::Registry::new();
        let meter_provider = self.meter_provider(resource.clone(), &registry)?;
        let scope = InstrumentationScope::builder("portico").with_version(env!("CARGO_PKG_VERSION")).build();
        let traces = self.tracer_provider(resource.clone())?;
        if let Some(traces) = &traces {
            account::observe(&traces.account, &meter_provider.meter("portico.telemetry"), traces.exporter);
        }
        Ok(Component {
            tracer: traces.as_ref().map(|traces| traces.provider.tracer_with_scope(scope.clone())),
            spans: traces.as_ref().map(|traces| SpanSink { entrance: traces.entrance.clone(), scope }),
            sampling: self.settings.sampling,
            logger_provider: self.logger_provider(resource)?,
            meter_provider,
            registry,
            traces,
        })
    }

    fn resource(&self, service_name: &str, extra: Vec<KeyValue>) -> Resource {
        let name = self.settings.service_name.clone().unwrap_or_else(|| service_name.to_owned());
        Resource::builder()
            .with_attribute(KeyValue::new("service.namespace", "portico"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(extra)
            .with_attributes(self.settings.resource.clone())
            .with_service_name(name)
            .build()
    }

    /// Prepares the exporter of a signal, if it is exported at all.
    fn exporter<D, E>(
        &self,
        signal: &'static str,
        destination: Option<&D>,
        build: impl Fn(&D, &Reactor) -> Result<E, otlp::Error>,
    ) -> Result<Option<(E, Arc<Reactor>)>, Error> {
        let (Some(destination), Some(reactor)) = (destination, &self.reactor) else { return Ok(None) };
        let exporter = build(destination, reactor).map_err(|source| Error::Exporter { signal, source })?;
        Ok(Some((exporter, reactor.clone())))
    }

    fn tracer_provider(&self, resource: Resource) -> Result<Option<Traces>, Error> {
        let built = self.exporter("traces", self.settings.traces.as_ref(), otlp::spans)?;
        let Some(((exporter, name), reactor)) = built else { return Ok(None) };
        let batch = &self.settings.batch;
        let account = Arc::new(Account::new(batch.queue));
        let watched = Watched::new(exporter, reactor, batch.timeout);
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(batch.queue)
            .with_max_export_batch_size(batch.size)
            .with_scheduled_delay(batch.delay)
            .build();
        let processor = BatchSpanProcessor::builder(Spans { watched, account: account.clone() });
        let mut entrance = Entrance {
            batch: processor.with_batch_config(config).build(),
            account: account.clone(),
            closed: AtomicBool::new(false),
        };
        // The provider would do it, but it gets a shared entrance, and a resource is set only before sharing.
        entrance.set_resource(&resource);
        let entrance = Arc::new(entrance);
        let provider = SdkTracerProvider::builder()
            .with_sampler(self.settings.sampling.sampler())
            .with_resource(resource)
            .with_span_processor(SharedEntrance(entrance.clone()))
            .build();
        Ok(Some(Traces { provider, entrance, account, exporter: name }))
    }

    fn meter_provider(&self, resource: Resource, registry: &prometheus::Registry) -> Result<SdkMeterProvider, Error> {
        let scrape = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(Error::Metrics)?;
        let mut provider = SdkMeterProvider::builder().with_resource(resource).with_reader(scrape);
        let build = |to: &_, reactor: &_| otlp::metrics(to, self.settings.temporality, reactor);
        if let Some((exporter, reactor)) = self.exporter("metrics", self.settings.metrics.as_ref(), build)? {
            let watched = Watched::new(exporter, reactor, self.settings.metric_timeout);
            let reader = PeriodicReader::builder(Reported::new(watched, "metrics"))
                .with_interval(self.settings.metric_interval)
                .build();
            provider = provider.with_reader(reader);
        }
        Ok(provider.build())
    }

    fn logger_provider(&self, resource: Resource) -> Result<Option<SdkLoggerProvider>, Error> {
        let built = self.exporter("logs", self.settings.logs.as_ref(), otlp::logs)?;
        Ok(built.map(|(exporter, reactor)| {
            let watched = Watched::new(exporter, reactor, LOG_TIMEOUT);
            // The processor reads OTEL_BLRP_* itself.
            let processor = BatchLogProcessor::builder(Reported::new(watched, "logs")).build();
            SdkLoggerProvider::builder().with_resource(resource).with_log_processor(processor).build()
        }))
    }
}

/// The telemetry of one gateway or agent.
#[derive(Debug)]
pub struct Component {
    /// Starts spans; `None` when spans are not exported, and nobody need build any.
    pub tracer: Option<SdkTracer>,
    /// Takes spans that were built at their end; `None` when spans are not exported.
    pub spans: Option<SpanSink>,
    /// Which spans to record, for those who use [`Component::spans`]; [`Component::tracer`] heeds it by itself.
    pub sampling: Sampling,
    /// Makes meters. Their instruments are in [`Component::registry`], and exported if so configured.
    pub meter_provider: SdkMeterProvider,
    /// Makes loggers; `None` when log records are not exported.
    pub logger_provider: Option<SdkLoggerProvider>,
    /// What `/metrics` shows.
    pub registry: prometheus::Registry,
    traces: Option<Traces>,
}

#[derive(Debug)]
struct Traces {
    provider: SdkTracerProvider,
    entrance: Arc<Entrance>,
    account: Arc<Account>,
    exporter: &'static str,
}

/// Takes spans that are complete. A tracer makes ids and times itself, while a data plane that reports each request once
/// it has ended knows both before: its ids went out with the request.
#[derive(Clone, Debug)]
pub struct SpanSink {
    entrance: Arc<Entrance>,
    scope: InstrumentationScope,
}

impl SpanSink {
    /// What made the spans; to be set as [`SpanData::instrumentation_scope`].
    pub fn scope(&self) -> &InstrumentationScope {
        &self.scope
    }

    /// Takes a span, or counts it as lost. It never blocks. Spans whose context is not sampled are ignored.
    pub fn end(&self, span: SpanData) {
        self.entrance.on_end(span);
    }
}

impl Component {
    /// What became of the spans so far; all zero when they are not exported.
    pub fn span_counts(&self) -> SpanCounts {
        self.traces.as_ref().map(|traces| traces.account.counts()).unwrap_or_default()
    }

    /// Flushes all signals at once and ends them, within `limit` and never longer than five seconds.
    ///
    /// It blocks; from async code call it through `spawn_blocking`. What is recorded later is lost, and the
    /// registry is empty from then on.
    ///
    /// # Errors
    /// [`Error::Unflushed`] with the signals that did not finish. Calling it again is one of these cases.
    pub fn shutdown(&self, limit: Duration) -> Result<(), Error> {
        let limit = limit.min(MAX_FLUSH);
        let end = Instant::now() + limit;
        let (done, results) = mpsc::channel();
        let mut waiting = Vec::new();
        // A thread each, because the SDK bounds some of these calls by its own timeouts only.
        let mut start = |signal: &'static str, shutdown: Box<dyn FnOnce() -> OTelSdkResult + Send>| {
            let done = done.clone();
            waiting.push(signal);
            let spawned = thread::Builder::new().name(format!("flush {signal}")).spawn(move || {
                // The receiver is gone only when the time is up.
                let _ = done.send((signal, shutdown().is_ok()));
            });
            if let Err(error) = spawned {
                tracing::warn!(signal, %error, "cannot flush");
            }
        };
        if let Some(traces) = &self.traces {
            let provider = traces.provider.clone();
            start("traces", Box::new(move || provider.shutdown_with_timeout(limit)));
        }
        if let Some(provider) = self.logger_provider.clone() {
            start("logs", Box::new(move || provider.shutdown_with_timeout(limit)));
        }
        let provider = self.meter_provider.clone();
        start("metrics", Box::new(move || provider.shutdown_with_timeout(limit)));
        drop(done);
        while let Ok((signal, flushed)) = results.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if flushed {
                waiting.retain(|other| *other != signal);
            }
        }
        if waiting.is_empty() { Ok(()) } else { Err(Error::Unflushed { signals: waiting, limit }) }
    }
}

#[cfg(test)]
mod tests;
