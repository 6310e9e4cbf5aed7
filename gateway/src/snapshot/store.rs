//! One store for all streams. Sources commit changes; streams read under a lock that is held for the time it takes to
//! copy the bytes of a step, and never while waiting for anything.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant, SystemTime},
};

use api::{
    delta::{
        frame::{self, Encoded, Step, View},
        version::{Digest, Digests},
    },
    resource::{Key, Kind, Resource},
};
use bytes::Bytes;
use tokio::sync::watch;

/// How long a commit stays in the change log: an agent that was away for less is sent the changes only.
const LOG_AGE: Duration = Duration::from_secs(600);

/// Bytes of names that the change log may hold.
const LOG_BYTES: usize = 16 << 20;

/// Steps whose bytes are kept for other streams. Agents that are up to date all make the same one.
const CACHED_STEPS: usize = 16;

/// The newest state and its history.
#[derive(Debug)]
pub struct Store {
    state: RwLock<State>,
    revision: watch::Sender<u64>,
}

/// A change of one resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It exists with this content.
    Set(Resource),
    /// It is gone.
    Remove(Key),
}

/// The newest state, for reading.
#[derive(Debug)]
pub struct State {
    revision: u64,
    committed: SystemTime,
    digests: Digests,
    resources: BTreeMap<Key, Encoded>,
    log: VecDeque<Entry>,
    log_bytes: usize,
    steps: Mutex<HashMap<Step, Arc<[Bytes]>>>,
}

/// One commit, seen from before.
#[derive(Debug)]
struct Entry {
    /// Revision and digests that it started from.
    revision: u64,
    digests: Digests,
    touched: BTreeSet<Key>,
    at: Instant,
    bytes: usize,
}

// === impl Store ===

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A store without a commit. Streams wait for the first one.
    pub fn new() -> Self {
        let state = State {
            revision: 0,
            committed: SystemTime::UNIX_EPOCH,
            digests: Digests::default(),
            resources: BTreeMap::new(),
            log: VecDeque::new(),
            log_bytes: 0,
            steps: Mutex::default(),
        };
        Self { state: RwLock::new(state), revision: watch::Sender::new(0) }
    }

    /// Commits changes together. Returns the new revision, or `None` if no content changed, which nobody is told.
    /// The first commit counts even when it is empty: it says that everything was listed, and nothing is there.
    pub fn commit(&self, changes: impl IntoIterator<Item = Change>) -> Option<u64> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let before = state.digests;
        let mut touched = BTreeSet::new();
        for change in changes {
            let (key, new) = match change {
                Change::Set(resource) => {
                    let encoded = Encoded::new(&resource);
                    (encoded.key.clone(), Some(encoded))
                }
                Change::Remove(key) => (key, None),
            };
            let old = state.resources.get(&key).map(|old| old.version);
            if old == new.as_ref().map(|new| new.version) {
                continue;
            }
            if let Some(version) = old {
                state.digests.remove(&key, version);
                state.resources.remove(&key);
            }
            if let Some(new) = new {
                state.digests.add(&key, new.version);
                state.resources.insert(key.clone(), new);
            }
            touched.insert(key);
        }
        // A set and a removal of the same key may have cancelled out.
        let unchanged = touched.is_empty() || before == state.digests;
        if unchanged && state.revision > 0 {
            return None;
        }
        state.append(before, touched);
        let revision = state.revision;
        drop(state);
        self.revision.send_replace(revision);
        Some(revision)
    }

    /// The newest state, for as long as the guard lives; it must not be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Revisions as they are committed; 0 before the first one.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

// === impl State ===

impl State {
    /// Whether there was a commit.
    pub fn is_committed(&self) -> bool {
        self.revision > 0
    }

    /// All resources, in the order of their keys.
    pub fn resources(&self) -> impl Iterator<Item = &Encoded> {
        self.resources.values()
    }

    /// Number of commits in the change log.
    pub fn log_len(&self) -> usize {
        self.log.len()
    }

    fn append(&mut self, digests: Digests, touched: BTreeSet<Key>) {
        let bytes = touched.iter().map(|key| key.name.len() + std::mem::size_of::<Key>()).sum();
        let at = Instant::now();
        self.log.push_back(Entry { revision: self.revision, digests, touched, at, bytes });
        self.log_bytes += bytes;
        while let Some(oldest) = self.log.front() {
            if self.log_bytes <= LOG_BYTES && at.duration_since(oldest.at) <= LOG_AGE {
                break;
            }
            self.log_bytes -= oldest.bytes;
            self.log.pop_front();
        }
        self.revision += 1;
        self.committed = SystemTime::now();
        self.cached().clear();
    }

