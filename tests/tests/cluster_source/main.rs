//! The Kubernetes source against a real API server that is cut off, slow, restarted and forgetful. These tests need root;
//! `scripts/test cluster` runs them. They share one cluster.

/// The way to the API server.
mod tap;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gateway::watch::{
    Batch, Reports, kube as source,
    object::{Event, Kind, Object, ObjectKey},
};
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tests::sandbox::{Sandbox, shared};
use tokio::sync::{RwLock, mpsc};

use tap::Tap;

/// Nothing that is waited for takes this long, bookmarks excepted.
const PATIENCE: Duration = Duration::from_secs(120);
/// The API server sends bookmarks once a minute.
const BOOKMARK: Duration = Duration::from_secs(90);

/// Whoever stops the API server writes.
static API_SERVER: RwLock<()> = RwLock::const_new(());

/// What a source has told, as a gateway keeps it.
struct Gateway {
    batches: mpsc::Receiver<Batch>,
    objects: BTreeMap<ObjectKey, Object>,
    /// How often all objects of a kind were told.
    resets: BTreeMap<Kind, usize>,
    reports: Arc<Reports>,
}

// === impl Gateway ===

impl Gateway {
    /// Watches through a way, until everything was listed once.
    async fn start(tap: &Tap) -> Self {
        let (send, batches) = mpsc::channel(64);
        tokio::spawn(source::Source::new(tap.client()).run(send));
        let mut this = Self { batches, objects: BTreeMap::new(), resets: BTreeMap::new(), reports: Arc::default() };
        // Endpoints are not watched.
        this.until("every kind is listed", |this| this.resets.len() == Kind::ALL.len() - 1).await;
        this
    }

    /// Takes in what comes until something is so.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !done(self) {
                let batch = self.batches.recv().await.expect("the source goes on");
                batch.events.into_iter().for_each(|event| self.take(event));
                self.reports = batch.reports.unwrap_or_else(|| self.reports.clone());
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("waited in vain until {what}; reports: {:?}", self.reports));
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Reset(kind, objects) => {
                *self.resets.entry(kind).or_default() += 1;
                self.objects.retain(|key, _| key.kind != kind);
                objects.into_iter().for_each(|object| self.take(Event::Apply(object)));
            }
            Event::Apply(object) => drop(self.objects.insert(object.key(), object)),
            Event::Delete(key) => drop(self.objects.remove(&key)),
        }
    }

    /// The first port of a Service, which is what is changed here.
    fn port(&self, service: &str) -> Option<i32> {
        let Object::Service(service) = self.objects.get(&ObjectKey::new(Kind::Service, "default", service))? else {
            return None;
        };
        Some(service.spec.as_ref()?.ports.as_ref()?.first()?.port)
    }

    fn has(&self, service: &str) -> bool {
        self.port(service).is_some()
    }
}

/// Changes Services directly.
async fn services() -> (&'static Sandbox, Api<Service>) {
    let sandbox = shared::get().await;
    (sandbox, Api::namespaced(sandbox.client().await.expect("a client"), "default"))
}

/// Makes a Service with port 80, and gives its version.
async fn create(services: &Api<Service>, name: &str) -> u64 {
    let service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
    let service = serde_json::from_value(service).expect("a Service");
    let made = services.create(&PostParams::default(), &service).await;
    let version = made.unwrap_or_else(|error| panic!("{name}: {error}")).metadata.resource_version;
    version.expect("it has one").parse().expect("a number")
}

