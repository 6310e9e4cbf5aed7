//! What the agent says of itself: one status stream to every replica of the gateway, so that any of them can answer
//! load balancers. A stream that ends is opened again; the lease bridges the gap.

use std::{
    collections::HashMap,
    convert::Infallible,
    time::{Duration, SystemTime},
};

use api::{
    delta::version::Digests,
    proto::node::{
        NodeServingState, NodeStatus, ReportNodeStatusRequest, ServiceFault,
        node_status_service_client::NodeStatusServiceClient,
    },
    resource::Kind,
};
use runtime::{backoff::Backoff, drain};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    apply::control::{Progress, is_refusal},
    gateways::{self, Access, Gateways},
    health::serve::{PortFault, UNHEALTHY_PORT},
    table::FrontendKind,
};

/// Pace until the gateway sets another one.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Who reports.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the node.
    pub node: String,
    /// New at each start of the agent.
    pub instance: String,
}

/// What there is to report. Clones see the same.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What the control loop has brought about.
    pub progress: watch::Receiver<Progress>,
    /// The health-check node ports that cannot be opened.
    pub health_ports: watch::Receiver<Vec<PortFault>>,
    /// Whether the agent is ending.
    pub drain: drain::Watch,
}

/// Facts that the verdict on this agent depends on.
#[derive(Clone, Debug, PartialEq)]
struct Facts {
    state: NodeServingState,
    since: SystemTime,
    digests: Digests,
    listeners: usize,
    faults: Vec<ServiceFault>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] gateways::Error),
    #[error("the gateway ended the stream: {}: {}", .0.code(), .0.message())]
    Status(#[from] Box<tonic::Status>),
    #[error("the gateway closed the stream")]
    Closed,
}

/// Reports to every replica there is, until it is dropped.
pub async fn report_to_all(gateways: Gateways, identity: Identity, subject: Subject) {
    let mut replicas = gateways.replicas.clone();
    let mut reports = HashMap::<String, AbortOnDropHandle<()>>::new();
    loop {
        let urls = replicas.borrow_and_update().clone();
        reports.retain(|url, _| urls.contains(url));
        for url in urls {
            reports.entry(url.clone()).or_insert_with(|| {
                let report = report(url, gateways.access.clone(), identity.clone(), subject.clone());
                AbortOnDropHandle::new(tokio::spawn(report))
            });
        }
        if replicas.changed().await.is_err() {
            // They stay the same from now on.
            std::future::pending::<()>().await;
        }
    }
}

/// Reports to one replica.
async fn report(gateway: String, access: Access, identity: Identity, mut subject: Subject) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10), Duration::from_secs(10));
    let mut said = String::new();
    loop {
        let Err(ended) = stream(&gateway, &access, &identity, &mut subject, &mut backoff).await;
        // The discovery stream tells most of this of its own replica; of the others only the log here does.
        let reason = gateways::line(&ended).to_string();
        if reason != said && matches!(&ended, Ended::Status(status) if is_refusal(status.code())) {
            tracing::warn!(gateway, "the node's status is refused: {reason}; trying again");
            said = reason;
        } else {
            tracing::debug!(gateway, "the node's status is not reported: {reason}; trying again");
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Reports over one stream, until that ends.
async fn stream(
    gateway: &str,
    access: &Access,
    identity: &Identity,
    subject: &mut Subject,
    backoff: &mut Backoff,
) -> Result<Infallible, Ended> {
    let link = access.connect(gateway).await?;
    let (outbox, requests) = mpsc::channel(4);
    let mut sequence = 1;
    let mut said = subject.facts(None);
    outbox.send(message(sequence, Some(&said), identity)).await.map_err(|_| Ended::Closed)?;
    let mut service = NodeStatusServiceClient::new(link.channel.clone());
    let opened = service.report_node_status(link.request(ReceiverStream::new(requests))).await;
    let mut inbox = opened.map_err(Box::new)?.into_inner();
    let mut interval = REPORT_INTERVAL;
    let mut renew = Instant::now() + interval;
    let mut changes = true;
    loop {
        let was_draining = subject.drain.is_draining();
        tokio::select! {
            response = inbox.message() => {
                let response = response.map_err(Box::new)?.ok_or(Ended::Closed)?;
                backoff.healthy();
                if let Some(told) = response.report_interval.and_then(|told| Duration::try_from(told).ok()) {
                    interval = told.max(Duration::from_millis(100));
                    renew = renew.min(Instant::now() + interval);
                }
                continue;
            }
            // Nothing changes any more once the control loop has ended, which is when draining begins: that is to be said,
            // and the lease to be renewed until the last connection has ended.
            changed = subject.progress.changed(), if changes => changes = changed.is_ok(),
            // Health-check ports are open, and tried again, until the agent ends.
            Ok(()) = subject.health_ports.changed() => {}
            () = subject.drain.started(), if !was_draining => {}
            () = tokio::time::sleep_until(renew) => {}
        }
        let now = subject.facts(Some(&said));
        sequence += 1;
        // Whatever changed is said at once; otherwise the lease is renewed, which costs a few bytes.
        let status = (now != said || sequence % 12 == 0).then_some(&now);
        outbox.send(message(sequence, status, identity)).await.map_err(|_| Ended::Closed)?;
        said = now;
        renew = Instant::now() + interval;
    }
}

// === impl Subject ===

impl Subject {
    fn facts(&mut self, before: Option<&Facts>) -> Facts {
        let progress = self.progress.borrow_and_update();
        let state = match (self.drain.is_draining(), progress.applied) {
            (true, _) => NodeServingState::Draining,
            (false, None) => NodeServingState::Starting,
            (false, Some(_)) => NodeServingState::Serving,
        };
        let since = before.filter(|before| before.state == state).map_or_else(SystemTime::now, |before| before.since);
        let node_ports = progress.faults.iter().filter(|(_, fault)| fault.kind == FrontendKind::NodePort);
        let node_ports = node_ports.filter_map(|(destination, fault)| {
            Some(ServiceFault {
                service: fault.service.as_ref()?.to_string(),
                node_port: destination.address.port().into(),
                reason: fault.reason.to_owned(),
                fault_since: Some(fault.since.into()),
                message: fault.message.clone(),
            })
        });
        let health_ports = self.health_ports.borrow_and_update();
        let health_ports = health_ports.iter().map(|fault| ServiceFault {
            service: fault.service.to_string(),
            node_port: fault.address.port().into(),
            reason: UNHEALTHY_PORT.to_owned(),
            fault_since: Some(fault.since.into()),
            message: fault.message.clone(),
        });
        let faults = node_ports.chain(health_ports).collect();
        Facts { state, since, digests: progress.digests, listeners: progress.listeners, faults }
    }
}

fn message(sequence: u64, facts: Option<&Facts>, identity: &Identity) -> ReportNodeStatusRequest {
    let status = facts.map(|facts| NodeStatus {
        node_name: identity.node.clone(),
        instance_id: identity.instance.clone(),
        state: facts.state as i32,
        reason: String::new(),
        state_since: Some(facts.since.into()),
        applied_position: None,
        held: facts.digests.to_wire(Kind::ALL),
        faults: facts.faults.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        open_listeners: facts.listeners as u32,
    });
    ReportNodeStatusRequest { sequence, status }
}
