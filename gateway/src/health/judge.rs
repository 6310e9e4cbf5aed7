//! From objects, reports and the time to a board. Judges anew whenever something is heard that may matter, and when the
//! first verdict would change by time alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use api::{
    proto::node::{NodeServingState, NodeStatus},
    resource::{name::NamespacedName, node::Node},
};
use tokio::{sync::watch, time::Instant};

use super::{
    board::{
        Board,
        node::{Expiry, NodeEntry, Said},
        service::{FaultEntry, ServiceEntry},
    },
    known::{Known, Touched},
    moment::Moment,
    outage::Outage,
    report::{Report, Reports},
    verdict::{self, Facts, Fault, Lease, Origin, State},
};
use crate::snapshot::store::Store;

/// Boards as they come; `None` until the sources were read once.
pub type Boards = watch::Receiver<Option<Arc<Board>>>;

/// Judges all nodes.
#[derive(Debug)]
pub struct Judge {
    store: Arc<Store>,
    reports: Arc<Reports>,
    boards: watch::Sender<Option<Arc<Board>>>,
    known: Known,
    /// When this replica began to judge.
    started: Option<Instant>,
    /// When each node was first seen.
    seen: BTreeMap<Arc<str>, Instant>,
    outage: Outage,
}

/// Faults by Service and node.
type Faults = BTreeMap<NamespacedName, BTreeMap<Arc<str>, Fault>>;

// === impl Judge ===

impl Judge {
    /// Judges by what is in `store` and in `reports`.
    pub fn new(store: Arc<Store>, reports: Arc<Reports>) -> (Self, Boards) {
        let (boards, receiver) = watch::channel(None);
        let judge = Self {
            store,
            reports,
            boards,
            known: Known::default(),
            started: None,
            seen: BTreeMap::new(),
            outage: Outage::default(),
        };
        (judge, receiver)
    }

