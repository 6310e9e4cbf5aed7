use std::{collections::BTreeMap, future::Future, time::Duration};

use api::{
    delta::server::Resync,
    proto::{
        inspect::{
            AgentState, NodeState, Object, ObjectKey as WireKey, object::Kind as Content, watch_objects_response::Event,
        },
        node::NodeServingState::{self, Draining, Serving},
    },
    resource::{Key, Kind, service::TrafficPolicy},
};
use futures::StreamExt as _;

use super::*;
use crate::{
    health::{
        Config,
        fixture::{endpoint, fault, node, place, request, serve, service, set, status},
        moment::Moment,
    },
    identity::peer::Peer,
    problem::Problem,
    snapshot::store::Change,
    watch::object::{Kind as Input, ObjectKey},
};

/// Far more than anything takes here; a test that waits for it has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// A gateway without ports.
struct Gateway {
    inspect: Inspect,
    catalog: watch::Sender<Catalog>,
    _trigger: drain::Trigger,
}

/// What a reader of a watch knows.
struct Reader {
    events: ReceiverStream<Result<WatchObjectsResponse, Status>>,
    objects: BTreeMap<String, Object>,
    synced: bool,
}

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, event).await.unwrap_or_else(|_| panic!("{what} did not happen within {LIMIT:?}"))
}

// === impl Gateway ===

impl Gateway {
    fn start(changes: impl IntoIterator<Item = Change>) -> Self {
        Self::with_lease(Duration::from_secs(3600), changes)
    }

    fn with_lease(lease: Duration, changes: impl IntoIterator<Item = Change>) -> Self {
        let store = Arc::new(Store::new());
        let (trigger, drain) = drain::channel();
        let config = Config { lease, replica_id: "r".into() };
        let (health, judge) = Health::new(config, store.clone(), drain.clone());
        tokio::spawn(judge.run());
        let (catalog, receiver) = watch::channel(Catalog::default());
        store.commit(changes);
        let sources = Sources { store, nodes: Arc::default(), catalog: receiver, health };
        Self { inspect: Inspect::new(sources, drain), catalog, _trigger: trigger }
    }

    async fn list(&self, kind: ObjectKind, namespace: &str, name: &str) -> ListObjectsResponse {
        let request = ListObjectsRequest { kind: kind as i32, namespace: namespace.into(), name: name.into() };
        self.inspect.list_objects(Request::new(request)).await.unwrap().into_inner()
    }

    async fn names(&self, kind: ObjectKind, namespace: &str, name: &str) -> Vec<String> {
        self.list(kind, namespace, name)
            .await
            .objects
            .iter()
            .map(|object| title(object.key.as_ref().unwrap()))
            .collect()
    }

    async fn watch(&self, kind: ObjectKind) -> Reader {
        let request = WatchObjectsRequest { kind: kind as i32, ..Default::default() };
        let events = self.inspect.watch_objects(Request::new(request)).await.unwrap().into_inner();
        Reader { events, objects: BTreeMap::new(), synced: false }
    }

    fn note(&self, key: ObjectKey, problem: &'static str) {
        let problems = BTreeMap::from([(key, vec![Problem::new(problem, "is wrong")])]);
        self.catalog.send_modify(|catalog| catalog.problems = Arc::new(problems));
    }

    fn commit(&self, changes: impl IntoIterator<Item = Change>) {
        self.inspect.sources.store.commit(changes);
    }
}

// === impl Reader ===

