//! What a list or a watch asks for. Nodes and Services differ here and nowhere else.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use api::{
    proto::health::{
        Bookmark, Health, HealthState, HealthView, NodeHealth, NodeSelector, Reset, ServiceHealth, ServiceSelector,
        WatchNodeHealthResponse, WatchServiceHealthResponse, watch_node_health_response, watch_service_health_response,
    },
    resource::name::NamespacedName,
};
use prost::Message;
use tonic::Status;

use crate::health::{board::Board, verdict::State};

/// A selection of one kind of things.
pub trait Query: Debug + Send + Sync + 'static {
    /// Names a thing.
    type Key: Clone + Ord + Debug + Send + Sync;
    /// A thing.
    type Item: Message + Clone + Default;
    /// One event of a watch.
    type Event: Send;

    /// Hash of the selection, the same in every process.
    fn hash(&self) -> u64;
    /// Hash of all things on a board.
    fn etag(board: &Board) -> &str;
    /// All things that may be selected, each with the revision at which it last differed, in the order of their names.
    fn all<'a>(&self, board: &'a Board) -> Box<dyn Iterator<Item = (&'a Self::Key, u64)> + Send + 'a>;
    /// Those that went after `revision`; `None` if that is too long ago to know.
    fn removed<'a>(
        &self,
        board: &'a Board,
        revision: u64,
    ) -> Option<Box<dyn Iterator<Item = &'a Self::Key> + Send + 'a>>;
    /// Whether there is such a thing, selected or not.
    fn exists(board: &Board, key: &Self::Key) -> bool;
    /// A thing, if it is selected.
    fn item(&self, board: &Board, key: &Self::Key) -> Option<Self::Item>;
    /// The name of a thing on the wire.
    fn name(key: &Self::Key) -> String;
    /// The thing of a name on the wire.
    fn key(name: &str) -> Option<Self::Key>;
    /// Hash of what an item says, times aside.
    fn fingerprint(item: &Self::Item) -> u64;
    /// How well an item does, part by part.
    fn standing(item: &Self::Item) -> Standing;
    /// The event of a thing that is new or differs.
    fn updated(item: Self::Item) -> Self::Event;
    /// The event of a thing that is gone, or selected no longer.
    fn removal(key: &Self::Key) -> Self::Event;
    /// The event that says where a watch stands.
    fn bookmark(bookmark: Bookmark) -> Self::Event;
    /// The event that says that everything is told anew.
    fn reset(reset: Reset) -> Self::Event;
}

/// How well something does: a state for each part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing(BTreeMap<String, (State, u32)>);

/// Selects nodes.
#[derive(Debug)]
pub struct NodeQuery {
    zones: Vec<String>,
    states: Vec<HealthState>,
}

/// Selects Services.
#[derive(Debug)]
pub struct ServiceQuery {
    namespaces: Vec<String>,
    classes: Vec<String>,
    with_backends: bool,
}

/// The node of `nodes/{node}`.
///
/// # Errors
/// `INVALID_ARGUMENT` if it does not have that form.
pub fn node_key(name: &str) -> Result<&str, Status> {
    let node = name.strip_prefix("nodes/").filter(|node| !node.is_empty() && !node.contains('/'));
    node.ok_or_else(|| Status::invalid_argument(format!("name: {name:?} is not of the form nodes/NODE")))
}

/// The Service of `namespaces/{namespace}/services/{service}`.
///
/// # Errors
/// `INVALID_ARGUMENT` if it does not have that form.
pub fn service_key(name: &str) -> Result<NamespacedName, Status> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts[..] {
        ["namespaces", namespace, "services", service] if !namespace.is_empty() && !service.is_empty() => {
            Ok(NamespacedName::new(namespace, service))
        }
        _ => Err(Status::invalid_argument(format!(
            "name: {name:?} is not of the form namespaces/NAMESPACE/services/SERVICE"
        ))),
    }
}

// === impl Standing ===

