//! Which nodes external load balancers are to send traffic to. What agents report and what the objects of the cluster say
//! is judged, and the verdicts are told to whoever asks.
//!
//! Times in verdicts: `observe_time` is when the agent was last heard, and a verdict that rests on that may be trusted
//! until `expire_time`. Renewals of a lease are not told one by one. A bookmark of a watch, and `unchanged` of a list,
//! vouch for everything that was told before, so that from `freshness.as_of_time` on it may be trusted for as long again.

/// Time, on both clocks.
pub mod moment;
/// What agents say.
pub mod report;
/// What objects say.
pub mod known;
/// What follows from both, for one node.
pub mod verdict;
/// When the fault is ours.
pub mod outage;
/// All verdicts.
pub mod board;
/// From facts to boards.
pub mod judge;
/// From boards to answers.
pub mod service;
#[cfg(test)]
pub(crate) mod fixture;

use std::{sync::Arc, time::Duration};

use api::proto::{
    health::node_health_service_server::NodeHealthServiceServer,
    node::node_status_service_server::NodeStatusServiceServer,
};
use opentelemetry::{KeyValue, metrics::Meter};
use runtime::drain;

use crate::snapshot::store::Store;
use judge::{Boards, Judge};
use report::{Reports, service::NodeStatuses};
use service::NodeHealths;

/// How health is judged.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a node is trusted after its agent was last heard.
    pub lease: Duration,
    /// This process, in answers.
    pub replica_id: Arc<str>,
}

/// Reports, verdicts, and the services around them. Clones share them.
#[derive(Clone, Debug)]
pub struct Health {
    /// What agents report.
    pub reports: Arc<Reports>,
    /// The verdicts.
    pub boards: Boards,
    replica_id: Arc<str>,
    drain: drain::Watch,
}

// === impl Health ===

impl Health {
    /// Wires the parts. Nothing is judged before [`Judge::run`] runs, which it must for as long as the services do.
    pub fn new(config: Config, store: Arc<Store>, drain: drain::Watch) -> (Self, Judge) {
        let reports = Arc::new(Reports::new(config.lease));
        let (judge, boards) = Judge::new(store, reports.clone());
        (Self { reports, boards, replica_id: config.replica_id, drain }, judge)
    }

    /// What agents report to.
    pub fn node_status(&self) -> NodeStatusServiceServer<NodeStatuses> {
        NodeStatusServiceServer::new(NodeStatuses::new(self.reports.clone(), self.drain.clone()))
    }

    /// What load balancers ask.
    pub fn node_health(&self) -> NodeHealthServiceServer<NodeHealths> {
        let healths = NodeHealths::new(self.boards.clone(), self.replica_id.clone(), self.drain.clone());
        NodeHealthServiceServer::new(healths)
    }

    /// Shows in metrics how many nodes are in each state.
    pub fn observe(&self, meter: &Meter) {
        let boards = self.boards.clone();
        meter
            .u64_observable_gauge("portico.health.nodes")
            .with_description("Nodes by verdict")
            .with_callback(move |observer| {
                let Some(board) = boards.borrow().clone() else { return };
                for (state, nodes) in judge::count(&board) {
                    observer.observe(nodes, &[KeyValue::new("state", state.label())]);
                }
            })
            .build();
    }
}
