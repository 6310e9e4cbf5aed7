//! Things as people see them: the cells of a table row, and a document as Kubernetes would write it.
//!
//! Pure. Each kind has a file that turns the wire's message into a [`Shown`]; everything after works on that.

pub mod agent;
pub mod endpoint;
pub mod health;
pub mod node;
pub mod service;

use super::kind::Kind;
use api::proto::health::NodeHealth;
use api::proto::inspect::{Object, Problem, object};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};
use std::time::SystemTime;

/// What stands in a cell without content, as in kubectl.
pub const NONE: &str = "<none>";

/// One thing on the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An object of the gateway.
    Object(Box<Object>),
    /// The verdict on a node.
    Health(Box<NodeHealth>),
}

/// Where a thing is found: its namespace, empty for what has none, and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace; empty for nodes, agents and health.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// One thing as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Where it is found.
    pub key: Key,
    /// A cell for each column of its kind but the first, which is the name.
    pub cells: Vec<String>,
    /// The whole of it.
    pub document: Value,
    /// What the gateway reported of it instead of obeying it.
    pub warnings: Vec<String>,
}

impl Item {
    /// The name of the item itself on the wire.
    pub fn key(&self) -> Key {
        match self {
            Item::Object(object) => {
                let key = object.key.clone().unwrap_or_default();
                Key { namespace: key.namespace, name: key.name }
            }
            Item::Health(health) => health::key(&health.name),
        }
    }

    /// The name of what it is shown as part of: endpoints are shown together, by Service.
    pub fn group(&self) -> Key {
        match self {
            Item::Object(object) => match &object.kind {
                Some(object::Kind::Endpoint(endpoint)) => {
                    Key { namespace: endpoint.namespace.clone(), name: endpoint.service.clone() }
                }
                _ => self.key(),
            },
            Item::Health(_) => self.key(),
        }
    }
}

/// Shows the items of one group, which all are of `kind`. `None` if the gateway sent something else.
pub fn show<'a>(
    kind: Kind,
    key: &Key,
    items: impl Iterator<Item = &'a Item> + Clone,
    now: SystemTime,
) -> Option<Shown> {
    let objects = items.clone().filter_map(|item| match item {
        Item::Object(object) => Some(&**object),
        Item::Health(_) => None,
    });
    let (cells, document) = match kind {
        Kind::Endpoints => endpoint::show(key, objects.clone(), now)?,
        Kind::Health => match items.clone().next()? {
            Item::Health(health) => health::show(key, health, now),
            Item::Object(_) => return None,
        },
        Kind::Services | Kind::Nodes | Kind::Agents => {
            let object = objects.clone().next()?;
            match (kind, object.kind.as_ref()?) {
                (Kind::Services, object::Kind::Service(service)) => service::show(key, object, service, now),
                (Kind::Nodes, object::Kind::Node(node)) => node::show(key, object, node, now),
                (Kind::Agents, object::Kind::Agent(agent)) => agent::show(key, agent, now),
                _ => return None,
            }
        }
    };
    let subject = match key.namespace.as_str() {
        "" => format!("{} {}", kind.plural(), key.name),
        namespace => format!("{} {namespace}/{}", kind.plural(), key.name),
    };
    let warnings =
        objects.flat_map(|object| &object.problems).map(|problem| warning(Some(&subject), problem)).collect();
    Some(Shown { key: key.clone(), cells, document: prune(document).unwrap_or_default(), warnings })
}

/// A problem as one line, after `warning: `.
pub fn warning(subject: Option<&str>, Problem { reason, message }: &Problem) -> String {
    let text = match subject {
        Some(subject) => format!("{subject}: {reason}: {message}"),
        None => format!("{reason}: {message}"),
    };
    plain(&text)
}

/// Text without control characters: what a manifest says must not steer the terminal.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { character.escape_default().to_string() } else { character.into() })
        .collect()
}

/// `metadata` with what is known of it.
fn metadata(key: &Key, created: Option<&Timestamp>) -> Value {
    json!({
        "name": key.name,
        "namespace": key.namespace,
        "creationTimestamp": created.map(ToString::to_string),
    })
}

/// A number where 0 means that there is none.
fn some(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

/// A list as one cell.
fn join(list: &[String]) -> String {
    if list.is_empty() { NONE.into() } else { list.join(",") }
}

/// Text as a cell.
fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.into() } else { plain(text) }
}

/// Drops fields without content, as Kubernetes does: null, empty strings, lists and objects. Numbers and booleans stay.
fn prune(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then_some(Value::String(text)),
        Value::Array(items) => {
            let items: Vec<Value> = items.into_iter().filter_map(prune).collect();
            (!items.is_empty()).then_some(Value::Array(items))
        }
        Value::Object(fields) => {
            let fields: Map<String, Value> =
                fields.into_iter().filter_map(|(name, value)| Some((name, prune(value)?))).collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        scalar => Some(scalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_no_empty_fields() {
        let value = json!({"a": "", "b": [], "c": {"d": null, "e": {"f": [""]}}, "g": 0, "h": false, "i": ["x"]});
        assert_eq!(prune(value), Some(json!({"g": 0, "h": false, "i": ["x"]})));
        assert_eq!(prune(json!({"a": {}})), None);
    }

    #[test]
    fn text_cannot_steer_the_terminal() {
        let problem = Problem { reason: "BAD".into(), message: "line\n\u{1b}[2J é".into() };
        assert_eq!(warning(Some("services a/b"), &problem), "services a/b: BAD: line\\n\\u{1b}[2J é");
        assert_eq!(warning(None, &Problem { reason: "R".into(), message: "m".into() }), "R: m");
    }
}