impl Reader {
    /// Reads until what is known is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            let event = soon(what, self.events.next()).await.expect("the watch goes on").unwrap().event;
            match event.expect("an event is never empty") {
                Event::Updated(object) => {
                    let title = title(object.key.as_ref().unwrap());
                    assert_ne!(self.objects.get(&title), Some(&object), "nothing is told twice");
                    self.objects.insert(title, object);
                }
                Event::Removed(key) => {
                    assert!(self.objects.remove(&title(&key)).is_some(), "only what was told is removed");
                }
                Event::Synced(_) => self.synced = true,
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    fn node(&self, name: &str) -> Option<&NodeState> {
        match self.objects.get(name)?.kind.as_ref()? {
            Content::Node(node) => Some(node),
            other => panic!("not a node: {other:?}"),
        }
    }

    fn agent(&self, name: &str) -> Option<&AgentState> {
        match self.objects.get(name)?.kind.as_ref()? {
            Content::Agent(agent) => Some(agent),
            other => panic!("not an agent: {other:?}"),
        }
    }
}

fn title(key: &WireKey) -> String {
    if key.namespace.is_empty() { key.name.clone() } else { format!("{}/{}", key.namespace, key.name) }
}

fn in_namespace(namespace: &str, name: &str) -> Change {
    let mut service = service(name, TrafficPolicy::Cluster);
    service.name = api::resource::name::NamespacedName::new(namespace, name);
    serve(service)
}

#[tokio::test]
async fn lists_are_sorted_and_narrowed() {
    let gateway = Gateway::start([
        in_namespace("a-b", "x"),
        in_namespace("a", "y"),
        in_namespace("a", "x"),
        place(endpoint("web", 1, "n1")),
        place(endpoint("web", 2, "n1")),
        place(endpoint("db", 3, "n1")),
        set(node("n1")),
    ]);
    let services = ObjectKind::Service;
    assert_eq!(gateway.names(services, "", "").await, ["a/x", "a/y", "a-b/x"]);
    assert_eq!(gateway.names(services, "a", "").await, ["a/x", "a/y"]);
    assert_eq!(gateway.names(services, "", "x").await, ["a/x", "a-b/x"]);
    assert_eq!(gateway.names(services, "b", "x").await, Vec::<String>::new());
    let endpoints = ObjectKind::Endpoint;
    assert_eq!(
        gateway.names(endpoints, "default", "web").await,
        ["default/web/ipv4/10.1.0.1", "default/web/ipv4/10.1.0.2"]
    );
    assert_eq!(gateway.names(endpoints, "", "db/ipv4/10.1.0.3").await, ["default/db/ipv4/10.1.0.3"]);
    assert_eq!(gateway.names(ObjectKind::Node, "ignored", "").await, ["n1"]);
    assert_eq!(gateway.names(ObjectKind::Agent, "", "").await, Vec::<String>::new());
    let unknown = ListObjectsRequest::default();
    let status = gateway.inspect.list_objects(Request::new(unknown)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn problems_stand_with_their_object_or_with_the_list() {
    let gateway = Gateway::start([serve(service("web", TrafficPolicy::Cluster))]);
    let created = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let key = |kind, namespace: &str, name: &str| ObjectKey::new(kind, namespace, name);
    let problem = |reason| vec![Problem::new(reason, "is wrong")];
    gateway.catalog.send_replace(Catalog {
        problems: Arc::new(BTreeMap::from([
            (key(Input::Service, "default", "web"), problem("OF_WEB")),
            (key(Input::Service, "default", "foreign"), problem("OF_FOREIGN")),
            (key(Input::Pod, "default", "pod"), problem("OF_POD")),
            (key(Input::Secret, "other", "tls"), problem("OF_SECRET")),
        ])),
        source_problems: Arc::new(problem("OF_SOURCE")),
        created: Arc::new(BTreeMap::from([(key(Input::Service, "default", "web"), created)])),
    });
    let reasons = |problems: &[api::proto::inspect::Problem]| -> Vec<String> {
        problems.iter().map(|problem| problem.reason.clone()).collect()
    };
    let services = gateway.list(ObjectKind::Service, "", "").await;
    assert_eq!(reasons(&services.objects[0].problems), ["OF_WEB"]);
    assert_eq!(services.objects[0].create_time, Some(created.into()));
    assert_eq!(reasons(&services.problems), ["OF_SOURCE", "OF_FOREIGN", "OF_SECRET"]);
    assert_eq!(services.problems[1].message, "Service default/foreign: is wrong");
    assert_eq!(reasons(&gateway.list(ObjectKind::Service, "default", "").await.problems), ["OF_SOURCE", "OF_FOREIGN"]);
    assert_eq!(reasons(&gateway.list(ObjectKind::Endpoint, "", "").await.problems), ["OF_SOURCE", "OF_POD"]);
    assert_eq!(reasons(&gateway.list(ObjectKind::Node, "", "").await.problems), ["OF_SOURCE"]);
}

#[tokio::test]
async fn a_watch_of_services_follows_resources_and_problems() {
    let gateway = Gateway::start([serve(service("web", TrafficPolicy::Cluster))]);
    let mut reader = gateway.watch(ObjectKind::Service).await;
    reader.until("the start", |reader| reader.synced).await;
    assert_eq!(reader.names(), ["default/web"]);
    gateway.commit([serve(service("db", TrafficPolicy::Local)), set(node("n1"))]);
    reader.until("the new Service", |reader| reader.names() == ["default/db", "default/web"]).await;
    gateway.note(ObjectKey::new(Input::Service, "default", "db"), "BROKEN");
    reader.until("the problem", |reader| reader.objects["default/db"].problems.len() == 1).await;
    gateway.note(ObjectKey::new(Input::Service, "default", "web"), "BROKEN");
    reader.until("the other problem", |reader| reader.objects["default/web"].problems.len() == 1).await;
    reader.until("that the first is solved", |reader| reader.objects["default/db"].problems.is_empty()).await;
    gateway.commit([Change::Remove(Key::new(Kind::Service, "default/web"))]);
    reader.until("the removal", |reader| reader.names() == ["default/db"]).await;
}

#[tokio::test]
async fn a_watch_of_endpoints_follows_each_of_them() {
    let gateway = Gateway::start([place(endpoint("web", 1, "n1")), place(endpoint("web", 2, "n1"))]);
    let mut reader = gateway.watch(ObjectKind::Endpoint).await;
    reader.until("the start", |reader| reader.synced).await;
    assert_eq!(reader.names().len(), 2);
    gateway.commit([Change::Remove(Key::new(Kind::Endpoint, "default/web/ipv4/10.1.0.1"))]);
    reader.until("the removal", |reader| reader.names() == ["default/web/ipv4/10.1.0.2"]).await;
}

#[tokio::test]
async fn nodes_show_their_agent_and_verdict() {
    let gateway = Gateway::start([set(node("n1"))]);
    let mut reader = gateway.watch(ObjectKind::Node).await;
    reader.until("the start", |reader| reader.synced).await;
    let Sources { nodes, health, .. } = gateway.inspect.sources.clone();
    let entry = nodes.enter("n1".into(), "0.1.0".into(), &Peer::anyone("127.0.0.1:5", Arc::default()), Resync::Full);
    reader.until("the agent", |reader| reader.node("n1").unwrap().agent_connected).await;
    let agent = health.reports.open(request(status("n1", "a", Serving)), Moment::now()).unwrap();
    reader.until("the verdict", |reader| reader.node("n1").unwrap().health == "Healthy").await;
    agent.report(request(status("n1", "a", Draining)), Moment::now()).unwrap();
    reader.until("the next verdict", |reader| reader.node("n1").unwrap().health == "Draining").await;
    drop(entry);
    reader.until("that the agent is gone", |reader| !reader.node("n1").unwrap().agent_connected).await;
}

#[tokio::test]
async fn agents_show_what_is_known_from_both_of_their_streams() {
    let gateway = Gateway::start([set(node("n1")), serve(service("web", TrafficPolicy::Cluster))]);
    let Sources { nodes, health, store, .. } = gateway.inspect.sources.clone();
    let mut reader = gateway.watch(ObjectKind::Agent).await;
    reader.until("the start", |reader| reader.synced).await;
    assert!(reader.names().is_empty());

    let entry = nodes.enter("n1".into(), "0.1.0".into(), &Peer::anyone("127.0.0.1:5", Arc::default()), Resync::Full);
    reader.until("the agent", |reader| reader.names() == ["n1"]).await;
    let agent = reader.agent("n1").unwrap();
    assert_eq!((agent.connected, agent.behind, &*agent.resync, &*agent.peer), (true, 1, "full", "127.0.0.1:5"));

    let held = api::proto::discovery::TypeDigest { resource_count: 2, ..Default::default() };
    let said = api::proto::node::NodeStatus {
        agent_version: "0.1.0".into(),
        open_listeners: 3,
        faults: vec![fault("web", "PORT_IN_USE")],
        held: vec![held.clone(), held],
        ..status("n1", "instance", Serving)
    };
    let _reporter = health.reports.open(request(said), Moment::now()).unwrap();
    entry.as_ref().expect("is let in").acknowledged(*store.revisions().borrow(), vec![]);
    reader.until("the report", |reader| reader.agent("n1").is_some_and(|agent| agent.open_listeners == 3)).await;
    reader.until("the acknowledgement", |reader| reader.agent("n1").is_some_and(|agent| agent.behind == 0)).await;
    let agent = reader.agent("n1").unwrap();
    assert_eq!((&*agent.instance_id, agent.state(), agent.acknowledged_resources), ("instance", Serving, 4));
    assert_eq!((agent.faults.len(), agent.rejected_resources), (1, 0));
    drop(entry);
    reader.until("the end of the stream", |reader| !reader.agent("n1").unwrap().connected).await;
    assert_eq!(gateway.names(ObjectKind::Agent, "", "").await, ["n1"], "it is remembered");
}

#[tokio::test(start_paused = true)]
async fn the_last_word_of_an_agent_is_over_with_its_lease() {
    let gateway = Gateway::with_lease(Duration::from_secs(15), [set(node("n1"))]);
    let health = gateway.inspect.sources.health.clone();
    let _reporter = health.reports.open(request(status("n1", "a", Serving)), Moment::now()).unwrap();
    let mut reader = gateway.watch(ObjectKind::Agent).await;
    reader.until("the report", |reader| reader.agent("n1").is_some_and(|agent| agent.state() == Serving)).await;
    let is_over = |reader: &Reader| reader.agent("n1").unwrap().state() == NodeServingState::Unspecified;
    reader.until("the end of the lease", is_over).await;
}