async fn change(services: &Api<Service>, name: &str, port: i32) {
    let patch = Patch::Merge(json!({ "spec": { "ports": [{ "port": port }] } }));
    services.patch(name, &PatchParams::default(), &patch).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

async fn delete(services: &Api<Service>, name: &str) {
    services.delete(name, &DeleteParams::default()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// The versions from which a kind was watched, in the order of the requests.
fn resumed(tap: &Tap, plural: &str) -> Vec<u64> {
    let path = format!("/{plural}?");
    let watches = |target: &&String| target.contains(&path) && target.contains("watch=true");
    let version = |target: &String| {
        let (_, rest) = target.split_once("resourceVersion=")?;
        rest.split('&').next()?.parse().ok()
    };
    tap.passed().requests.iter().filter(watches).filter_map(version).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_cut_goes_on_where_it_was() {
    let (_, services) = services().await;
    let _running = API_SERVER.read().await;
    let tap = Tap::open().await;
    let mut gateway = Gateway::start(&tap).await;
    let seen = create(&services, "cut-before").await;
    gateway.until("the first Service comes", |gateway| gateway.has("cut-before")).await;
    tap.close(true);
    create(&services, "cut-meanwhile").await;
    delete(&services, "cut-before").await;
    tap.close(false);
    let both = |gateway: &Gateway| gateway.has("cut-meanwhile") && !gateway.has("cut-before");
    gateway.until("what happened meanwhile comes", both).await;
    assert_eq!(gateway.resets[&Kind::Service], 1, "nothing was listed again");
    let resumed = resumed(&tap, "services");
    assert!(resumed.len() >= 2 && *resumed.last().expect("two") >= seen, "{seen}: {resumed:?}");
    // Of kinds that were quiet it says so a minute later.
    assert!(!gateway.reports.unwatched.contains(&Kind::Service), "{:?}", gateway.reports);
    delete(&services, "cut-meanwhile").await;
}

/// Nothing changes among Secrets here, so without bookmarks the version to go on from would be as old as the list, and the
/// API server would have forgotten it after a while.
#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_keep_the_version_of_a_quiet_kind_young() {
    let _ = services().await;
    let _running = API_SERVER.read().await;
    let tap = Tap::open().await;
    let gateway = Gateway::start(&tap).await;
    let quiet = |target: &str| target.contains("/secrets?");
    let waiting = async {
        loop {
            let bookmark = tap.passed().bookmarks.into_iter().rfind(|(target, _)| quiet(target));
            if let Some((_, version)) = bookmark {
                return version.parse::<u64>().expect("a version");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let bookmark = tokio::time::timeout(BOOKMARK, waiting).await.expect("the API server sends bookmarks");
    let before = resumed(&tap, "secrets");
    assert!(before.iter().all(|version| *version < bookmark), "{before:?}: {bookmark}");
    tap.cut();
    let again = async {
        while resumed(&tap, "secrets").len() == before.len() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the watch begins again");
    assert!(
        resumed(&tap, "secrets").last().is_some_and(|version| *version >= bookmark),
        "it goes on from the bookmark"
    );
    assert_eq!(gateway.resets[&Kind::Secret], 1, "nothing was listed again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_api_server_is_waited_for() {
    const MANY: usize = 60;
    let (_, services) = services().await;
    let _running = API_SERVER.read().await;
    let names: Vec<String> = (0..MANY).map(|number| format!("slow-{number}")).collect();
    for name in &names {
        create(&services, name).await;
    }
    let tap = Tap::open().await;
    // Ten KiB a second, and the list has more than forty.
    tap.slow(Duration::from_millis(200));
    let begun = std::time::Instant::now();
    let mut gateway = Gateway::start(&tap).await;
    assert!(begun.elapsed() > Duration::from_secs(4), "the list took {:?} only", begun.elapsed());
    assert!(names.iter().all(|name| gateway.has(name)), "every Service is in the list");
    assert!(gateway.reports.source.is_empty(), "slow is not broken: {:?}", gateway.reports);
    change(&services, &names[0], 81).await;
    gateway.until("a change comes", |gateway| gateway.port(&names[0]) == Some(81)).await;
    for name in &names {
        delete(&services, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_with_forgotten_history_everything_is_as_it_is() {
    let (sandbox, services) = services().await;
    let _alone = API_SERVER.write().await;
    let tap = Tap::open().await;
    let mut gateway = Gateway::start(&tap).await;
    for name in ["lost-deleted", "lost-changed", "lost-kept"] {
        create(&services, name).await;
    }
    gateway.until("all Services come", |gateway| gateway.has("lost-kept")).await;
    let kept = gateway.objects.clone();

    // It misses three changes and the history of them.
    tap.close(true);
    delete(&services, "lost-deleted").await;
    create(&services, "lost-new").await;
    change(&services, "lost-changed", 81).await;
    let api = sandbox.cluster();
    api.stop_apiserver().expect("the API server ends");
    api.compact().await.expect("etcd forgets");
    gateway.until("the outage is reported", |gateway| gateway.reports.unwatched.contains(&Kind::Service)).await;
    assert_eq!(gateway.objects, kept, "the last state seen stays in force");
    assert!(gateway.reports.source.iter().all(|problem| problem.reason == "WATCH_FAILED"), "{:?}", gateway.reports);
    api.start_apiserver().await.expect("the API server starts");
    tap.close(false);

    let as_it_is = |gateway: &Gateway| {
        !gateway.has("lost-deleted") && gateway.has("lost-new") && gateway.port("lost-changed") == Some(81)
    };
    gateway.until("everything is as it is", as_it_is).await;
    assert_eq!(gateway.resets[&Kind::Service], 2, "410 Gone leads to a new list, and to one only");
    assert!(gateway.has("lost-kept"));
    gateway.until("no complaint is left", |gateway| gateway.reports.source.is_empty()).await;
    for name in ["lost-changed", "lost-kept", "lost-new"] {
        delete(&services, name).await;
    }
}
