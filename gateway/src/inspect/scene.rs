//! One look at everything, and how each kind of object is seen in it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::{
    delta::{frame::View as _, server::Resync},
    proto::{
        discovery as wire,
        inspect::{AgentState, NodeState, Object, ObjectKey, ObjectKind, object::Kind as Content},
    },
    resource::{Key, Kind},
};
use bytes::Bytes;
use prost::Message as _;
use tokio::time::Instant;

use super::{Sources, problems};
use crate::{
    catalog::Catalog,
    health::{board::Board, report::Report},
    snapshot::store::Store,
    stream::nodes::Connected,
    watch::object::{self, Kind as Input},
};

/// What is asked for: one kind, narrowed by namespace and name where they are not empty.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The kind.
    pub kind: ObjectKind,
    /// Namespace; empty for all. Nodes and agents are in none.
    pub namespace: String,
    /// Name; empty for all. Endpoints may be named by their Service.
    pub name: String,
}

/// Names an object of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Namespace; empty for nodes and agents.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
}

/// What is known beside the resources, at one time.
#[derive(Debug)]
pub struct Scene {
    /// Problems and creation times.
    pub catalog: Catalog,
    board: Option<Arc<Board>>,
    connected: BTreeMap<String, Connected>,
    reports: BTreeMap<Arc<str>, Report>,
    /// How long a report counts.
    term: Duration,
    at: Instant,
    revision: u64,
}

/// The kind of resource behind a kind of object; agents are none.
pub fn resource(kind: ObjectKind) -> Option<Kind> {
    match kind {
        ObjectKind::Service => Some(Kind::Service),
        ObjectKind::Endpoint => Some(Kind::Endpoint),
        ObjectKind::Node => Some(Kind::Node),
        ObjectKind::Agent | ObjectKind::Unspecified => None,
    }
}

// === impl Filter ===

impl Filter {
    /// Whether it covers an object of its kind.
    pub fn covers(&self, name: &Name) -> bool {
        let is_named = |wanted: &str| {
            let service = name.name.split('/').next().unwrap_or_default();
            *name.name == *wanted || (self.kind == ObjectKind::Endpoint && service == wanted)
        };
        let is_namespaced = matches!(self.kind, ObjectKind::Service | ObjectKind::Endpoint);
        (!is_namespaced || self.namespace.is_empty() || *self.namespace == *name.namespace)
            && (self.name.is_empty() || is_named(&self.name))
    }
}

// === impl Name ===

impl Name {
    /// The name of the object that a resource is shown as.
    pub fn of(key: &Key) -> Self {
        match key.name.split_once('/') {
            Some((namespace, name)) if key.kind != Kind::Node => {
                Self { namespace: namespace.into(), name: name.into() }
            }
            _ => Self::global(&key.name),
        }
    }

    /// The name of an object in no namespace.
    pub fn global(name: &str) -> Self {
        Self { namespace: "".into(), name: name.into() }
    }

    /// The key of the resource behind it.
    pub fn key(&self, kind: Kind) -> Key {
        match &*self.namespace {
            "" => Key::new(kind, self.name.clone()),
            namespace => Key::new(kind, format!("{namespace}/{}", self.name)),
        }
    }

    /// The name on the wire.
    pub fn wire(&self) -> ObjectKey {
        ObjectKey { namespace: self.namespace.to_string(), name: self.name.to_string() }
    }
}

// === impl Scene ===

impl Scene {
    /// What is known now that matters for objects of `kind`.
    pub fn of(sources: &Sources, kind: ObjectKind) -> Self {
        let with_agents = matches!(kind, ObjectKind::Node | ObjectKind::Agent);
        Self {
            catalog: sources.catalog.borrow().clone(),
            board: sources.health.boards.borrow().clone(),
            connected: if with_agents { sources.nodes.list() } else { BTreeMap::new() },
            reports: if kind == ObjectKind::Agent { sources.health.reports.list() } else { BTreeMap::new() },
            term: sources.health.reports.term(),
            at: Instant::now(),
            revision: *sources.store.revisions().borrow(),
        }
    }

