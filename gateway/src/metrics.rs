//! Instruments of the control plane. What streams do is counted where it happens, and read from there when asked for.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{Histogram, Meter},
};

use crate::{
    catalog::Catalog,
    snapshot::store::Store,
    status::election::Leadership,
    stream,
    stream::nodes::Nodes,
    watch::{Reports, object::Kind},
};

/// Bounds of the time from a change to its commit, in seconds. The aim is below 0.1.
const COMMIT_BOUNDS: [f64; 10] = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// What the control loop records.
#[derive(Clone, Debug)]
pub struct Metrics {
    commit_duration: Histogram<f64>,
    problems: Arc<AtomicU64>,
    others: Arc<AtomicU64>,
    unwatched: Arc<Mutex<BTreeSet<Kind>>>,
}

// === impl Metrics ===

impl Metrics {
    /// Makes the instruments. They last as long as the meter's provider.
    pub fn new(meter: &Meter, store: &Arc<Store>, nodes: &Arc<Nodes>) -> Self {
        observe_streams(meter, nodes);
        let read = store.clone();
        meter
            .u64_observable_gauge("portico.control_plane.resources")
            .with_description("Resources in the newest state")
            .with_callback(move |observer| {
                for (kind, count) in stream::counts(&read) {
                    observer.observe(count, &[KeyValue::new("kind", kind.label())]);
                }
            })
            .build();
        let problems = Arc::new(AtomicU64::new(0));
        let read = problems.clone();
        meter
            .u64_observable_gauge("portico.control_plane.problems")
            .with_description("Objects and files with something that was reported instead of obeyed")
            .with_callback(move |observer| observer.observe(read.load(Ordering::Relaxed), &[]))
            .build();
        let others = Arc::new(AtomicU64::new(0));
        let read = others.clone();
        meter
            .u64_observable_gauge("portico.control_plane.skipped_objects")
            .with_description("Manifests of kinds that are not read; the log names the kinds")
            .with_callback(move |observer| observer.observe(read.load(Ordering::Relaxed), &[]))
            .build();
        let unwatched = Arc::new(Mutex::new(BTreeSet::<Kind>::new()));
        let read = unwatched.clone();
        meter
            .u64_observable_gauge("portico.control_plane.watch.failing")
            .with_description("1 for each kind of object that cannot be watched; its last state stays in force")
            .with_callback(move |observer| {
                let unwatched = read.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for kind in Kind::ALL {
                    let failing = u64::from(unwatched.contains(&kind));
                    observer.observe(failing, &[KeyValue::new("kind", kind.as_str())]);
                }
            })
            .build();
        let commit_duration = meter
            .f64_histogram("portico.control_plane.commit.duration")
            .with_description("From the first change of a commit to the commit")
            .with_unit("s")
            .with_boundaries(COMMIT_BOUNDS.to_vec())
            .build();
        Self { commit_duration, problems, others, unwatched }
    }

    /// Notes a commit, and how long its first change waited for it.
    pub fn committed(&self, waited: Duration) {
        self.commit_duration.record(waited.as_secs_f64(), &[]);
    }

    /// Notes how much is wrong, and how much is not read, at present.
    pub fn reported(&self, catalog: &Catalog, reports: &Reports) {
        let count = catalog.problems.len() + catalog.source_problems.len();
        self.problems.store(count as u64, Ordering::Relaxed);
        self.unwatched.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&reports.unwatched);
        self.others.store(reports.others.values().sum(), Ordering::Relaxed);
    }
}

/// Says whether this replica is the one that writes into the cluster.
pub fn observe_leadership(meter: &Meter, leadership: Leadership) {
    meter
        .u64_observable_gauge("portico.leader")
        .with_description("1 for the replica that writes addresses and Events into the cluster")
        .with_callback(move |observer| observer.observe(u64::from(leadership.holds()), &[]))
        .build();
}

fn observe_streams(meter: &Meter, nodes: &Arc<Nodes>) {
    let read = nodes.clone();
    meter
        .u64_observable_gauge("portico.control_plane.streams")
        .with_description("Discovery streams that are open")
        .with_callback(move |observer| observer.observe(read.totals.open.load(Ordering::Relaxed), &[]))
        .build();
    let read = nodes.clone();
    meter
        .u64_observable_counter("portico.control_plane.sent")
        .with_description("Bytes of discovery messages sent")
        .with_unit("By")
        .with_callback(move |observer| observer.observe(read.totals.sent_bytes.load(Ordering::Relaxed), &[]))
        .build();
    let read = nodes.clone();
    meter
        .u64_observable_counter("portico.control_plane.resync")
        .with_description("Discovery streams opened, by how much the agent had to be sent")
        .with_callback(move |observer| {
            for (kind, count) in ["none", "log", "full"].into_iter().zip(&read.totals.resync) {
                observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("kind", kind)]);
            }
        })
        .build();
    let read = nodes.clone();
    meter
        .u64_observable_counter("portico.control_plane.rejected")
        .with_description("Resource versions that agents refused")
        .with_callback(move |observer| observer.observe(read.totals.rejected.load(Ordering::Relaxed), &[]))
        .build();
}
