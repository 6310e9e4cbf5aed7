//! When changes are committed, on a clock that only moves when everybody waits for it.

use api::{
    delta::frame::View,
    proto::discovery::ListResourcesRequest,
    resource::{
        hop_keys::{HopKey, HopKeys},
        settings::Settings,
    },
};
use k8s_openapi::{
    api::{
        core::v1::{Node, Service, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use runtime::ready::Readiness;

use super::*;
use crate::{
    emulate::slices::SERVICE_NAME,
    model::{endpoint::Reach, service::Policy, world::Ownership},
    problem::Problem,
    stream::{list::page, nodes::Nodes},
    watch::object::{Event, Object},
};

struct Fixture {
    store: Arc<Store>,
    batches: mpsc::Sender<Batch>,
    revisions: watch::Receiver<u64>,
    catalog: watch::Receiver<Catalog>,
    readiness: Readiness,
    began: Instant,
}

fn start() -> Fixture {
    start_with(|control| control)
}

fn start_with(change: impl FnOnce(Control) -> Control) -> Fixture {
    let config = Config {
        settings: Settings { cluster_domain: "cluster.local".to_owned(), service_cidrs: vec![], node_ports: (1, 2) },
        ownership: Ownership::AllButForeign,
        reach: Reach::Machine,
        policy: Policy::default(),
    };
    let (store, readiness) = (Arc::new(Store::new()), Readiness::new());
    let metrics = Metrics::new(&opentelemetry::global::meter("test"), &store, &Arc::new(Nodes::default()));
    let revisions = store.revisions();
    let (control, catalog) = Control::new(config, store.clone(), metrics, readiness.latch("sources listed"));
    let (batches, received) = mpsc::channel(16);
    tokio::spawn(change(control).run(received));
    Fixture { store, batches, revisions, catalog, readiness, began: Instant::now() }
}

impl Fixture {
    async fn send(&self, events: Vec<Event>) {
        self.batches.send(Batch { events, reports: None }).await.expect("the loop runs");
    }

    /// Everything is listed: one Service, with one endpoint that is ready.
    async fn listed(mut self) -> Self {
        for kind in Kind::ALL {
            assert_eq!(*self.revisions.borrow(), 0, "nothing is published before everything was listed");
            let objects = match kind {
                Kind::Service => vec![service()],
                Kind::EndpointSlice => vec![slice(true)],
                _ => vec![],
            };
            self.send(vec![Event::Reset(kind, objects)]).await;
        }
        self.committed().await;
        self.began = Instant::now();
        self
    }

    /// Waits for the next commit; how many milliseconds after the start that is.
    async fn committed(&mut self) -> u128 {
        self.revisions.changed().await.expect("the store is there");
        self.revisions.borrow_and_update();
        self.began.elapsed().as_millis()
    }
}

fn service() -> Object {
    let spec = ServiceSpec { cluster_ip: Some("10.96.0.1".to_owned()), ..Default::default() };
    Service { metadata: named("s"), spec: Some(spec), status: None }.into()
}

fn slice(ready: bool) -> Object {
    let mut metadata = named("e");
    metadata.labels = Some([(SERVICE_NAME.to_owned(), "s".to_owned())].into());
    let conditions = Some(EndpointConditions { ready: Some(ready), ..Default::default() });
    let endpoint = Endpoint { addresses: vec!["10.0.0.1".to_owned()], conditions, ..Default::default() };
    EndpointSlice { metadata, address_type: "IPv4".to_owned(), endpoints: Some(vec![endpoint]), ports: None }.into()
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some("default".to_owned()), ..Default::default() }
}

fn node(number: u128) -> Event {
    let metadata = ObjectMeta { name: Some(format!("n{number}")), ..Default::default() };
    Event::Apply(Node { metadata, ..Default::default() }.into())
}

#[tokio::test(start_paused = true)]
async fn the_first_commit_comes_when_every_kind_was_listed_and_makes_the_process_ready() {
    let fixture = start();
    assert_eq!(fixture.readiness.pending(), ["sources listed"]);
    let fixture = fixture.listed().await;
    fixture.readiness.wait().await;
    assert_eq!(fixture.began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_committed_after_a_little_quiet() {
    let mut fixture = start().listed().await;
    fixture.send(vec![node(1)]).await;
    // The timer of tokio has a resolution of a millisecond.
    assert!((20..=21).contains(&fixture.committed().await));
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_changes_is_committed_now_and_then() {
    let mut fixture = start().listed().await;
    let mut commits = Vec::new();
    for number in 0..30 {
        fixture.send(vec![node(number)]).await;
        // Ten milliseconds for each change, which is never quiet for long enough.
        let next = fixture.began + Duration::from_millis(10 * (number as u64 + 1));
        while let Ok(at) = tokio::time::timeout_at(next, fixture.committed()).await {
            commits.push(at);
        }
    }
    assert!(!commits.is_empty() && commits.len() <= 4, "{commits:?}");
    assert!(commits[0] <= 101, "{commits:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_takes_no_connections_any_more_does_not_wait() {
    let mut fixture = start().listed().await;
    fixture.send(vec![node(1)]).await;
    fixture.send(vec![Event::Apply(slice(false))]).await;
    assert_eq!(fixture.committed().await, 0, "and takes along what waited");
    fixture.send(vec![Event::Apply(slice(true))]).await;
    assert!(fixture.committed().await >= 20);
}

#[tokio::test(start_paused = true)]
async fn problems_are_published_although_no_resource_changes() {
    let mut fixture = start().listed().await;
    let mut reports = Reports { source: vec![Problem::new("BROKEN_FILE", "a.yaml: is broken")], ..Reports::default() };
    let key = ObjectKey::new(Kind::Service, "default", "s");
    reports.objects.insert(key.clone(), vec![Problem::new("NODE_PORT_CONFLICT", "is taken")]);
    let batch = |reports: Reports| Batch { events: vec![], reports: Some(Arc::new(reports)) };
    fixture.catalog.borrow_and_update();
    fixture.batches.send(batch(reports)).await.expect("the loop runs");
    fixture.catalog.changed().await.expect("the loop runs");
    let catalog = fixture.catalog.borrow_and_update().clone();
    assert_eq!((catalog.source_problems.len(), catalog.problems[&key].len()), (1, 1));
    fixture.batches.send(batch(Reports::default())).await.expect("the loop runs");
    fixture.catalog.changed().await.expect("the loop runs");
    assert_eq!(*fixture.catalog.borrow(), Catalog::default());
    assert_eq!(*fixture.revisions.borrow(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_kind_from_being_listed_is_told_before_everything_is() {
    let mut fixture = start();
    let source = vec![Problem::new("WATCH_FAILED", "cannot watch objects of kind Secret")];
    let reports = Some(Arc::new(Reports { source: source.clone(), ..Reports::default() }));
    fixture.batches.send(Batch { events: vec![], reports }).await.expect("the loop runs");
    fixture.catalog.changed().await.expect("the loop runs");
    assert_eq!(*fixture.catalog.borrow().source_problems, source);
    assert_eq!(*fixture.revisions.borrow(), 0, "nothing is published");
}

fn hop_keys(byte: u8) -> HopKeys {
    HopKeys { current: HopKey([byte; 32]), accepted: vec![] }
}

#[tokio::test(start_paused = true)]
async fn keys_of_agents_are_waited_for_and_follow_the_secret() {
    let (sender, keys) = watch::channel(Known::Unread);
    let mut fixture = start_with(|control| control.with_hop_keys(keys));
    for kind in Kind::ALL {
        fixture.send(vec![Event::Reset(kind, vec![])]).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*fixture.revisions.borrow(), 0, "agents would lose the keys that they hold");
    sender.send_replace(Known::Keys(hop_keys(1)));
    fixture.committed().await;
    let published = |store: &Store| {
        let state = store.read();
        let wires: Vec<_> = state.all(api::resource::Kind::HopKeys).iter().map(|encoded| encoded.to_wire()).collect();
        assert_eq!(wires.len(), 1);
        Resource::decode(api::resource::Kind::HopKeys, wires[0].body.clone()).expect("ours")
    };
    assert_eq!(published(&fixture.store), Resource::HopKeys(hop_keys(1)));
    sender.send_replace(Known::Keys(hop_keys(2)));
    fixture.committed().await;
    assert_eq!(published(&fixture.store), Resource::HopKeys(hop_keys(2)));

    let request = ListResourcesRequest { r#type: api::resource::Kind::HopKeys.wire().into(), ..Default::default() };
    let listed = page(&fixture.store.read(), &request).expect("a page");
    assert!(listed.resources[0].body.is_empty(), "keys are shown to agents only");
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_read_hold_nothing_up() {
    let (sender, keys) = watch::channel(Known::Unread);
    let fixture = start_with(|control| control.with_hop_keys(keys));
    sender.send_replace(Known::Unavailable);
    let fixture = fixture.listed().await;
    assert!(fixture.store.read().all(api::resource::Kind::HopKeys).is_empty());
}