impl Standing {
    /// Whether some part of it does worse than it did `before`, or is gone.
    pub fn is_worse_than(&self, before: &Standing) -> bool {
        before.0.iter().any(|(part, (state, weight))| match self.0.get(part) {
            Some((now, weight_now)) => now > state || weight_now < weight,
            None => true,
        })
    }
}

fn state(health: Option<&Health>) -> State {
    let wire = health.map_or(HealthState::Unspecified, Health::state);
    State::ALL.into_iter().find(|state| state.wire() == wire).unwrap_or(State::Unknown)
}

/// First eight bytes of BLAKE3.
fn short_hash(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_le_bytes(std::array::from_fn(|index| hash.as_bytes()[index]))
}

fn without_times(health: &mut Option<Health>) {
    if let Some(health) = health {
        (health.state_since, health.observe_time, health.expire_time) = (None, None, None);
    }
}

fn is_selected(selector: &[String], value: &str) -> bool {
    selector.is_empty() || selector.iter().any(|selected| selected == value)
}

// === impl NodeQuery ===

impl NodeQuery {
    /// The selection of a request; without a selector that is everything.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a state that does not exist.
    pub fn new(selector: Option<NodeSelector>) -> Result<Self, Status> {
        let NodeSelector { zones, states } = selector.unwrap_or_default();
        let state = |state: i32| match HealthState::try_from(state) {
            Ok(HealthState::Unspecified) | Err(_) => {
                Err(Status::invalid_argument(format!("selector.states: {state} is not a state")))
            }
            Ok(state) => Ok(state),
        };
        Ok(Self { zones, states: states.into_iter().map(state).collect::<Result<_, Status>>()? })
    }
}

impl Query for NodeQuery {
    type Key = Arc<str>;
    type Item = NodeHealth;
    type Event = WatchNodeHealthResponse;

    fn hash(&self) -> u64 {
        short_hash(format!("nodes {:?} {:?}", self.zones, self.states).as_bytes())
    }

    fn etag(board: &Board) -> &str {
        &board.nodes_etag
    }

    fn all<'a>(&self, board: &'a Board) -> Box<dyn Iterator<Item = (&'a Arc<str>, u64)> + Send + 'a> {
        Box::new(board.nodes.iter().map(|(name, entry)| (name, entry.revision)))
    }

    fn removed<'a>(
        &self,
        board: &'a Board,
        revision: u64,
    ) -> Option<Box<dyn Iterator<Item = &'a Arc<str>> + Send + 'a>> {
        Some(Box::new(board.removed_nodes.since(revision)?))
    }

    fn exists(board: &Board, key: &Arc<str>) -> bool {
        board.nodes.contains_key(key)
    }

    fn item(&self, board: &Board, key: &Arc<str>) -> Option<NodeHealth> {
        let node = board.node(key)?;
        let state = node.health.as_ref().map_or(HealthState::Unspecified, Health::state);
        let selected = is_selected(&self.zones, &node.zone) && (self.states.is_empty() || self.states.contains(&state));
        selected.then_some(node)
    }

    fn name(key: &Arc<str>) -> String {
        format!("nodes/{key}")
    }

    fn key(name: &str) -> Option<Arc<str>> {
        node_key(name).ok().map(Into::into)
    }

    fn fingerprint(item: &NodeHealth) -> u64 {
        let mut item = item.clone();
        without_times(&mut item.health);
        short_hash(&item.encode_to_vec())
    }

    fn standing(item: &NodeHealth) -> Standing {
        Standing([(item.name.clone(), (state(item.health.as_ref()), item.weight))].into())
    }

    fn updated(item: NodeHealth) -> Self::Event {
        WatchNodeHealthResponse { event: Some(watch_node_health_response::Event::Updated(item)) }
    }

    fn removal(key: &Arc<str>) -> Self::Event {
        WatchNodeHealthResponse { event: Some(watch_node_health_response::Event::Removed(Self::name(key))) }
    }

    fn bookmark(bookmark: Bookmark) -> Self::Event {
        WatchNodeHealthResponse { event: Some(watch_node_health_response::Event::Bookmark(bookmark)) }
    }

    fn reset(reset: Reset) -> Self::Event {
        WatchNodeHealthResponse { event: Some(watch_node_health_response::Event::Reset(reset)) }
    }
}

