//! Gateway and agents in one process, from manifests, without a cluster and without root. It is made of the same parts
//! as any other deployment, joined by the same streams over loopback; it differs in its source, and in that it starts
//! an agent for each Node and a sample backend for each Pod that asks for one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use agent::{
    config::{Config as AgentConfig, DataPlane, DataPlaneArgs},
    gateways::{Access, Gateways},
};
use anyhow::Context as _;
use clap::Args;
use gateway::{
    config::{Cluster, ClusterArgs, Config as GatewayConfig, SourceConfig},
    watch::{
        manifest,
        object::{Event, Kind, Object, ObjectKey},
    },
};
use opentelemetry::KeyValue;
use runtime::{
    args::{Problems, parse},
    drain, shutdown,
    telemetry::{self, Component, Telemetry},
};
use tokio::sync::mpsc;

pub mod pods;
pub mod quickstart;
pub mod welcome;

use pods::Pods;

/// The shared HTTP port where the option is not given.
const HTTP_PORT: u16 = 8080;

/// Where DNS answers where the option is not given.
const DNS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_053);

/// How long the gateway and the sample backends may take to end once the agents have drained.
const LAST_DRAIN: Duration = Duration::from_secs(6);

/// Options as typed.
#[derive(Clone, Debug, Args)]
pub struct StandaloneArgs {
    /// Directory of YAML or JSON files, watched [default: a built-in example with a Service of every type]
    #[arg(long, env = "PORTICO_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Where agents connect: discovery and node status, gRPC
    #[arg(long, env = "PORTICO_DISCOVERY_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:18000")]
    pub discovery_listen: String,
    /// Where load balancers and people ask: node health, `portico get`, gRPC
    #[arg(long, env = "PORTICO_HEALTH_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:18001")]
    pub health_listen: String,
    /// Where the gateway's /livez, /readyz and /metrics answer, HTTP
    #[arg(long, env = "PORTICO_ADMIN_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:18080")]
    pub admin_listen: String,
    /// What a cluster would decide.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Options of every agent.
    #[command(flatten)]
    pub data_plane: DataPlaneArgs,
}

/// Options as used.
#[derive(Clone, Debug)]
pub struct Standalone {
    manifests: Option<PathBuf>,
    discovery_listen: SocketAddr,
    health_listen: SocketAddr,
    admin_listen: SocketAddr,
    cluster: Cluster,
    data_plane: DataPlane,
}

// === impl StandaloneArgs ===

impl StandaloneArgs {
    /// Checks every option; `None` if `problems` got an entry.
    pub fn parse(&self, problems: &mut Problems) -> Option<Standalone> {
        let mut listen = |field, raw: &str| {
            problems.value(field, raw, parse::socket_addr, "an address with port, such as 127.0.0.1:18000")
        };
        let discovery_listen = listen("--discovery-listen", &self.discovery_listen);
        let health_listen = listen("--health-listen", &self.health_listen);
        let admin_listen = listen("--admin-listen", &self.admin_listen);
        let cluster = self.cluster.parse(problems);
        let data_plane = self.data_plane.parse(problems);
        if let Some(directory) = self.manifests.as_ref().filter(|directory| !directory.is_dir()) {
            let message = format!("{directory:?} is not a directory; give one that holds YAML or JSON files");
            problems.push("--manifests", message);
            return None;
        }
        Some(Standalone {
            manifests: self.manifests.clone(),
            discovery_listen: discovery_listen?,
            health_listen: health_listen?,
            admin_listen: admin_listen?,
            cluster: cluster?,
            data_plane: data_plane?,
        })
    }
}

/// Runs everything until a signal, then drains and ends.
///
/// # Errors
/// When a part cannot start, or ends early.
pub async fn run(options: Standalone) -> anyhow::Result<()> {
    run_until(options, shutdown::signal()).await
}

/// Runs everything until `stop` says why to end, then drains and ends.
///
/// # Errors
/// When a part cannot start, or ends early.
pub async fn run_until(options: Standalone, stop: impl Future<Output = &'static str>) -> anyhow::Result<()> {
    let quickstart =
        quickstart::directory(options.manifests.as_deref()).context("cannot write the built-in example")?;
    let directory = quickstart.path().to_owned();
    let telemetry = Telemetry::from_env().context("cannot set up telemetry")?;
    let (agents_drain, agents_watch) = drain::channel();
    let (gateway_drain, gateway_watch) = drain::channel();

    let gateway_telemetry = telemetry.component("portico-control-plane", vec![]).context("cannot set up telemetry")?;
    let config = GatewayConfig {
        source: SourceConfig::Manifests(directory.clone()),
        discovery_listen: options.discovery_listen,
        health_listen: options.health_listen,
        admin_listen: options.admin_listen,
        cluster: options.cluster.clone(),
        replace_kube_proxy: true,
        // Nothing is written: manifests are completed where they are read.
        lease_name: None,
        default_load_balancer: true,
        drain_timeout: options.data_plane.limits.drain_timeout,
        // Gateway and agents are one process.
        identity: gateway::identity::config::Config::default(),
    };
    let gateway = gateway::server::start(config, &gateway_telemetry, gateway_watch.clone()).await.context("gateway")?;
    let (discovery, health) = (gateway.discovery, gateway.health);

    let (batches, inbox) = mpsc::channel(16);
    let (failures, failed) = mpsc::channel(1);
    let rules = options.cluster.rules.clone();
    let source = tokio::spawn(manifest::Source { directory: directory.clone(), rules }.run(batches));
    let nodes = Nodes {
        telemetry,
        data_plane: options.data_plane.clone(),
        discovery: format!("http://{discovery}"),
        drain: agents_watch,
        agents: BTreeMap::new(),
        failures,
    };
    let mut objects = tokio::spawn(follow(inbox, failed, Pods::default(), nodes));
    let greeting = tokio::spawn(welcome::greet(directory, health, http_port(&options.data_plane)));

    let mut gateway = tokio::spawn(gateway.wait());
    let outcome = tokio::select! {
        signal = stop => {
            tracing::info!(signal, "draining");
            Ok(())
        }
        ended = &mut gateway => Err(anyhow::anyhow!("the gateway ended: {ended:?}")),
        ended = &mut objects => Err(match ended {
            Ok(Err(error)) => error,
            other => anyhow::anyhow!("the agents ended: {other:?}"),
        }),
    };
    greeting.abort();
    // Agents first: they need endpoints to finish what is in flight.
    let limit = options.data_plane.limits.drain_timeout + Duration::from_secs(2);
    if shutdown::drain(agents_drain, limit).await == shutdown::Ended::Deadline {
        tracing::warn!("the agents did not finish in time");
    }
    source.abort();
    objects.abort();
    if shutdown::drain(gateway_drain, LAST_DRAIN).await == shutdown::Ended::Deadline {
        tracing::warn!("the gateway did not finish in time");
        gateway.abort();
    }
    // Its ports are free only then, and whoever starts the next one needs them.
    if !gateway.is_finished() {
        let _ = gateway.await;
    }
    let flush = move || gateway_telemetry.shutdown(Duration::from_secs(5));
    if let Ok(Err(error)) = tokio::task::spawn_blocking(flush).await {
        tracing::warn!("telemetry: {error}");
    }
    outcome
}

