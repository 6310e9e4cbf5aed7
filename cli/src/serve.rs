//! The long-running subcommands: one component each, from options to the end of its drain.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use runtime::{
    drain, shutdown,
    telemetry::{Component, Telemetry},
};
use tokio_util::task::AbortOnDropHandle;

use crate::gateways;

/// What ending takes beyond the drain timeout: workers notice their deadline, telemetry is flushed.
const GRACE: Duration = Duration::from_secs(2);

/// Runs a gateway until a signal, then drains.
///
/// # Errors
/// When it cannot start, or ends early.
pub async fn gateway(config: gateway::config::Config) -> anyhow::Result<()> {
    let telemetry = component("portico-control-plane", vec![])?;
    let (trigger, watch) = drain::channel();
    let limit = config.drain_timeout;
    let running = gateway::server::start(config, &telemetry, watch).await?;
    tracing::info!(discovery = %running.discovery, health = %running.health, admin = %running.admin, "listening");
    let ended = until_signal(async move { Ok(running.wait().await?) }, trigger, limit).await;
    flush(telemetry).await;
    ended
}

/// Runs an agent until a signal, then drains.
///
/// # Errors
/// When it cannot start, or ends early.
pub async fn agent(mut config: agent::config::Config) -> anyhow::Result<()> {
    let node = config.here.node.clone();
    let telemetry = component("portico-agent", vec![KeyValue::new("k8s.node.name", node)])?;
    let (trigger, watch) = drain::channel();
    let limit = config.limits.drain_timeout + GRACE;
    // Whoever looks for gateways does so until the agent has ended.
    let mut following = None;
    if let Some(service) = config.gateway_service.take() {
        let (replicas, receiver) = tokio::sync::watch::channel(vec![]);
        config.gateways.replicas = receiver;
        let client = gateways::client(service.kubeconfig.as_deref()).await?;
        following = Some(AbortOnDropHandle::new(tokio::spawn(gateways::follow(client, service, replicas))));
    }
    let ended = until_signal(async { Ok(agent::run::run(config, &telemetry, watch).await?) }, trigger, limit).await;
    drop(following);
    flush(telemetry).await;
    ended
}

/// Runs `work` until it ends or a signal arrives; after a signal it may drain for `limit`.
async fn until_signal(
    work: impl Future<Output = anyhow::Result<()>>,
    trigger: drain::Trigger,
    limit: Duration,
) -> anyhow::Result<()> {
    tokio::pin!(work);
    let signal = tokio::select! {
        ended = &mut work => return ended,
        signal = shutdown::signal() => signal,
    };
    tracing::info!(signal, "draining");
    let drained = shutdown::drain(trigger, limit);
    tokio::pin!(drained);
    tokio::select! {
        ended = &mut work => ended,
        end = &mut drained => {
            if end == shutdown::Ended::Deadline {
                tracing::warn!("not everything was finished in time");
            }
            Ok(())
        }
    }
}

fn component(name: &str, resource: Vec<KeyValue>) -> anyhow::Result<Component> {
    let telemetry = Telemetry::from_env().context("cannot set up telemetry")?;
    telemetry.component(name, resource).context("cannot set up telemetry")
}

async fn flush(telemetry: Component) {
    let flushed = tokio::task::spawn_blocking(move || telemetry.shutdown(Duration::from_secs(5))).await;
    if let Ok(Err(error)) = flushed {
        tracing::warn!("telemetry: {error}");
    }
}
