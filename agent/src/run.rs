//! Wiring: an agent from its configuration to its end.

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use api::delta::client::Client;
use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use runtime::{admin::Admin, drain, ready::Readiness, telemetry::Component};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    apply::{
        compile::{Compiler, Here},
        control::{Control, Counters, Progress, Rounds},
        programming::Programming,
    },
    config::{ADMIN_PORT, Config},
    dns,
    health::{
        self,
        metrics::Metrics,
        serve::{self, Probes},
    },
    hop,
    intercept::{self, Interception, Sockets, Source, script::Ports},
    listen::open::Listeners,
    report::export::{self, NodeIdentity},
    status::{self, Identity, Subject},
    table::certificate::TlsContext,
    worker::Workers,
};

/// Why an agent could not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A thread cannot be started.
    #[error("cannot start the workers")]
    Workers(#[source] std::io::Error),
    /// The admin port cannot be opened.
    #[error("cannot listen on {address}, set --admin-listen to a free address of this host")]
    Admin {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The port of `/healthz` cannot be opened.
    #[error("cannot listen on {address}, set --healthz-listen to a free address of this host, or to off")]
    Healthz {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The transparent listeners cannot be opened.
    #[error("cannot open transparent listeners, give the agent the capability NET_ADMIN or set --intercept off")]
    Listeners(#[source] std::io::Error),
    /// Packet rules cannot be installed.
    #[error("cannot intercept traffic")]
    Intercept(#[from] intercept::program::Error),
    /// A worker ended before it was told to.
    #[error("a worker of the data plane ended, see the log above")]
    Worker,
}

/// Runs an agent until draining has begun and is over.
///
/// # Errors
/// [`Error`]. Either way nothing of the agent is left running, and its ports are free again.
pub async fn run(config: Config, telemetry: &Component, drain: drain::Watch) -> Result<(), Error> {
    let _guard = drain.guard();
    let mut tasks = JoinSet::new();
    let ended = run_beside(&mut tasks, config, telemetry, drain).await;
    // A task that is only told to stop may hold its port a while longer.
    tasks.shutdown().await;
    ended
}

/// Runs the data plane; what else an agent does is in `tasks`, and goes on until the data plane has drained.
async fn run_beside(
    tasks: &mut JoinSet<Result<(), Error>>,
    config: Config,
    telemetry: &Component,
    drain: drain::Watch,
) -> Result<(), Error> {
    let readiness = Readiness::new();
    let first_commit = readiness.latch("first commit of the gateway applied");
    let identity = Identity { node: config.here.node.clone(), instance: format!("{:016x}", fastrand::u64(..)) };
    let node = NodeIdentity { name: identity.node.clone() };
    let reporting = export::start(telemetry, node, config.access_log).map_err(Error::Workers)?;
    let workers = (0..config.workers).map(|_| reporting.worker()).collect();
    let workers = Workers::start(config.limits.clone(), workers, &identity.node).map_err(Error::Workers)?;
    let dns = (!config.dns.listen.is_empty()).then(|| {
        let meter = telemetry.meter_provider.meter("portico.dns");
        let mailboxes = workers.mailboxes();
        dns::open::start(config.dns.clone(), config.workers, &meter, move |worker, opened| {
            mailboxes.dns(worker, opened)
        })
    });
    let client = Client::new(identity.node.as_str(), env!("CARGO_PKG_VERSION"));
    let (gateways, name) = (config.gateways, identity.node.clone());
    let programming = Programming::default();
    let meter = telemetry.meter_provider.meter("portico.programming");
    let metrics = Metrics::new(&meter);
    let in_force: Rounds = Box::new({
        let (programming, metrics) = (programming.clone(), metrics.clone());
        move |round| {
            programming.updated();
            metrics.programmed(round.began.elapsed(), round.full, &round.triggers, SystemTime::now());
        }
    });
    let ports = open_transparent(config.intercept, &workers)?;
    // Elsewhere no address of a client can be kept.
    let hop_port = config.hop_port.filter(|_| ports.is_some());
    let compiler = compiler(config.here, hop_port, telemetry)?;
    let (queue, rounds) = mpsc::unbounded_channel();
    let (listeners, told, in_force) = match ports {
        // A table is in force when the packet rules are. The queue outlives all who could be told.
        Some(_) => {
            (Listeners::beside_interception(), Box::new(move |round| drop(queue.send(round))) as Rounds, in_force)
        }
        None => (Listeners::default(), in_force, Box::new(drop) as Rounds),
    };
    let beside = (programming.clone(), told);
    let (control, progress, counters) =
        Control::new(gateways.clone(), name, client, compiler, (workers, listeners), beside, first_commit);
    let intercepted = intercept::state::State::default();
    let interception = match ports {
        Some(ports) => {
            let latch = readiness.latch("packet rules installed");
            let installed: Box<dyn FnOnce() + Send> = Box::new(move || latch.release());
            let source = Source { progress: progress.clone(), rounds, in_force, installed: Some(installed) };
            intercepted.observe(&telemetry.meter_provider.meter("portico.intercept"));
            Some(Interception::start(ports, config.intercept.on_exit, source, intercepted.clone()).await?)
        }
        None => None,
    };
    observe(telemetry, progress.clone(), counters);
    health::metrics::observe(&meter, &programming, &progress);

    if let Some(dns) = dns {
        tasks.spawn(async move {
            dns.await;
            Ok(())
        });
    }
    let (port_faults, health_ports) = watch::channel(Vec::new());
    let subject = Subject { progress: progress.clone(), health_ports, drain: drain.clone() };
    let report = status::report_to_all(gateways, identity.clone(), subject);
    tasks.spawn(async move {
        report.await;
        Ok(())
    });
    let probes = Probes { programming, progress: progress.clone(), metrics, drain: drain.clone() };
    if let Some(address) = config.healthz_listen {
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Healthz { address, source })?;
        tracing::info!(%address, "proxy health open");
        let proxy = serve::proxy(listener, probes.clone());
        tasks.spawn(async move {
            proxy.await;
            Ok(())
        });
    }
    tasks.spawn(async move {
        serve::services(probes, port_faults).await;
        Ok(())
    });
    let mut admin = admin(readiness, telemetry, progress.clone());
    if interception.is_some() {
        admin = admin.debug("intercept", move || intercepted.seen().to_string());
    }
    tasks.spawn(listen_admin(config.admin_listen, progress, admin, drain.clone()));
    let control = control.run(drain);
    tokio::pin!(control);
    let workers = loop {
        tokio::select! {
            workers = &mut control => break workers.ok_or(Error::Worker)?,
            Some(ended) = tasks.join_next() => match ended {
                Ok(ended) => ended?,
                Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
                Err(_) => {}
            },
        }
    };
    tracing::info!(node = identity.node, "draining");
    workers.drain().await;
    if let Some(interception) = interception {
        interception.end().await;
    }
    dns::open::close(&config.dns.listen);
    reporting.shutdown();
    tracing::info!(node = identity.node, "drained");
    Ok(())
}

/// The transparent listeners of all workers, if traffic is to be intercepted.
fn open_transparent(options: intercept::Options, workers: &Workers) -> Result<Option<Ports>, Error> {
    if !options.choice.decide_here() {
        return Ok(None);
    }
    let sockets = Sockets::open(workers.count()).map_err(Error::Listeners)?;
    workers.intercept(sockets.listening);
    Ok(Some(sockets.ports))
}

/// What makes tables, with the hop to other nodes if its port is given.
fn compiler(here: Here, hop_port: Option<NonZeroU16>, telemetry: &Component) -> Result<Compiler, Error> {
    let compiler = Compiler::new(here, TlsContext::new()?);
    let Some(port) = hop_port else { return Ok(compiler) };
    let hop = Arc::new(hop::State::new(SystemTime::now()));
    hop::counters::Counters::observe(&hop, &telemetry.meter_provider.meter("portico.hop"));
    Ok(compiler.with_hop(port, hop))
}

/// Opens the admin port: where the configuration says, else at the node's address once that is known.
async fn listen_admin(
    listen: Option<SocketAddr>,
    mut progress: watch::Receiver<Progress>,
    admin: Admin,
    drain: drain::Watch,
) -> Result<(), Error> {
    let address = match listen {
        Some(address) => address,
        None => {
            let known = |progress: &Progress| progress.applied.is_some();
            let Ok(progress) = progress.wait_for(known).await else { return Ok(()) };
            let node = progress.table.location.addresses.first().copied();
            SocketAddr::new(node.unwrap_or_else(|| [127, 0, 0, 1].into()), ADMIN_PORT)
        }
    };
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Admin { address, source })?;
    tracing::info!(%address, "admin port open");
    runtime::admin::serve(listener, admin, drain).await;
    Ok(())
}

fn admin(readiness: Readiness, telemetry: &Component, progress: watch::Receiver<Progress>) -> Admin {
    let listeners = progress.clone();
    Admin::new(readiness, telemetry.registry.clone())
        .debug("table", move || {
            let table = progress.borrow().table.clone();
            let mut frontends: Vec<_> = table.frontends.iter().collect();
            frontends.sort_by_key(|(destination, _)| **destination);
            frontends
                .into_iter()
                .map(|(destination, frontend)| {
                    let name = frontend.target.as_ref().map_or("by name".to_owned(), |target| target.display_name());
                    let backends = frontend.target.as_ref().map_or(0, |target| target.cluster.backends.len());
                    let kind = frontend.kind.label();
                    format!(
                        "{} {} {kind} {name} {backends} endpoints\n",
                        destination.address,
                        destination.transport.as_str()
                    )
                })
                .collect()
        })
        .debug("faults", move || {
            let faults = listeners.borrow().faults.clone();
            faults
                .into_iter()
                .map(|(destination, fault)| format!("{destination:?} {}: {}\n", fault.reason, fault.message))
                .collect()
        })
}

/// Metrics of the control loop. They are read when somebody scrapes.
fn observe(telemetry: &Component, progress: watch::Receiver<Progress>, counters: Arc<Counters>) {
    let meter = telemetry.meter_provider.meter("portico.discovery");
    let seen = progress.clone();
    meter
        .f64_observable_gauge("portico.discovery.state.age")
        .with_description("Seconds since the gateway last confirmed the state in force")
        .with_unit("s")
        .with_callback(move |gauge| {
            let applied = seen.borrow().applied;
            if let Some(age) = applied.and_then(|applied| SystemTime::now().duration_since(applied).ok()) {
                gauge.observe(age.as_secs_f64(), &[]);
            }
        })
        .build();
    let seen = progress.clone();
    meter
        .u64_observable_gauge("portico.discovery.resources")
        .with_description("Resources held and accepted")
        .with_callback(move |gauge| {
            let digests = seen.borrow().digests;
            for kind in api::resource::Kind::ALL {
                gauge.observe(digests.of(kind).count(), &[KeyValue::new("type", kind.label())]);
            }
        })
        .build();
    let seen = progress.clone();
    meter
        .u64_observable_gauge("portico.discovery.connected")
        .with_description("1 while a stream to a gateway is open")
        .with_callback(move |gauge| gauge.observe(u64::from(seen.borrow().connected), &[]))
        .build();
    meter
        .u64_observable_gauge("portico.listeners")
        .with_description("Addresses that are open, and that cannot be opened")
        .with_callback(move |gauge| {
            let progress = progress.borrow();
            gauge.observe(progress.listeners as u64, &[KeyValue::new("state", "open")]);
            gauge.observe(progress.faults.len() as u64, &[KeyValue::new("state", "failed")]);
        })
        .build();
    type Read = fn(&Counters) -> u64;
    let all: [(&str, &str, Read); 3] = [
        ("portico.discovery.received", "Resources received over the stream", |c| c.received.load(Ordering::Relaxed)),
        ("portico.discovery.rejected", "Resources refused", |c| c.rejected.load(Ordering::Relaxed)),
        ("portico.discovery.streams", "Streams opened to a gateway", |c| c.streams.load(Ordering::Relaxed)),
    ];
    for (name, description, read) in all {
        let counters = counters.clone();
        meter
            .u64_observable_counter(name)
            .with_description(description)
            .with_callback(move |counter| counter.observe(read(&counters), &[]))
            .build();
    }
}