/// The shared HTTP port: 8080 unless it was set or turned off.
fn http_port(data_plane: &DataPlane) -> Option<NonZeroU16> {
    data_plane.http_port.unwrap_or(NonZeroU16::new(HTTP_PORT))
}

/// Starts and ends backends and agents as Pods and Nodes come and go.
async fn follow(
    mut inbox: mpsc::Receiver<gateway::watch::Batch>,
    mut failures: mpsc::Receiver<anyhow::Error>,
    mut pods: Pods,
    mut nodes: Nodes,
) -> anyhow::Result<()> {
    loop {
        let batch = tokio::select! {
            batch = inbox.recv() => batch.context("the manifests can no longer be read")?,
            Some(failure) = failures.recv() => return Err(failure),
        };
        for event in batch.events {
            nodes.apply(&event);
            pods.apply(event).await;
        }
    }
}

/// Agents by Node.
struct Nodes {
    telemetry: Telemetry,
    data_plane: DataPlane,
    discovery: String,
    drain: drain::Watch,
    /// What ends a single agent, when its Node goes.
    agents: BTreeMap<ObjectKey, Arc<drain::Trigger>>,
    failures: mpsc::Sender<anyhow::Error>,
}

// === impl Nodes ===

impl Nodes {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Reset(Kind::Node, objects) => {
                let keys: Vec<ObjectKey> = objects.iter().map(Object::key).collect();
                self.agents.retain(|key, agent| {
                    let keep = keys.contains(key);
                    if !keep {
                        agent.start();
                    }
                    keep
                });
                keys.iter().for_each(|key| self.start(key));
            }
            Event::Apply(object @ Object::Node(_)) => self.start(&object.key()),
            Event::Delete(key) if key.kind == Kind::Node => {
                if let Some(agent) = self.agents.remove(key) {
                    agent.start();
                }
            }
            Event::Apply(_) | Event::Delete(_) | Event::Reset(..) => {}
        }
    }

    fn start(&mut self, key: &ObjectKey) {
        if self.agents.contains_key(key) {
            return;
        }
        let node = key.name.to_string();
        let config = AgentConfig {
            gateways: Gateways::fixed(vec![self.discovery.clone()], Access::default()),
            gateway_service: None,
            admin_listen: None,
            healthz_listen: None,
            workers: self.data_plane.workers,
            here: agent::apply::compile::Here {
                node: node.clone(),
                node_port_addresses: self.data_plane.node_port_addresses.clone(),
                http_port: http_port(&self.data_plane),
            },
            limits: self.data_plane.limits.clone(),
            access_log: self.data_plane.access_log,
            // All agents answer there, and all know the same: the kernel spreads the questions over them.
            dns: agent::dns::open::Options {
                listen: self.data_plane.dns_listen.clone().unwrap_or_else(|| vec![DNS_LISTEN]),
                ..self.data_plane.dns.clone()
            },
            intercept: agent::intercept::Options::default(),
            hop_port: None,
        };
        let telemetry = self.telemetry.component("portico-agent", vec![KeyValue::new("k8s.node.name", node.clone())]);
        let (stop, watch) = drain::channel();
        let stop = Arc::new(stop);
        let (mut all, guard, own) = (self.drain.clone(), self.drain.guard(), stop.clone());
        let failures = self.failures.clone();
        tokio::spawn(async move {
            let _guard = guard;
            let both = async {
                all.started().await;
                own.start();
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! {
                ended = run_agent(config, telemetry, watch) => ended,
                () = both => Ok(()),
            };
            if let Err(error) = ended {
                // Nobody listens once the process is ending.
                let _ = failures.send(error.context(format!("agent of {node}"))).await;
            }
        });
        self.agents.insert(key.clone(), stop);
    }
}

async fn run_agent(
    config: AgentConfig,
    telemetry: Result<Component, telemetry::Error>,
    drain: drain::Watch,
) -> anyhow::Result<()> {
    let telemetry = telemetry.context("cannot set up telemetry")?;
    let ended = agent::run::run(config, &telemetry, drain).await;
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || telemetry.shutdown(Duration::from_secs(5))).await {
        tracing::warn!("telemetry: {error}");
    }
    Ok(ended?)
}
