//! All parts put together: ports, tasks, and how they end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use api::{
    proto::{
        FILE_DESCRIPTOR_SET, discovery::discovery_service_server as discovery_service,
        health::node_health_service_server as health_service, inspect::inspect_service_server as inspect_service,
        node::node_status_service_server as node_service,
    },
    resource::settings::Settings,
};
use opentelemetry::metrics::MeterProvider as _;
use runtime::{
    admin::{self, Admin},
    drain,
    ready::Readiness,
    telemetry::Component,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch as channel},
    task::JoinSet,
};
use tonic::transport::server::{Router, TcpIncoming};
use tonic_reflection::server as reflection;

mod discovery;

use crate::{
    catalog::Catalog,
    config::{Config, SourceConfig},
    control::{Addresses, Control},
    grpc_health::GrpcHealth,
    health::{self, Health, report::Reports},
    hop,
    identity::roster::Roster,
    inspect::{Inspect, Sources},
    ipam::load_balancer::{pool::Pool, request::Classes},
    metrics::{self, Metrics},
    model::{
        endpoint::Reach,
        service::Policy,
        world::{self, Ownership},
    },
    snapshot::store::Store,
    status::{
        election::{Election, Leadership},
        events::Events,
        lease::Timing,
        writer::Writer,
    },
    stream::{
        Discovery,
        nodes::{self, Nodes},
    },
    watch::{self, Batch, Source, kube, manifest},
};

