//! Which agents are connected, what each has acknowledged, and what it refused.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use api::delta::{Rejection, server::Resync};
use tokio::sync::{Notify, watch};

use crate::identity::{peer::Peer, roster::PodRef};

/// All agents that are, or were, connected to this process.
#[derive(Debug)]
pub struct Nodes {
    nodes: Mutex<BTreeMap<String, Connected>>,
    next: AtomicU64,
    changes: watch::Sender<u64>,
    /// Totals for metrics.
    pub totals: Totals,
}

/// What was done for all streams since the start.
#[derive(Debug, Default)]
pub struct Totals {
    /// Streams opened, by how they began: nothing to send, from the log, in full.
    pub resync: [AtomicU64; 3],
    /// Bytes of messages.
    pub sent_bytes: AtomicU64,
    /// Streams open now.
    pub open: AtomicU64,
    /// Resources refused by agents.
    pub rejected: AtomicU64,
}

/// One agent.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Which stream of the process it is.
    pub stream: u64,
    /// Whether that stream is open.
    pub open: bool,
    /// Address of the other end.
    pub peer: String,
    /// Version of the agent.
    pub agent_version: String,
    /// When the stream was opened.
    pub since: SystemTime,
    /// How the stream began.
    pub resync: Resync,
    /// Newest revision it holds.
    pub acknowledged: u64,
    /// What it refuses at present.
    pub rejections: Vec<Rejection>,
    /// The Pod that its credential is bound to.
    pod: Option<PodRef>,
    superseded: Arc<Notify>,
}

/// A stream's own entry; dropping it marks the agent as gone.
#[derive(Debug)]
pub struct Entry {
    nodes: Arc<Nodes>,
    node: String,
    stream: u64,
    superseded: Arc<Notify>,
}

// === impl Nodes ===

impl Default for Nodes {
    fn default() -> Self {
        Self {
            nodes: Mutex::default(),
            next: AtomicU64::new(1),
            changes: watch::Sender::new(0),
            totals: Totals::default(),
        }
    }
}

impl Nodes {
    /// Enters a stream. An older stream of the same node is told that it was superseded; `None` if it is the other way
    /// round, because the agent of that one is in a newer Pod.
    pub fn enter(self: &Arc<Self>, node: String, agent_version: String, peer: &Peer, resync: Resync) -> Option<Entry> {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let superseded = Arc::new(Notify::new());
        let connected = Connected {
            stream,
            open: true,
            peer: peer.address().to_owned(),
            agent_version,
            since: SystemTime::now(),
            resync,
            acknowledged: 0,
            rejections: Vec::new(),
            pod: peer.pod().cloned(),
            superseded: superseded.clone(),
        };
        let mut nodes = self.lock();
        if nodes.get(&node).is_some_and(|old| old.open && !peer.outranks(old.pod.as_ref())) {
            return None;
        }
        let old = nodes.insert(node.clone(), connected).filter(|old| old.open);
        drop(nodes);
        if let Some(old) = old {
            // One permit is kept, so it does not matter whether that stream waits at the moment.
            old.superseded.notify_one();
        }
        self.totals.resync[resync as usize].fetch_add(1, Ordering::Relaxed);
        self.totals.open.fetch_add(1, Ordering::Relaxed);
        self.changed();
        Some(Entry { nodes: self.clone(), node, stream, superseded })
    }

    /// All agents, by node.
    pub fn list(&self) -> BTreeMap<String, Connected> {
        self.lock().clone()
    }

    /// A number that grows with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Connected>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Entry ===

impl Entry {
    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Notes that the agent holds `revision`, less what it refuses.
    pub fn acknowledged(&self, revision: u64, rejections: Vec<Rejection>) {
        self.update(|connected| {
            let known: Vec<_> = connected.rejections.iter().map(|old| (old.key.clone(), old.version)).collect();
            let fresh = rejections.iter().filter(|new| !known.contains(&(new.key.clone(), new.version)));
            for rejection in fresh {
                self.nodes.totals.rejected.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(node = self.node, resource = %rejection.key, "refused by the agent: {}", rejection.message);
            }
            connected.acknowledged = revision;
            connected.rejections = rejections;
        });
    }

    /// Waits until a newer stream of the same node takes over.
    pub async fn superseded(&self) {
        self.superseded.notified().await;
    }

    fn update(&self, change: impl FnOnce(&mut Connected)) {
        if let Some(connected) = self.nodes.lock().get_mut(&self.node).filter(|it| it.stream == self.stream) {
            change(connected);
        }
        self.nodes.changed();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.nodes.totals.open.fetch_sub(1, Ordering::Relaxed);
        self.update(|connected| connected.open = false);
    }
}