    fn cached(&self) -> MutexGuard<'_, HashMap<Step, Arc<[Bytes]>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Encoded> {
        self.resources.range(Key::new(kind, "")..).map(|(_, encoded)| encoded).take_while(move |e| e.key.kind == kind)
    }
}

impl View for State {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn digests(&self) -> &Digests {
        &self.digests
    }

    fn commit_time(&self) -> SystemTime {
        self.committed
    }

    fn find(&self, kind: Kind, digest: &Digest) -> Option<u64> {
        // The newest match makes the shortest step.
        self.log.iter().rev().find(|entry| entry.digests.of(kind) == digest).map(|entry| entry.revision)
    }

    fn touched(&self, kind: Kind, revision: u64) -> Option<Vec<Key>> {
        let oldest = self.log.front().map_or(self.revision, |entry| entry.revision);
        if revision < oldest {
            return None;
        }
        let since = self.log.partition_point(|entry| entry.revision < revision);
        let keys: BTreeSet<&Key> =
            self.log.range(since..).flat_map(|entry| &entry.touched).filter(|key| key.kind == kind).collect();
        Some(keys.into_iter().cloned().collect())
    }

    fn get(&self, key: &Key) -> Option<&Encoded> {
        self.resources.get(key)
    }

    fn all(&self, kind: Kind) -> Vec<&Encoded> {
        self.of_kind(kind).collect()
    }

    fn slices(&self, step: &Step) -> Arc<[Bytes]> {
        if let Some(slices) = self.cached().get(step) {
            return slices.clone();
        }
        let slices = frame::slices(self, step);
        let mut cached = self.cached();
        if cached.len() >= CACHED_STEPS {
            cached.clear();
        }
        cached.insert(*step, slices.clone());
        slices
    }
}

#[cfg(test)]
mod tests {
    use api::resource::{name::NamespacedName, workload::Workload};

    use super::*;

    fn workload(last: u8, pod: &str) -> Resource {
        let pod = NamespacedName::new("default", pod);
        Resource::Workload(Workload { address: [10, 0, 0, last].into(), pod, node: String::new() })
    }

    #[test]
    fn only_new_content_makes_a_revision() {
        let store = Store::new();
        assert_eq!(store.commit([]), Some(1), "the first commit says that all was listed");
        assert_eq!(store.commit([]), None);
        assert_eq!(store.commit([Change::Set(workload(1, "a"))]), Some(2));
        assert_eq!(store.commit([Change::Set(workload(1, "a"))]), None);
        assert_eq!(store.commit([Change::Remove(workload(9, "x").key())]), None);
        let flap = [Change::Set(workload(1, "b")), Change::Set(workload(1, "a"))];
        assert_eq!(store.commit(flap), None);
        assert_eq!(*store.revisions().borrow(), 2);
    }

    #[test]
    fn the_log_leads_from_any_earlier_digest_to_now() {
        let store = Store::new();
        store.commit([Change::Set(workload(1, "a"))]);
        let before = *store.read().digests();
        store.commit([Change::Set(workload(2, "b"))]);
        store.commit([Change::Remove(workload(1, "a").key())]);
        let state = store.read();
        let revision = state.find(Kind::Workload, before.of(Kind::Workload)).expect("in the log");
        let touched = state.touched(Kind::Workload, revision).expect("reaches back");
        assert_eq!(touched, [workload(1, "a").key(), workload(2, "b").key()]);
        assert_eq!(state.touched(Kind::Service, revision), Some(vec![]));
    }

    #[test]
    fn equal_steps_share_their_bytes_until_the_next_commit() {
        let store = Store::new();
        store.commit([Change::Set(workload(1, "a"))]);
        let step = Step([frame::Start::Full; Kind::ALL.len()]);
        let (first, second) = (store.read().slices(&step), store.read().slices(&step));
        assert!(Arc::ptr_eq(&first, &second));
        store.commit([Change::Set(workload(2, "b"))]);
        assert!(!Arc::ptr_eq(&first, &store.read().slices(&step)));
    }

    #[test]
    fn the_log_is_bounded_by_bytes() {
        let store = Store::new();
        let name = "x".repeat(1 << 20);
        for round in 0..100 {
            let key = Key::new(Kind::Service, format!("{round}{name}"));
            let mut state = store.state.write().expect("not poisoned");
            let digests = state.digests;
            state.append(digests, BTreeSet::from([key]));
        }
        let state = store.read();
        assert!(state.log_bytes <= LOG_BYTES && state.log_len() < 100, "{} entries", state.log_len());
        assert_eq!(state.touched(Kind::Service, 0), None, "too old, so that it is sent whole");
    }
}