/// Batches that may wait for the control loop. A source that is faster waits, which costs it nothing.
const BATCHES: usize = 16;
/// How often a silent connection is asked for a sign of life, and how long it has for the answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Why a gateway cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("{option} {address}: cannot listen; give an address of this machine and a port that is free")]
    Listen {
        /// The option that names it.
        option: &'static str,
        /// As given.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The source of objects cannot be read.
    #[error(transparent)]
    Source(#[from] watch::Error),
    /// A server failed.
    #[error("the {name} server failed")]
    Serve {
        /// Which one.
        name: &'static str,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A part that must run as long as the gateway does has ended.
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

/// A gateway that is running.
#[derive(Debug)]
pub struct Running {
    /// Where agents connect.
    pub discovery: SocketAddr,
    /// Where load balancers and people ask.
    pub health: SocketAddr,
    /// Where the admin port is.
    pub admin: SocketAddr,
    /// Complete once the sources were read and everything is served.
    pub readiness: Readiness,
    tasks: JoinSet<Ended>,
    drain: drain::Watch,
}

/// Name of a task that ended, and how.
type Ended = (&'static str, Result<(), Error>);

/// Starts a gateway. All ports are open when this returns; streams wait until the sources were read once.
///
/// # Errors
/// [`Error::Listen`] for a port that cannot be had. What fails later is told by [`Running::wait`].
pub async fn start(config: Config, telemetry: &Component, drain: drain::Watch) -> Result<Running, Error> {
    let discovery = listen("--discovery-listen", config.discovery_listen).await?;
    let asking = listen("--health-listen", config.health_listen).await?;
    let admin = listen("--admin-listen", config.admin_listen).await?;
    let local = |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);

    let readiness = Readiness::new();
    let (store, nodes) = (Arc::new(Store::new()), Arc::new(Nodes::default()));
    let meter = telemetry.meter_provider.meter("portico.control_plane");
    let metrics = Metrics::new(&meter, &store, &nodes);
    let listed = readiness.latch("sources listed");
    let (control, catalog) = Control::new(model_config(&config), store.clone(), metrics, listed);
    let (batches, received) = mpsc::channel(BATCHES);
    let source = source(&config).await?;
    let mut door = discovery::Door::new(config.identity.clone(), source.client(), &meter, &readiness);
    let replica_id: Arc<str> = format!("{:016x}", process_seed()).into();
    let (control, hop_keys) = keeping_hop_keys(&config, source.client(), control);
    let lease = config.cluster.node_lease;
    let judged = health::Config { lease, replica_id: replica_id.clone() };
    let (health, judge) = Health::new(judged, store.clone(), drain.clone());
    health.observe(&meter);
    let (control, writing) = match &source {
        Source::Manifest(_) => (control, None),
        Source::Kube(cluster) => {
            let (control, writing) =
                writing(&config, cluster, control, (catalog.clone(), health.reports.clone()), &replica_id);
            metrics::observe_leadership(&meter, writing.leadership.clone());
            (control, Some(writing))
        }
    };

    let mut running = Running {
        discovery: local(&discovery, config.discovery_listen),
        health: local(&asking, config.health_listen),
        admin: local(&admin, config.admin_listen),
        readiness: readiness.clone(),
        tasks: JoinSet::new(),
        drain: drain.clone(),
    };
    let origin = source.clone();
    running.read(source, door.roster(), batches);
    if let Some(certificates) = door.certificates() {
        running.until_drained("keeper of certificates", async move {
            certificates.await;
            Ok(())
        });
    }
    if let Some(keeper) = hop_keys {
        running.until_drained("keeper of hop keys", async move {
            keeper.await;
            Ok(())
        });
    }
    running.until_drained("control loop", async move {
        control.run(received).await;
        Ok(())
    });
    running.until_drained("judge of nodes", async move {
        judge.run().await;
        Ok(())
    });

    if let Some(writing) = writing {
        running.write(writing);
    }
    let sources = Sources { store: store.clone(), nodes: nodes.clone(), catalog, health: health.clone() };
    let admin_page = admin_page(readiness, telemetry, &sources);
    let router = asking_router(sources, &drain);
    running.serve("health server", |mut drain| async move {
        let incoming = TcpIncoming::from(asking).with_nodelay(Some(true));
        router.serve_with_incoming_shutdown(incoming, async move { drain.started().await }).await
    });
    running.serve("discovery server", |mut drain| async move {
        let draining = drain.clone();
        let uid = async {
            // Connections wait meanwhile: an agent must know whose state it is sent.
            let cluster_uid = origin.cluster_uid().await.into();
            (Discovery { store, nodes, cluster_uid, replica_id, drain: draining }, door.opened().await)
        };
        let (service, door) = tokio::select! {
            ready = uid => ready,
            () = drain.started() => return Ok(()),
        };
        door.serve(discovery, service, health.node_status(), drain).await
    });
    let watch = drain.clone();
    running.tasks.spawn(async move {
        admin::serve(admin, admin_page, watch).await;
        ("admin server", Ok(()))
    });
    Ok(running)
}

/// What writes into a cluster.
struct Writing {
    leadership: Leadership,
    /// `None` if there are no rivals.
    election: Option<Election>,
    writer: Writer,
    events: Events,
}

/// The control loop with addresses to assign, and what writes them. Nothing is written before this replica leads.
fn writing(
    config: &Config,
    cluster: &kube::Source,
    control: Control,
    (catalog, reports): (channel::Receiver<Catalog>, Arc<Reports>),
    replica_id: &str,
) -> (Control, Writing) {
    let client = cluster.writing();
    // The name of the Pod is for people; the rest makes sure that a restart is not taken for the same replica.
    let instance = std::env::var("POD_NAME").unwrap_or_else(|_| "gateway".to_owned());
    let identity = format!("{instance}_{replica_id}");
    let (election, leadership) = match &config.lease_name {
        None => (None, Leadership::always()),
        Some(name) => {
            let namespace = std::env::var("POD_NAMESPACE").unwrap_or_else(|_| client.default_namespace().to_owned());
            let (election, leadership) = Election::new(client.clone(), &namespace, name, &identity, Timing::DEFAULT);
            (Some(election), leadership)
        }
    };
    let classes = Classes { named: Some(crate::LOAD_BALANCER_CLASS.into()), unnamed: config.default_load_balancer };
    let pool = config.cluster.load_balancer_pool.as_ref();
    let pool = pool.map(|networks| Pool::of_networks(crate::DEFAULT_POOL, networks));
    let (addresses, desired) = Addresses::new(classes.clone(), pool, leadership.clone());
    let writer = Writer::new(client.clone(), classes, leadership.clone(), desired);
    let events = Events::new(client, &identity, leadership.clone(), catalog, reports);
    (control.assigning(addresses), Writing { leadership, election, writer, events })
}

/// The control loop with the keys of the hop between agents to publish, and what keeps them. Where agents are not known there
/// are none: whoever asked would be told them.
fn keeping_hop_keys(
    config: &Config,
    client: Option<::kube::Client>,
    control: Control,
) -> (Control, Option<impl Future<Output = ()> + use<>>) {
    let (Some(account), Some(client)) = (&config.identity.account, client) else { return (control, None) };
    let (sender, keys) = tokio::sync::watch::channel(hop::Known::default());
    let keeper = hop::keeper::Keeper::new(client, &account.namespace);
    (control.with_hop_keys(keys), Some(keeper.run(sender)))
}

fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .tcp_nodelay(true)
}

/// Readiness, metrics, and what is on people's minds when something is odd.
fn admin_page(readiness: Readiness, telemetry: &Component, sources: &Sources) -> Admin {
    let (catalog, nodes) = (sources.catalog.clone(), sources.nodes.clone());
    let problems = move || {
        let catalog = catalog.borrow().clone();
        let of_source = catalog.source_problems.iter().map(|problem| format!("{problem}\n"));
        let of_objects = catalog
            .problems
            .iter()
            .flat_map(|(object, problems)| problems.iter().map(move |problem| format!("{object}: {problem}\n")));
        of_source.chain(of_objects).collect()
    };
    let streams = move || {
        let line = |(node, stream): (String, nodes::Connected)| {
            let state = if stream.open { "connected" } else { "gone" };
            let (peer, revision, refused) = (&stream.peer, stream.acknowledged, stream.rejections.len());
            format!("{node} {state} peer={peer} revision={revision} refused={refused} began={:?}\n", stream.resync)
        };
        nodes.list().into_iter().map(line).collect()
    };
    Admin::new(readiness, telemetry.registry.clone()).debug("problems", problems).debug("streams", streams)
}

/// What load balancers and people ask.
fn asking_router(sources: Sources, drain: &drain::Watch) -> Router {
    // Clients find out by themselves what can be asked, in the current form and in the one that older tools know.
    let reflection = || reflection::Builder::configure().register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
    let services = [
        health_service::SERVICE_NAME,
        inspect_service::SERVICE_NAME,
        discovery_service::SERVICE_NAME,
        node_service::SERVICE_NAME,
    ];
    let mut server = grpc_server();
    let router = server
        .add_service(sources.health.node_health())
        .add_service(GrpcHealth::new(services, &sources.store, drain.clone()).server())
        .add_service(Inspect::new(sources, drain.clone()).server());
    let router = match reflection().build_v1() {
        Ok(service) => router.add_service(service),
        Err(error) => unreachable!("our own descriptors are complete: {error}"),
    };
    match reflection().build_v1alpha() {
        Ok(service) => router.add_service(service),
        Err(error) => unreachable!("our own descriptors are complete: {error}"),
    }
}

async fn listen(option: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { option, address, source })
}

fn model_config(config: &Config) -> world::Config {
    let rules = &config.cluster.rules;
    let manifests = matches!(config.source, SourceConfig::Manifests(_));
    world::Config {
        settings: Settings {
            cluster_domain: config.cluster.domain.clone(),
            // A real cluster says its ranges by ServiceCIDR objects (S1.4).
            service_cidrs: if manifests { rules.service_cidrs.clone() } else { vec![] },
            node_ports: rules.node_ports.ends(),
        },
        ownership: if manifests || config.replace_kube_proxy { Ownership::AllButForeign } else { Ownership::Labelled },
        reach: if manifests { Reach::Machine } else { Reach::Cluster },
        policy: Policy { external_ips: config.cluster.external_ips.clone() },
    }
}

async fn source(config: &Config) -> Result<Source, watch::Error> {
    Ok(match &config.source {
        SourceConfig::Manifests(directory) => {
            Source::Manifest(manifest::Source { directory: directory.clone(), rules: config.cluster.rules.clone() })
        }
        SourceConfig::Kubernetes(kubeconfig) => Source::Kube(kube::Source::connect(kubeconfig.as_deref()).await?),
    })
}

/// Differs for every process, which is all it is for.
fn process_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

// === impl Running ===

impl Running {
    /// Completes when everything has ended after a drain, and every port is free again.
    ///
    /// # Errors
    /// What ended although nobody asked for it. Everything else is stopped then.
    pub async fn wait(mut self) -> Result<(), Error> {
        let ended = self.ended().await;
        // The admin port answers to the very end. A task that is only told to stop may hold its port a while longer.
        self.tasks.shutdown().await;
        ended
    }

    async fn ended(&mut self) -> Result<(), Error> {
        while self.tasks.len() > 1 || !self.drain.is_draining() {
            let (name, result) = match self.tasks.join_next().await {
                Some(Ok(ended)) => ended,
                Some(Err(failed)) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
                Some(Err(_)) | None => break,
            };
            result?;
            if !self.drain.is_draining() {
                return Err(Error::Ended(name));
            }
        }
        Ok(())
    }

    /// Reads the source into `batches`, past the roster of agents if there is one.
    fn read(&mut self, source: Source, roster: Option<Arc<Roster>>, batches: mpsc::Sender<Batch>) {
        let batches = match roster {
            Some(roster) => {
                let (noted, inbox) = mpsc::channel(1);
                self.until_drained("roster of agents", async move {
                    roster.follow(inbox, batches).await;
                    Ok(())
                });
                noted
            }
            None => batches,
        };
        self.until_drained("source", async move { source.run(batches).await.map_err(Error::from) });
    }

    /// Runs a part that is stopped when the drain starts.
    fn until_drained(&mut self, name: &'static str, part: impl Future<Output = Result<(), Error>> + Send + 'static) {
        let mut drain = self.drain.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = drain.started() => (name, Ok(())),
                result = part => (name, result),
            }
        });
    }

    /// Runs what writes into a cluster. The Lease is given back once nothing is written any more.
    fn write(&mut self, writing: Writing) {
        let Writing { election, writer, events, .. } = writing;
        self.until_drained("status writer", async move {
            writer.run().await;
            Ok(())
        });
        self.until_drained("writer of Events", async move {
            events.run().await;
            Ok(())
        });
        if let Some(election) = election {
            let drain = self.drain.clone();
            self.tasks.spawn(async move {
                election.run(drain).await;
                ("leader election", Ok(()))
            });
        }
    }

    /// Runs a server, which finishes its streams when the drain starts.
    fn serve<Serving>(&mut self, name: &'static str, serve: impl FnOnce(drain::Watch) -> Serving)
    where
        Serving: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        let (guard, serving) = (self.drain.guard(), serve(self.drain.clone()));
        self.tasks.spawn(async move {
            let served = serving.await;
            drop(guard);
            (name, served.map_err(|source| Error::Serve { name, source }))
        });
    }
}
