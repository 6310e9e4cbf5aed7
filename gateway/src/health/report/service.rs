//! The streams that reports come in on.

use std::sync::Arc;

use api::proto::node::{
    ReportNodeStatusRequest, ReportNodeStatusResponse, node_status_service_server::NodeStatusService,
};
use runtime::drain;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Reporter, Reports};
use crate::{
    health::moment::Moment,
    identity::peer::{Lease, Peer},
};

/// Answers that may wait for an agent to read them.
const OUTBOX: usize = 4;

/// The service that agents report to.
#[derive(Clone, Debug)]
pub struct NodeStatuses {
    reports: Arc<Reports>,
    drain: drain::Watch,
}

/// One stream.
struct Stream {
    reports: Arc<Reports>,
    drain: drain::Watch,
    requests: Streaming<ReportNodeStatusRequest>,
    outbox: mpsc::Sender<Result<ReportNodeStatusResponse, Status>>,
    peer: Peer,
    lease: Lease,
}

// === impl NodeStatuses ===

impl NodeStatuses {
    /// Notes what comes in `reports`, until the drain starts.
    pub fn new(reports: Arc<Reports>, drain: drain::Watch) -> Self {
        Self { reports, drain }
    }
}

#[tonic::async_trait]
impl NodeStatusService for NodeStatuses {
    type ReportNodeStatusStream = ReceiverStream<Result<ReportNodeStatusResponse, Status>>;

    async fn report_node_status(
        &self,
        request: Request<Streaming<ReportNodeStatusRequest>>,
    ) -> Result<Response<Self::ReportNodeStatusStream>, Status> {
        let (outbox, answers) = mpsc::channel(OUTBOX);
        let peer = Peer::of(request.extensions())?;
        let stream = Stream {
            reports: self.reports.clone(),
            drain: self.drain.clone(),
            requests: request.into_inner(),
            outbox,
            lease: peer.lease(),
            peer,
        };
        tokio::spawn(stream.run());
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

// === impl Stream ===

impl Stream {
    async fn run(mut self) {
        if let Err(status) = self.serve().await {
            // The connection may be gone already; then nobody is left to be told.
            let _ = self.outbox.send(Err(status)).await;
        }
    }

    /// Serves until the agent closes the stream, or it has to be closed with a status.
    async fn serve(&mut self) -> Result<(), Status> {
        let Some(first) = self.receive(None).await? else { return Ok(()) };
        let sequence = first.sequence;
        self.peer.admit(first.status.as_ref().map_or("", |status| &status.node_name))?;
        let reporter = self.reports.open(first, Moment::now())?;
        tracing::debug!(node = reporter.node(), "agent reports");
        self.answer(sequence).await;
        while let Some(request) = self.receive(Some(&reporter)).await? {
            let sequence = request.sequence;
            reporter.report(request, Moment::now())?;
            self.answer(sequence).await;
        }
        Ok(())
    }

    /// The next report; `None` when the agent has closed the stream, or lost it.
    async fn receive(&mut self, reporter: Option<&Reporter>) -> Result<Option<ReportNodeStatusRequest>, Status> {
        let replaced = async {
            match reporter {
                Some(reporter) => reporter.replaced().await,
                None => std::future::pending().await,
            }
        };
        // Nobody has been told to wait this long; the connection is dead, or the agent is.
        let silence = 3 * self.reports.term();
        tokio::select! {
            request = self.requests.message() => Ok(request.unwrap_or_default()),
            status = replaced => Err(status),
            ending = self.lease.ended() => Err(ending.status()),
            () = self.drain.started() => Err(Status::unavailable("this replica is shutting down")),
            () = self.outbox.closed() => Ok(None),
            () = tokio::time::sleep(silence) => Err(Status::deadline_exceeded(format!("no report for {silence:?}"))),
        }
    }

    async fn answer(&self, sequence: u64) {
        let answer = ReportNodeStatusResponse {
            sequence,
            report_interval: prost_types::Duration::try_from(self.reports.interval()).ok(),
            lease_duration: prost_types::Duration::try_from(self.reports.term()).ok(),
        };
        // An agent that is gone is noticed where requests are awaited.
        let _ = self.outbox.send(Ok(answer)).await;
    }
}