// === impl ServiceQuery ===

impl ServiceQuery {
    /// The selection of a request; without a selector that is everything. `default` is the view if none is asked for.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a view that does not exist.
    pub fn new(selector: Option<ServiceSelector>, view: i32, default: HealthView) -> Result<Self, Status> {
        let ServiceSelector { namespaces, load_balancer_classes } = selector.unwrap_or_default();
        let view = match HealthView::try_from(view) {
            Ok(HealthView::Unspecified) => default,
            Ok(view) => view,
            Err(_) => return Err(Status::invalid_argument(format!("view: {view} is not a view"))),
        };
        Ok(Self { namespaces, classes: load_balancer_classes, with_backends: view == HealthView::Full })
    }
}

impl Query for ServiceQuery {
    type Key = NamespacedName;
    type Item = ServiceHealth;
    type Event = WatchServiceHealthResponse;

    fn hash(&self) -> u64 {
        let Self { namespaces, classes, with_backends } = self;
        short_hash(format!("services {namespaces:?} {classes:?} {with_backends}").as_bytes())
    }

    fn etag(board: &Board) -> &str {
        &board.services_etag
    }

    fn all<'a>(&self, board: &'a Board) -> Box<dyn Iterator<Item = (&'a NamespacedName, u64)> + Send + 'a> {
        // Whatever happens to a node happens to the backends of every Service.
        Box::new(board.services.iter().map(|(name, entry)| (name, entry.revision.max(board.nodes_revision))))
    }

    fn removed<'a>(
        &self,
        board: &'a Board,
        revision: u64,
    ) -> Option<Box<dyn Iterator<Item = &'a NamespacedName> + Send + 'a>> {
        Some(Box::new(board.removed_services.since(revision)?))
    }

    fn exists(board: &Board, key: &NamespacedName) -> bool {
        board.services.contains_key(key)
    }

    fn item(&self, board: &Board, key: &NamespacedName) -> Option<ServiceHealth> {
        let class = &board.services.get(key)?.target.service.load_balancer_class;
        let selected = is_selected(&self.namespaces, &key.namespace) && is_selected(&self.classes, class);
        if selected { board.service(key, self.with_backends) } else { None }
    }

    fn name(key: &NamespacedName) -> String {
        format!("namespaces/{}/services/{}", key.namespace, key.name)
    }

    fn key(name: &str) -> Option<NamespacedName> {
        service_key(name).ok()
    }

    fn fingerprint(item: &ServiceHealth) -> u64 {
        let mut item = item.clone();
        item.backends.iter_mut().for_each(|backend| without_times(&mut backend.health));
        short_hash(&item.encode_to_vec())
    }

    fn standing(item: &ServiceHealth) -> Standing {
        let backend = |backend: &api::proto::health::Backend| {
            (backend.node.clone(), (state(backend.health.as_ref()), backend.weight))
        };
        let mut parts: BTreeMap<_, _> = item.backends.iter().map(backend).collect();
        // The basic view has no backends, but says how many there are. No node has an empty name.
        parts.insert(String::new(), (State::Healthy, item.healthy_backend_count));
        Standing(parts)
    }

    fn updated(item: ServiceHealth) -> Self::Event {
        WatchServiceHealthResponse { event: Some(watch_service_health_response::Event::Updated(item)) }
    }

    fn removal(key: &NamespacedName) -> Self::Event {
        WatchServiceHealthResponse { event: Some(watch_service_health_response::Event::Removed(Self::name(key))) }
    }

    fn bookmark(bookmark: Bookmark) -> Self::Event {
        WatchServiceHealthResponse { event: Some(watch_service_health_response::Event::Bookmark(bookmark)) }
    }

    fn reset(reset: Reset) -> Self::Event {
        WatchServiceHealthResponse { event: Some(watch_service_health_response::Event::Reset(reset)) }
    }
}
