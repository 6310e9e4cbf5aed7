//! The control loop: batches of a source into the world, what follows from them into the store, when it is time.
//!
//! It is the only writer of both, and waits for nobody but the clock: no stream can slow it down.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::resource::Resource;
use runtime::ready::Latch;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

mod addresses;

pub use addresses::Addresses;

use crate::{
    catalog::Catalog,
    hop::Known,
    metrics::Metrics,
    model::{
        derive::{Derive, Derived},
        world::{Config, Dirty, World},
    },
    problem::ByObject,
    snapshot::store::{Change, Store},
    watch::{
        Batch, Reports,
        object::{Kind, ObjectKey},
    },
};

/// Quiet after a change before it is committed, so that what belongs together is sent together.
const QUIET: Duration = Duration::from_millis(20);
/// A change is committed after this long, however much follows it.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// The loop's state.
#[derive(Debug)]
pub struct Control {
    world: World,
    derive: Derive,
    store: Arc<Store>,
    catalog: watch::Sender<Catalog>,
    metrics: Metrics,
    /// Released with the first commit.
    listed: Option<Latch>,
    dirty: Dirty,
    /// What the source reports of its objects.
    reports: Arc<Reports>,
    /// What the model reports of them.
    modelled: ByObject,
    /// Who assigns load-balancer addresses; with manifests, their source does.
    addresses: Option<Addresses>,
    /// Whose wish for an address was refused, and why.
    refused: ByObject,
    /// The keys by which agents know each other, where there are any.
    hop_keys: Option<watch::Receiver<Known>>,
    /// Whether they are others than those committed.
    rotated: bool,
    /// The first change that is not committed yet.
    since: Option<Instant>,
    /// Whether there is news for the catalog.
    told: bool,
}

// === impl Control ===

impl Control {
    /// A loop that has seen nothing yet. `listed` is released with the first commit.
    pub fn new(config: Config, store: Arc<Store>, metrics: Metrics, listed: Latch) -> (Self, watch::Receiver<Catalog>) {
        let (catalog, receiver) = watch::channel(Catalog::default());
        let control = Self {
            world: World::new(config),
            derive: Derive::default(),
            store,
            catalog,
            metrics,
            listed: Some(listed),
            dirty: Dirty::default(),
            reports: Arc::default(),
            modelled: ByObject::new(),
            addresses: None,
            refused: ByObject::new(),
            hop_keys: None,
            rotated: false,
            since: None,
            told: false,
        };
        (control, receiver)
    }

    /// Assigns load-balancer addresses as well.
    pub fn assigning(self, addresses: Addresses) -> Self {
        Self { addresses: Some(addresses), ..self }
    }

    /// Publishes these keys as well. The first commit waits until somebody has looked for them: without them it would take
    /// from agents what they hold.
    pub fn with_hop_keys(self, keys: watch::Receiver<Known>) -> Self {
        Self { hop_keys: Some(keys), ..self }
    }

