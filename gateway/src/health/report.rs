//! What agents report of themselves. Each report is a lease on its node: it says what the node is like, and for how long
//! that may be believed without another word.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::proto::node::{NodeStatus, ReportNodeStatusRequest};
use tokio::sync::{Notify, watch};
use tonic::Status;

use super::moment::{Heard, Moment};

pub mod service;

/// Instances of one node that are remembered as replaced, so that they cannot come back.
const REPLACED: usize = 8;

/// Nodes that may report. Twice what Kubernetes supports; the bound is there for those who send names at random.
const MAX_NODES: usize = 10_000;

/// The last report of every node.
#[derive(Debug)]
pub struct Reports {
    term: Duration,
    nodes: Mutex<BTreeMap<Arc<str>, Report>>,
    changes: watch::Sender<u64>,
    news: watch::Sender<u64>,
}

/// The last report of one node.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the agent said last.
    pub status: Arc<NodeStatus>,
    /// When it was last heard, with or without a status. Another status has another one.
    pub heard: Arc<Heard>,
    /// Whether its stream is open.
    pub reporting: bool,
    stream: Arc<Notify>,
    /// Instances that newer ones have replaced, oldest first.
    replaced: Vec<String>,
}

/// One agent's stream, from its first report on. Dropping it says that the stream ended, which ends no lease.
#[derive(Debug)]
pub struct Reporter {
    reports: Arc<Reports>,
    node: Arc<str>,
    instance: String,
    /// Identity of the stream; notified when a newer one takes its place.
    stream: Arc<Notify>,
}

// === impl Reports ===

impl Reports {
    /// Nothing was reported yet; leases last for `term`.
    pub fn new(term: Duration) -> Self {
        Self { term, nodes: Mutex::default(), changes: watch::Sender::new(0), news: watch::Sender::new(0) }
    }

    /// How long a node is believed without another word.
    pub fn term(&self) -> Duration {
        self.term
    }

    /// How often agents are to report: two reports may be lost before a lease ends.
    pub fn interval(&self) -> Duration {
        self.term / 3
    }

    /// The last report of every node.
    pub fn list(&self) -> BTreeMap<Arc<str>, Report> {
        self.lock().clone()
    }

    /// A number that grows with every change of what was reported.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A number that grows when a verdict may differ before its time: another state or fault, or a lease begun anew.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Forgets nodes that are not to be kept.
    pub fn retain(&self, mut keep: impl FnMut(&str, &Report) -> bool) {
        let mut nodes = self.lock();
        let before = nodes.len();
        nodes.retain(|node, report| keep(node, report));
        let forgot = nodes.len() < before;
        drop(nodes);
        if forgot {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Takes the first report of a stream, which must hold a status.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a report that names nobody, `ABORTED` from an instance that a newer one has replaced,
    /// `RESOURCE_EXHAUSTED` beyond any number of nodes that a cluster has.
    pub fn open(self: &Arc<Self>, first: ReportNodeStatusRequest, now: Moment) -> Result<Reporter, Status> {
        let status = first
            .status
            .ok_or_else(|| Status::invalid_argument("status: the first report of a stream must hold it"))?;
        for (field, value) in [("node_name", &status.node_name), ("instance_id", &status.instance_id)] {
            if value.is_empty() {
                return Err(Status::invalid_argument(format!("status.{field}: is empty")));
            }
        }
        let node: Arc<str> = status.node_name.as_str().into();
        let reporter = Reporter {
            reports: self.clone(),
            node: node.clone(),
            instance: status.instance_id.clone(),
            stream: Arc::new(Notify::new()),
        };
        let mut nodes = self.lock();
        let is_full = nodes.len() >= MAX_NODES;
        match nodes.get_mut(&node) {
            Some(report) => {
                report.take_over(&reporter)?;
                let news = report.update(status, self.term, now);
                drop(nodes);
                self.changed(true, news);
            }
            None if is_full => {
                return Err(Status::resource_exhausted(format!("{MAX_NODES} nodes report already")));
            }
            None => {
                let report = Report {
                    status: Arc::new(status),
                    heard: Arc::new(Heard::at(now)),
                    reporting: true,
                    stream: reporter.stream.clone(),
                    replaced: Vec::new(),
                };
                nodes.insert(node, report);
                drop(nodes);
                self.changed(true, true);
            }
        }
        Ok(reporter)
    }

    fn changed(&self, change: bool, news: bool) {
        if change || news {
            self.changes.send_modify(|count| *count += 1);
        }
        if news {
            self.news.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Report>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Report ===

impl Report {
    /// Makes `reporter` the one that speaks for the node, and tells the one before it.
    fn take_over(&mut self, reporter: &Reporter) -> Result<(), Status> {
        if self.replaced.contains(&reporter.instance) {
            let newer = &self.status.instance_id;
            return Err(Status::aborted(format!("instance {newer:?} has taken over this node")));
        }
        if self.status.instance_id != reporter.instance {
            if self.replaced.len() == REPLACED {
                self.replaced.remove(0);
            }
            self.replaced.push(self.status.instance_id.clone());
        }
        // One permit is kept, so it does not matter whether that stream waits at the moment.
        self.stream.notify_one();
        self.stream = reporter.stream.clone();
        self.reporting = true;
        Ok(())
    }

    /// Takes a status. Returns whether the verdict may differ before its time.
    fn update(&mut self, status: NodeStatus, term: Duration, now: Moment) -> bool {
        let old = &self.status;
        let differs = old.state != status.state
            || old.reason != status.reason
            || old.faults != status.faults
            || old.instance_id != status.instance_id;
        if *old.as_ref() != status {
            self.status = Arc::new(status);
        }
        if differs {
            // Verdicts on what was said before keep the time at which that was last true.
            self.heard = Arc::new(Heard::at(now));
            return true;
        }
        self.renew(term, now)
    }

    /// Notes a sign of life. Returns whether the lease was over.
    fn renew(&mut self, term: Duration, now: Moment) -> bool {
        let was_over = self.heard.end(term) <= now.instant;
        self.heard.renew(now);
        was_over
    }
}

fn replaced() -> Status {
    Status::aborted("a newer stream speaks for this node")
}

// === impl Reporter ===

impl Reporter {
    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Takes a later report of the stream.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it names another node or instance, `ABORTED` once a newer stream speaks for the node.
    pub fn report(&self, request: ReportNodeStatusRequest, now: Moment) -> Result<(), Status> {
        let mut nodes = self.reports.lock();
        let report = nodes.get_mut(&self.node).filter(|report| Arc::ptr_eq(&report.stream, &self.stream));
        let report = report.ok_or_else(replaced)?;
        let (change, news) = match request.status {
            Some(status) if *status.node_name != *self.node || status.instance_id != self.instance => {
                return Err(Status::invalid_argument(
                    "status: node_name and instance_id must stay the same in a stream",
                ));
            }
            Some(status) => {
                let change = *report.status != status;
                (change, report.update(status, self.reports.term, now))
            }
            None => (false, report.renew(self.reports.term, now)),
        };
        drop(nodes);
        self.reports.changed(change, news);
        Ok(())
    }

    /// Completes when a newer stream speaks for the node, with what to tell this one.
    pub async fn replaced(&self) -> Status {
        self.stream.notified().await;
        replaced()
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let mut nodes = self.reports.lock();
        let report = nodes.get_mut(&self.node).filter(|report| Arc::ptr_eq(&report.stream, &self.stream));
        if let Some(report) = report {
            report.reporting = false;
            drop(nodes);
            self.reports.changed(true, false);
        }
    }
}

#[cfg(test)]
mod tests;
