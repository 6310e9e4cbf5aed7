//! The task behind a watch. Resources are followed by what each commit touched; nodes and agents are few, and looked at
//! whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use api::{
    delta::frame::View as _,
    proto::inspect::{ObjectKind, WatchObjectsResponse, watch_objects_response::Event},
};
use prost::Message as _;
use runtime::drain;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    Sources,
    scene::{Filter, Name, Scene, resource},
};
use crate::{
    catalog::Catalog,
    watch::object::{Kind, ObjectKey},
};

/// Time between two looks at nodes and agents. An agent that acknowledges a commit within it never shows as behind.
const PACE: Duration = Duration::from_millis(100);

/// Events that wait for the connection.
const OUTBOX: usize = 16;

/// One watch.
struct Follower {
    sources: Sources,
    filter: Filter,
    outbox: mpsc::Sender<Result<WatchObjectsResponse, Status>>,
    /// Hash of what was told of each object.
    told: BTreeMap<Name, blake3::Hash>,
    /// Revision and catalog of the last look; `None` before the first.
    last: Option<(u64, Catalog)>,
}

/// Nobody listens any more.
struct Gone;

/// Starts a watch. It ends when its stream is dropped.
pub fn start(
    sources: Sources,
    filter: Filter,
    mut drain: drain::Watch,
) -> ReceiverStream<Result<WatchObjectsResponse, Status>> {
    let (outbox, events) = mpsc::channel(OUTBOX);
    let follower = Follower { sources, filter, outbox: outbox.clone(), told: BTreeMap::new(), last: None };
    tokio::spawn(async move {
        tokio::select! {
            _ = follower.run() => {}
            () = drain.started() => {
                // A reader that is gone need not be told.
                let _ = outbox.send(Err(Status::unavailable("this replica is shutting down"))).await;
            }
        }
    });
    ReceiverStream::new(events)
}

// === impl Follower ===

impl Follower {
    async fn run(mut self) -> Result<(), Gone> {
        let mut revisions = self.sources.store.revisions();
        let mut catalog = self.sources.catalog.clone();
        let mut boards = self.sources.health.boards.clone();
        let mut nodes = self.sources.nodes.changes();
        let mut reports = self.sources.health.reports.changes();
        let (of_nodes, of_agents) = (self.filter.kind == ObjectKind::Node, self.filter.kind == ObjectKind::Agent);
        tokio::select! {
            first = revisions.wait_for(|revision| *revision > 0) => drop(first.map_err(|_| Gone)?),
            () = self.outbox.closed() => return Err(Gone),
        }
        let mut synced = false;
        loop {
            revisions.mark_unchanged();
            catalog.mark_unchanged();
            boards.mark_unchanged();
            nodes.mark_unchanged();
            reports.mark_unchanged();
            let looked = Instant::now();
            self.look().await?;
            if !std::mem::replace(&mut synced, true) {
                self.send(Event::Synced(true)).await?;
            }
            let changed = tokio::select! {
                changed = revisions.changed() => changed,
                changed = catalog.changed(), if !of_agents => changed,
                // Verdicts tell when leases end, which is when the last word of an agent is over.
                changed = boards.changed(), if of_nodes || of_agents => changed,
                changed = nodes.changed(), if of_nodes || of_agents => changed,
                changed = reports.changed(), if of_agents => changed,
                () = self.outbox.closed() => return Err(Gone),
            };
            changed.map_err(|_| Gone)?;
            if of_nodes || of_agents {
                tokio::time::sleep_until(looked + PACE).await;
            }
        }
    }

    /// Tells of everything that differs from what was told.
    async fn look(&mut self) -> Result<(), Gone> {
        let scene = Scene::of(&self.sources, self.filter.kind);
        for name in self.candidates(&scene) {
            // The place is taken first: what is told is the latest when it can be told.
            let outbox = self.outbox.clone();
            let place = outbox.reserve().await.map_err(|_| Gone)?;
            if let Some(event) = self.event(&scene, name) {
                place.send(Ok(WatchObjectsResponse { event: Some(event) }));
            }
        }
        Ok(())
    }

    /// The objects that may differ from what was told.
    fn candidates(&mut self, scene: &Scene) -> BTreeSet<Name> {
        let store = self.sources.store.clone();
        let state = store.read();
        let logged = self.last.as_ref().zip(resource(self.filter.kind));
        let touched = logged.and_then(|((revision, catalog), kind)| {
            let touched = state.touched(kind, *revision)?;
            let by_catalog = recatalogued(catalog, &scene.catalog);
            let names = by_catalog.into_iter().filter(|key| self.shows(key.kind));
            let names = names.map(|key| Name { namespace: (*key.namespace).into(), name: (*key.name).into() });
            Some(touched.iter().map(Name::of).chain(names).collect::<BTreeSet<Name>>())
        });
        self.last = Some((state.revision(), scene.catalog.clone()));
        drop(state);
        let is_whole = matches!(self.filter.kind, ObjectKind::Node | ObjectKind::Agent);
        let mut names = match touched {
            Some(touched) if !is_whole => touched,
            _ => {
                let rows = scene.rows(&self.sources.store, &self.filter);
                rows.into_iter().map(|(name, _)| name).chain(self.told.keys().cloned()).collect()
            }
        };
        names.retain(|name| self.filter.covers(name));
        names
    }

    /// Whether what the catalog says of objects of `kind` is shown. Of endpoints that is only the age of their Service.
    fn shows(&self, kind: Kind) -> bool {
        matches!((self.filter.kind, kind), (ObjectKind::Service, Kind::Service) | (ObjectKind::Node, Kind::Node))
    }

    fn event(&mut self, scene: &Scene, name: Name) -> Option<Event> {
        let kind = self.filter.kind;
        let body = resource(kind).and_then(|kind| {
            let state = self.sources.store.read();
            state.get(&name.key(kind)).map(|encoded| encoded.body.clone())
        });
        let Some(object) = scene.object(kind, &name, body) else {
            return self.told.remove(&name).map(|_| Event::Removed(name.wire()));
        };
        let hash = blake3::hash(&object.encode_to_vec());
        let before = self.told.insert(name, hash);
        (before != Some(hash)).then_some(Event::Updated(object))
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.outbox.send(Ok(WatchObjectsResponse { event: Some(event) })).await.map_err(|_| Gone)
    }
}

/// The objects of which the catalogs say different things.
fn recatalogued(before: &Catalog, after: &Catalog) -> BTreeSet<ObjectKey> {
    fn differing<'a, V: PartialEq>(
        before: &'a Arc<BTreeMap<ObjectKey, V>>,
        after: &'a Arc<BTreeMap<ObjectKey, V>>,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        // Most of the time nothing was touched, and then both are the same.
        let keys = (!Arc::ptr_eq(before, after)).then(|| before.keys().chain(after.keys()));
        keys.into_iter().flatten().filter(|key| before.get(*key) != after.get(*key))
    }
    let problems = differing(&before.problems, &after.problems);
    problems.chain(differing(&before.created, &after.created)).cloned().collect()
}