    /// Runs until the source ends.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        // When what has changed is committed.
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    self.commit();
                }
                // Before the first commit there is nothing to assign.
                () = turned(&mut self.addresses), if self.listed.is_none() => {
                    self.assign_addresses();
                    due = self.due(Instant::now());
                }
                () = changed(&mut self.hop_keys) => {
                    self.rotated = true;
                    due = self.due(Instant::now());
                }
                batch = batches.recv() => match batch {
                    Some(batch) => {
                        self.take(batch);
                        due = self.due(Instant::now());
                    }
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, batch: Batch) {
        for event in batch.events {
            self.world.apply(event, &mut self.dirty);
        }
        if let Some(reports) = batch.reports {
            self.told |= reports != self.reports;
            for (kind, count) in reports.others.iter().filter(|(kind, _)| !self.reports.others.contains_key(*kind)) {
                tracing::info!(kind, count, "objects of this kind are not read");
            }
            self.reports = reports;
            // What keeps everything from being listed must be told before everything is.
            if self.told && self.world.synced().is_none() {
                self.publish_catalog(&Dirty::default());
            }
        }
    }

    /// When to commit what has changed up to `now`; `None` if nothing has, or not everything was listed yet.
    fn due(&mut self, now: Instant) -> Option<Instant> {
        self.world.synced()?;
        let first_commit = self.listed.is_some();
        if first_commit && self.hop_keys.as_ref().is_some_and(|keys| *keys.borrow() == Known::Unread) {
            return None;
        }
        if self.dirty.is_empty() && !self.told && !self.rotated && !first_commit {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if self.dirty.urgent || first_commit {
            return Some(now);
        }
        Some((now + QUIET).min(since + MAX_WAIT))
    }

    fn commit(&mut self) {
        let Some(synced) = self.world.synced() else { return };
        let dirty = std::mem::take(&mut self.dirty);
        let Derived { mut changes, problems } = self.derive.derive(synced, &dirty);
        if std::mem::take(&mut self.rotated)
            && let Some(keys) = &self.hop_keys
            && let Known::Keys(keys) = &*keys.borrow()
        {
            changes.push(Change::Set(Resource::HopKeys(keys.clone())));
        }
        for (object, problems) in problems {
            self.told |= if problems.is_empty() {
                self.modelled.remove(&object).is_some()
            } else {
                self.modelled.insert(object, problems.clone()).as_ref() != Some(&problems)
            };
        }
        if dirty.load_balancers || self.listed.is_some() {
            self.assign_addresses();
        }
        // The catalog goes first: who is told of a new revision may look at it.
        self.publish_catalog(&dirty);
        let revision = self.store.commit(changes);
        let waited = self.since.take().map(|since| since.elapsed()).unwrap_or_default();
        if let Some(revision) = revision {
            self.metrics.committed(waited);
            tracing::debug!(revision, ?waited, "committed");
        }
        if let Some(latch) = self.listed.take() {
            tracing::info!("sources are listed");
            latch.release();
        }
    }

    fn assign_addresses(&mut self) {
        if let Some(addresses) = &mut self.addresses {
            let refused = addresses.assign(&self.world);
            self.told |= refused != self.refused;
            self.refused = refused;
        }
    }

    fn publish_catalog(&mut self, dirty: &Dirty) {
        let before = self.catalog.borrow().clone();
        let mut catalog = before.clone();
        if std::mem::take(&mut self.told) {
            let mut problems = self.modelled.clone();
            for (object, reported) in self.refused.iter().chain(&self.reports.objects) {
                problems.entry(object.clone()).or_default().extend(reported.iter().cloned());
            }
            catalog.problems = Arc::new(problems);
            catalog.source_problems = Arc::new(self.reports.source.clone());
            self.metrics.reported(&catalog, &self.reports);
        }
        self.note_created(dirty, &mut catalog.created);
        if catalog != before {
            catalog.log_changes(&before);
            self.catalog.send_replace(catalog);
        }
    }

    fn note_created(&self, dirty: &Dirty, created: &mut Arc<BTreeMap<ObjectKey, SystemTime>>) {
        let services = dirty.services.iter().map(|name| {
            let time = self.world.service(name).and_then(|service| service.metadata.creation_timestamp.as_ref());
            (ObjectKey::new(Kind::Service, name.namespace.clone(), name.name.clone()), time)
        });
        let nodes = dirty.nodes.iter().map(|name| {
            let time = self.world.node(name).and_then(|node| node.metadata.creation_timestamp.as_ref());
            (ObjectKey::new(Kind::Node, "", name.clone()), time)
        });
        for (key, time) in services.chain(nodes) {
            let time = time.map(|time| SystemTime::from(time.0));
            // Shared until something differs, which is rare: creation times do not change.
            if created.get(&key).copied() != time {
                let created = Arc::make_mut(created);
                match time {
                    Some(time) => created.insert(key, time),
                    None => created.remove(&key),
                };
            }
        }
    }
}

/// Completes when addresses have to be assigned anew although no object changed.
async fn turned(addresses: &mut Option<Addresses>) {
    match addresses {
        Some(addresses) => addresses.turned().await,
        None => std::future::pending().await,
    }
}

/// Completes when the keys of agents are others.
async fn changed(keys: &mut Option<watch::Receiver<Known>>) {
    if let Some(keys) = keys
        && keys.changed().await.is_ok()
    {
        return;
    }
    // There are none, or nobody looks for them any more, as when the gateway drains.
    std::future::pending().await
}

#[cfg(test)]
mod tests;
