//! The discovery port: who may come in, and by which certificate they know that it is us.

use std::sync::Arc;

use api::proto::node::node_status_service_server::{NodeStatusService, NodeStatusServiceServer};
use kube::Client;
use opentelemetry::metrics::Meter;
use runtime::{
    drain,
    ready::{Latch, Readiness},
};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;

use super::grpc_server;
use crate::{
    identity::{
        accept,
        certificate::{Material, Origin},
        config::Config,
        gate::Gate,
        layer::GateLayer,
        refusal::Refusals,
        roster::Roster,
        tls,
    },
    stream::{Discovery, codec::DiscoveryServer},
};

/// Connections that may wait to be served.
const READY: usize = 64;

/// The door of the discovery port, before it is opened.
pub struct Door {
    gate: Gate,
    refusals: Arc<Refusals>,
    roster: Option<Arc<Roster>>,
    /// Where certificates come from, until somebody looks there.
    origin: Option<(Origin, watch::Sender<Option<Material>>)>,
    material: Option<(watch::Receiver<Option<Material>>, Latch)>,
    client: Option<Client>,
    meter: Meter,
}

/// The door once there is a certificate to show.
pub struct Open {
    gate: Gate,
    refusals: Arc<Refusals>,
    tls: Option<Arc<ServerConfig>>,
}

// === impl Door ===

impl Door {
    /// A door as `config` says. `client` is that of the cluster, if there is one.
    pub fn new(config: Config, client: Option<Client>, meter: &Meter, readiness: &Readiness) -> Self {
        let refusals = Arc::<Refusals>::default();
        refusals.observe(meter);
        let (gate, roster) = match (config.account, client.clone()) {
            (Some(account), Some(client)) => {
                let roster = Arc::new(Roster::new(account.clone()));
                (Gate::tokens(account, client, roster.clone(), refusals.clone()), Some(roster))
            }
            _ => (Gate::open(refusals.clone()), None),
        };
        if client.is_some() && roster.is_none() {
            tracing::warn!(
                "--insecure-discovery: whoever reaches the discovery port reads every certificate and key that Services \
                 name, and can speak for any node"
            );
        }
        let (origin, material) = match config.origin {
            Some(origin) => {
                let (sender, receiver) = watch::channel(None);
                let latch = readiness.latch("certificate of the discovery port");
                (Some((origin, sender)), Some((receiver, latch)))
            }
            None => (None, None),
        };
        Self { gate, refusals, roster, origin, material, client, meter: meter.clone() }
    }

    /// What has to see all events of the source, if agents show tokens.
    pub fn roster(&self) -> Option<Arc<Roster>> {
        self.roster.clone()
    }

    /// What looks for certificates, if any are shown; it has to run as long as the port is open.
    pub fn certificates(&mut self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (origin, current) = self.origin.take()?;
        Some(origin.run(self.client.clone(), current))
    }

    /// Waits for a certificate, if one is to be shown.
    pub async fn opened(self) -> Open {
        let Self { gate, refusals, material, meter, .. } = self;
        let tls = match material {
            Some((mut material, latch)) => {
                let current = tls::first(&mut material).await;
                current.observe(&meter);
                latch.release();
                let config = current.server_config();
                tokio::spawn(tls::follow(current, material));
                match config {
                    Ok(config) => Some(config),
                    Err(error) => unreachable!("TLS 1.3 is part of the provider: {error}"),
                }
            }
            None => None,
        };
        Open { gate, refusals, tls }
    }
}

// === impl Open ===

impl Open {
    /// Serves until the drain starts, and then until all streams have ended.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn serve<S: NodeStatusService>(
        self,
        listener: TcpListener,
        discovery: Discovery,
        node_status: NodeStatusServiceServer<S>,
        mut drain: drain::Watch,
    ) -> Result<(), tonic::transport::Error> {
        let (ready, links) = mpsc::channel(READY);
        let (accepting, mut stopped) = (accept::accept(listener, self.tls, self.refusals, ready), drain.clone());
        // The listener is gone with the first word of a drain, so that agents go elsewhere at once.
        let accepting = async move {
            tokio::select! {
                () = accepting => {}
                () = stopped.started() => {}
            }
        };
        let serving = grpc_server()
            .layer(GateLayer(self.gate))
            .add_service(DiscoveryServer::new(discovery))
            .add_service(node_status)
            .serve_with_incoming_shutdown(ReceiverStream::new(links), async move { drain.started().await });
        tokio::join!(serving, accepting).0
    }
}