    /// Judges for as long as anybody may ask.
    pub async fn run(mut self) {
        let (mut revisions, mut news) = (self.store.revisions(), self.reports.news());
        loop {
            revisions.mark_unchanged();
            news.mark_unchanged();
            let next = self.judge(Moment::now());
            // Both senders live in `self`, so neither can be gone.
            tokio::select! {
                _ = revisions.changed() => {}
                _ = news.changed() => {}
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// Publishes the verdicts of now if any differs. Returns when time alone will change one.
    pub fn judge(&mut self, now: Moment) -> Option<Instant> {
        let touched = self.known.update(&self.store, now.wall);
        if self.known.revision == 0 {
            return None;
        }
        self.started.get_or_insert(now.instant);
        let reports = self.hear(now.instant);
        let before = self.boards.borrow().clone();
        let first = before.is_none();
        let before = before.unwrap_or_else(|| Arc::new(Board::empty(self.reports.term())));
        let mut board = Board { revision: before.revision + 1, ..(*before).clone() };
        self.judge_nodes(&mut board, &reports, now);
        self.judge_services(&mut board, &touched, &faults(&reports), now.wall);
        let warmup = |entry: &Arc<NodeEntry>| entry.said.verdict.reason == WARMUP;
        board.degraded = self.outage.is_on() || board.listed().any(|(_, entry)| warmup(entry));
        let next = board.nodes.values().filter_map(|entry| entry.said.verdict.until).min();
        if first || differs(&before, &board) {
            board.seal();
            self.boards.send_replace(Some(Arc::new(board)));
        }
        next
    }

    /// What was reported of the nodes there are. Of others it is forgotten once they are silent.
    fn hear(&mut self, now: Instant) -> BTreeMap<Arc<str>, Report> {
        let (nodes, term) = (&self.known.nodes, self.reports.term());
        self.reports
            .retain(|node, report| nodes.contains_key(node) || report.reporting || report.heard.end(term) > now);
        let mut reports = self.reports.list();
        reports.retain(|node, _| nodes.contains_key(node));
        let ends = reports.iter().map(|(node, report)| (node.clone(), report.heard.end(term))).collect();
        self.outage.update(&ends, now);
        self.seen.retain(|node, _| nodes.contains_key(node));
        for node in nodes.keys() {
            self.seen.entry(node.clone()).or_insert(now);
        }
        reports
    }

    fn judge_nodes(&self, board: &mut Board, reports: &BTreeMap<Arc<str>, Report>, now: Moment) {
        let revision = board.revision;
        let mut nodes = BTreeMap::new();
        for (name, node) in &self.known.nodes {
            let before = board.nodes.get(name);
            let said = self.judge_node(name, node, reports.get(name), before, now);
            let entry = NodeEntry::next(said, before, revision);
            if entry.revision == revision {
                board.nodes_revision = revision;
                log(name, before, &entry);
            }
            nodes.insert(name.clone(), entry);
        }
        for name in board.nodes.keys().filter(|name| !nodes.contains_key(*name)) {
            Arc::make_mut(&mut board.removed_nodes).push(revision, name.clone());
            board.nodes_revision = revision;
        }
        board.nodes = nodes;
    }

    fn judge_node(
        &self,
        name: &str,
        node: &Arc<Node>,
        report: Option<&Report>,
        before: Option<&Arc<NodeEntry>>,
        now: Moment,
    ) -> Said {
        let lease = self.lease(name, report, now.instant);
        let status = report.map(|report| &*report.status);
        let state = status.map_or(NodeServingState::Unspecified, NodeStatus::state);
        let mut verdict = verdict::node(&Facts { lease, state, leaving: node.leaving }, now.instant);
        if let Some(reason) = status.map(|status| &*status.reason).filter(|reason| !reason.is_empty())
            && matches!(&*verdict.reason, "AGENT_FAILED" | "NOT_SYNCED" | "AGENT_DRAINING")
        {
            verdict.message = format!("{}: {reason}", verdict.message).into();
        }
        let before = before.map(|before| &before.said);
        let since = match before {
            Some(before) if before.verdict.state == verdict.state => before.since,
            // The first word of an agent to this replica may be about what began long before.
            None => agent_since(status, now).unwrap_or(now.wall),
            Some(before) if before.verdict.reason == WARMUP => agent_since(status, now).unwrap_or(now.wall),
            Some(_) => now.wall,
        };
        // A time that was told once is told again: clocks differ from call to call.
        let same_end = before.filter(|before| before.verdict.until == verdict.until).map(|before| before.expiry);
        let expiry = match verdict.until {
            Some(_) if lease.origin == Origin::Reported && now.instant < lease.end => Expiry::Lease,
            Some(until) => same_end.unwrap_or_else(|| Expiry::At(now.wall_at(until))),
            None => Expiry::Never,
        };
        Said {
            node: node.clone(),
            weight: verdict::node_weight(&verdict, before.map(|before| before.weight), lease.origin),
            verdict,
            since,
            heard: report.map(|report| report.heard.clone()),
            expiry,
        }
    }

    fn lease(&self, name: &str, report: Option<&Report>, now: Instant) -> Lease {
        let term = self.reports.term();
        let started = self.started.unwrap_or(now);
        let seen = self.seen.get(name).copied().unwrap_or(now);
        let (origin, begin) = match report {
            Some(_) => (Origin::Reported, None),
            // Nodes that came while this replica starts are old nodes as well, for all it knows.
            None if seen < started + term => (Origin::Warmup, Some(started)),
            None => (Origin::NewNode, Some(seen)),
        };
        let end = match (report, begin) {
            (Some(report), _) => self.outage.end(name, report.heard.end(term)),
            (None, begin) => begin.unwrap_or(now) + term,
        };
        Lease { origin, end, term, held: self.outage.holds(name) }
    }

    fn judge_services(&self, board: &mut Board, touched: &Touched, faults: &Faults, now: SystemTime) {
        let revision = board.revision;
        let with_faults = board.services.iter().filter(|(_, entry)| !entry.faults.is_empty()).map(|(name, _)| name);
        let dirty: BTreeSet<&NamespacedName> =
            touched.services.iter().chain(faults.keys()).chain(with_faults).collect();
        let dirty: Vec<NamespacedName> = dirty.into_iter().cloned().collect();
        let none = BTreeMap::new();
        for name in dirty {
            let Some(target) = self.known.services.get(&name) else {
                if board.services.remove(&name).is_some() {
                    Arc::make_mut(&mut board.removed_services).push(revision, name);
                }
                continue;
            };
            let before = board.services.get(&name);
            let faults = faults.get(&name).unwrap_or(&none);
            let faults = carry(before.map(|before| &before.faults), faults, &self.known.nodes, now);
            if before.is_some_and(|before| Arc::ptr_eq(&before.target, target) && before.faults == faults) {
                continue;
            }
            let entry = ServiceEntry::next(target.clone(), faults, before, revision);
            board.services.insert(name, entry);
        }
    }
}

/// Logs another state of a node. What is told of a node for the first time is no news.
fn log(node: &str, before: Option<&Arc<NodeEntry>>, entry: &NodeEntry) {
    let Some(before) = before.map(|before| &before.said.verdict) else { return };
    let after = &entry.said.verdict;
    if before.state != after.state {
        let (from, to, reason) = (before.state.label(), after.state.label(), &*after.reason);
        tracing::info!(node, from, to, reason, "another verdict on a node");
    }
}

/// The reason that says that a replica has just started.
const WARMUP: &str = "CONTROL_PLANE_WARMUP";

/// Since when the agent has been in its state, which is never in the future.
fn agent_since(status: Option<&NodeStatus>, now: Moment) -> Option<SystemTime> {
    let since = SystemTime::try_from(status?.state_since?).ok()?;
    Some(since.min(now.wall))
}

/// Whether anything differs that somebody asks for.
fn differs(before: &Board, after: &Board) -> bool {
    let nodes = before.nodes.len() != after.nodes.len()
        || after.nodes.iter().any(|(name, entry)| before.nodes.get(name).is_none_or(|old| !Arc::ptr_eq(old, entry)));
    let services = before.services.len() != after.services.len()
        || after
            .services
            .iter()
            .any(|(name, entry)| before.services.get(name).is_none_or(|old| !Arc::ptr_eq(old, entry)));
    nodes || services || before.degraded != after.degraded
}

/// The first fault of each Service on each node.
fn faults(reports: &BTreeMap<Arc<str>, Report>) -> Faults {
    let mut faults = Faults::new();
    for (node, report) in reports {
        for fault in &report.status.faults {
            let Ok(service) = fault.service.parse::<NamespacedName>() else { continue };
            let reason = if fault.reason.is_empty() { "SERVICE_FAULT" } else { &fault.reason };
            let fault = Fault {
                reason: reason.to_owned(),
                message: fault.message.clone(),
                since: fault.fault_since.and_then(|since| SystemTime::try_from(since).ok()),
            };
            faults.entry(service).or_default().entry(node.clone()).or_insert(fault);
        }
    }
    faults
}

/// The faults of now, and those that are over, each with the time of its last change.
fn carry(
    before: Option<&BTreeMap<Arc<str>, FaultEntry>>,
    faults: &BTreeMap<Arc<str>, Fault>,
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
    now: SystemTime,
) -> BTreeMap<Arc<str>, FaultEntry> {
    let known = |node: &Arc<str>| before.and_then(|before| before.get(node));
    let over = before.into_iter().flatten().filter(|(node, _)| nodes.contains_key(*node)).map(|(node, entry)| {
        let since = if entry.fault.is_some() { now } else { entry.since };
        (node.clone(), FaultEntry { fault: None, since })
    });
    let mut carried: BTreeMap<Arc<str>, FaultEntry> = over.collect();
    for (node, fault) in faults {
        let since = match known(node) {
            Some(FaultEntry { fault: Some(_), since }) => *since,
            _ => fault.since.map_or(now, |since| since.min(now)),
        };
        carried.insert(node.clone(), FaultEntry { fault: Some(fault.clone()), since });
    }
    carried
}

/// How many nodes are in each state.
pub fn count(board: &Board) -> [(State, u64); State::ALL.len()] {
    State::ALL.map(|state| {
        let nodes = board.listed().filter(|(_, entry)| entry.said.verdict.state == state);
        (state, nodes.count() as u64)
    })
}

#[cfg(test)]
mod tests;