    /// All objects that a filter covers, by namespace and name, with the resources behind them: one consistent cut.
    pub fn rows(&self, store: &Store, filter: &Filter) -> Vec<(Name, Option<Bytes>)> {
        let mut rows: Vec<(Name, Option<Bytes>)> = match resource(filter.kind) {
            Some(kind) => {
                let state = store.read();
                let rows = state.all(kind).into_iter().map(|it| (Name::of(&it.key), Some(it.body.clone())));
                rows.filter(|(name, _)| filter.covers(name)).collect()
            }
            None => {
                let names = self.connected.keys().map(String::as_str).chain(self.reports.keys().map(|node| &**node));
                names.map(|name| (Name::global(name), None)).filter(|(name, _)| filter.covers(name)).collect()
            }
        };
        rows.sort_by(|(one, _), (other, _)| one.cmp(other));
        rows.dedup_by(|(one, _), (other, _)| one == other);
        rows
    }

    /// An object, with `body` being the resource behind it; `None` if there is none.
    pub fn object(&self, kind: ObjectKind, name: &Name, body: Option<Bytes>) -> Option<Object> {
        let decoded = match kind {
            ObjectKind::Service => Content::Service(wire::Service::decode(body?).ok()?),
            ObjectKind::Endpoint => Content::Endpoint(wire::Endpoint::decode(body?).ok()?),
            ObjectKind::Node => Content::Node(self.node(name, wire::Node::decode(body?).ok()?)),
            ObjectKind::Agent => Content::Agent(self.agent(&name.name)?),
            ObjectKind::Unspecified => return None,
        };
        let source = match kind {
            ObjectKind::Service => Some((Input::Service, &*name.name)),
            // Endpoints come from slices and Pods. People ask for those of a Service, which is as old as they can be.
            ObjectKind::Endpoint => Some((Input::Service, name.name.split('/').next().unwrap_or_default())),
            ObjectKind::Node => Some((Input::Node, &*name.name)),
            ObjectKind::Agent | ObjectKind::Unspecified => None,
        };
        let key = source.map(|(kind, name_of)| object::ObjectKey::new(kind, &*name.namespace, name_of));
        let created = key.as_ref().and_then(|key| self.catalog.created.get(key));
        let own = key.filter(|_| kind != ObjectKind::Endpoint);
        let problems = own.and_then(|key| self.catalog.problems.get(&key)).into_iter().flatten();
        Some(Object {
            key: Some(name.wire()),
            create_time: created.map(|created| (*created).into()),
            problems: problems.map(problems::wire).collect(),
            kind: Some(decoded),
        })
    }

    fn node(&self, name: &Name, node: wire::Node) -> NodeState {
        let entry = self.board.as_ref().and_then(|board| board.nodes.get(&*name.name));
        NodeState {
            node: Some(node),
            agent_connected: self.connected.get(&*name.name).is_some_and(|agent| agent.open),
            health: entry.map_or_else(String::new, |entry| entry.said.verdict.state.title().to_owned()),
        }
    }

    fn agent(&self, node: &str) -> Option<AgentState> {
        let connected = self.connected.get(node);
        let report = self.reports.get(node);
        if connected.is_none() && report.is_none() {
            return None;
        }
        let mut agent = AgentState { node: node.to_owned(), behind: self.revision, ..Default::default() };
        if let Some(connected) = connected {
            agent.connected = connected.open;
            agent.version = connected.agent_version.clone();
            agent.behind = self.revision.saturating_sub(connected.acknowledged);
            agent.rejected_resources = connected.rejections.len() as u64;
            agent.connect_time = Some(connected.since.into());
            agent.peer = connected.peer.clone();
            agent.resync = match connected.resync {
                Resync::None => "none",
                Resync::Log => "log",
                Resync::Full => "full",
            }
            .to_owned();
        }
        if let Some(status) = report.map(|report| &report.status) {
            agent.instance_id = status.instance_id.clone();
            agent.version = status.agent_version.clone();
            agent.acknowledged_resources = status.held.iter().map(|held| held.resource_count).sum();
            agent.faults = status.faults.clone();
            agent.open_listeners = status.open_listeners;
        }
        // The last word of an agent says nothing of now once its lease is over.
        let spoken = report.filter(|report| report.heard.end(self.term) > self.at);
        if let Some(report) = spoken {
            agent.state = report.status.state;
        }
        Some(agent)
    }
}
