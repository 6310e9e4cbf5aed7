//! All verdicts of one revision. Immutable; entries that did not change are shared with the board before it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use api::{proto::health as wire, resource::name::NamespacedName};

pub mod node;
pub mod service;

use node::NodeEntry;
use service::ServiceEntry;

/// Removals that are remembered for watches that resume.
const REMOVALS: usize = 1024;

/// All verdicts of one revision.
#[derive(Clone, Debug)]
pub struct Board {
    /// Grows by one whenever a verdict differs.
    pub revision: u64,
    /// All nodes, those included that external load balancers are to leave alone.
    pub nodes: BTreeMap<Arc<str>, Arc<NodeEntry>>,
    /// The Services that are reached through nodes.
    pub services: BTreeMap<NamespacedName, Arc<ServiceEntry>>,
    /// Revision at which a node last differed. The backends of every Service differ with it.
    pub nodes_revision: u64,
    /// Nodes that are gone.
    pub removed_nodes: Arc<Removed<Arc<str>>>,
    /// Services that are gone.
    pub removed_services: Arc<Removed<NamespacedName>>,
    /// Hash of all that is said of nodes; the same on every replica that says the same.
    pub nodes_etag: Arc<str>,
    /// Hash of all that is said of Services.
    pub services_etag: Arc<str>,
    /// The verdicts rest on what was last heard: this replica cannot hear the agents, or has not yet.
    pub degraded: bool,
    /// How long a lease lasts.
    pub term: Duration,
}

/// Names that are gone, by revision.
#[derive(Clone, Debug)]
pub struct Removed<K> {
    entries: VecDeque<(u64, K)>,
    /// Removals up to this revision are forgotten.
    floor: u64,
}

// === impl Board ===

impl Board {
    /// Nothing is known.
    pub fn empty(term: Duration) -> Self {
        Self {
            revision: 0,
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            nodes_revision: 0,
            removed_nodes: Arc::default(),
            removed_services: Arc::default(),
            nodes_etag: "".into(),
            services_etag: "".into(),
            degraded: false,
            term,
        }
    }

    /// Brings the etags up to date.
    pub fn seal(&mut self) {
        let mut nodes = blake3::Hasher::new();
        self.listed().for_each(|(_, entry)| {
            nodes.update(entry.hash().as_bytes());
        });
        let nodes = nodes.finalize();
        let mut services = blake3::Hasher::new();
        services.update(nodes.as_bytes());
        self.services.values().for_each(|entry| {
            services.update(entry.hash().as_bytes());
        });
        let short = |hash: blake3::Hash| hash.to_hex()[..32].into();
        self.nodes_etag = short(nodes);
        self.services_etag = short(services.finalize());
    }

    /// The nodes that external load balancers may use (S14.1).
    pub fn listed(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<NodeEntry>)> {
        self.nodes.iter().filter(|(_, entry)| entry.is_listed())
    }

    /// The message on a node.
    pub fn node(&self, name: &str) -> Option<wire::NodeHealth> {
        let entry = self.nodes.get(name).filter(|entry| entry.is_listed())?;
        Some(entry.message(self.term))
    }

    /// The message on a Service, with its backends if they are wanted.
    pub fn service(&self, name: &NamespacedName, with_backends: bool) -> Option<wire::ServiceHealth> {
        self.services.get(name).map(|entry| entry.message(self, with_backends))
    }
}

// === impl Removed ===

impl<K> Default for Removed<K> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), floor: 0 }
    }
}

impl<K: Clone> Removed<K> {
    /// Notes that a name is gone as of `revision`.
    pub fn push(&mut self, revision: u64, name: K) {
        self.entries.push_back((revision, name));
        if self.entries.len() > REMOVALS
            && let Some((revision, _)) = self.entries.pop_front()
        {
            self.floor = revision;
        }
    }

    /// The names that went after `revision`; `None` if that is too long ago to know.
    pub fn since(&self, revision: u64) -> Option<impl Iterator<Item = &K>> {
        let later = self.entries.iter().filter(move |(removed, _)| *removed > revision);
        (revision >= self.floor).then(|| later.map(|(_, name)| name))
    }
}
