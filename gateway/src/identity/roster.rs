//! Which Pods are agents, and which Nodes there are: what a credential was bound to may be gone before it expires.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::sync::{mpsc, watch};

use super::Account;
use crate::watch::{
    Batch,
    object::{Event, Kind, Object, ObjectKey},
};

/// The Pods of the agents' account, and all Nodes, as the watches of the gateway show them.
#[derive(Debug)]
pub struct Roster {
    account: Account,
    known: watch::Sender<Known>,
}

/// Names a Pod for ever: another one of the same name has another UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// In the namespace of the account.
    pub name: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
}

/// What is known at one moment.
#[derive(Debug, Default)]
pub struct Known {
    pods: HashMap<Arc<str>, AgentPod>,
    nodes: HashSet<Arc<str>>,
}

#[derive(Debug, PartialEq, Eq)]
struct AgentPod {
    uid: Arc<str>,
    node: Arc<str>,
    created: Option<Timestamp>,
}

// === impl Roster ===

impl Roster {
    /// Knows nothing yet.
    pub fn new(account: Account) -> Self {
        Self { account, known: watch::Sender::new(Known::default()) }
    }

    /// What is known, now and later.
    pub fn watch(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Passes on what comes in, and notes what matters here, until one of both ends.
    pub async fn follow(&self, mut batches: mpsc::Receiver<Batch>, onward: mpsc::Sender<Batch>) {
        while let Some(batch) = batches.recv().await {
            batch.events.iter().for_each(|event| self.note(event));
            if onward.send(batch).await.is_err() {
                return;
            }
        }
    }

    /// Notes a change.
    pub fn note(&self, event: &Event) {
        self.known.send_if_modified(|known| match event {
            Event::Apply(Object::Pod(pod)) => self.set(known, pod),
            Event::Apply(Object::Node(node)) => {
                known.nodes.insert(node.metadata.name.as_deref().unwrap_or_default().into())
            }
            Event::Delete(ObjectKey { kind: Kind::Pod, namespace, name }) if **namespace == *self.account.namespace => {
                known.pods.remove(name).is_some()
            }
            Event::Delete(ObjectKey { kind: Kind::Node, name, .. }) => known.nodes.remove(name),
            Event::Reset(Kind::Pod, objects) => {
                known.pods.clear();
                for object in objects {
                    if let Object::Pod(pod) = object {
                        self.set(known, pod);
                    }
                }
                true
            }
            Event::Reset(Kind::Node, objects) => {
                known.nodes = objects.iter().map(|object| object.key().name).collect();
                true
            }
            Event::Apply(_) | Event::Delete(_) | Event::Reset(..) => false,
        });
    }

    fn set(&self, known: &mut Known, pod: &Pod) -> bool {
        let (metadata, spec) = (&pod.metadata, pod.spec.as_ref());
        if metadata.namespace.as_deref() != Some(&self.account.namespace) {
            return false;
        }
        let name: Arc<str> = metadata.name.as_deref().unwrap_or_default().into();
        let is_agent = spec.and_then(|spec| spec.service_account_name.as_deref()) == Some(&self.account.name);
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        match (metadata.uid.as_deref(), node) {
            (Some(uid), Some(node)) if is_agent => {
                let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
                let pod = AgentPod { uid: uid.into(), node: node.into(), created };
                let differs = known.pods.get(&name) != Some(&pod);
                known.pods.insert(name, pod);
                differs
            }
            _ => known.pods.remove(&name).is_some(),
        }
    }
}

// === impl Known ===

impl Known {
    fn get(&self, pod: &PodRef) -> Option<&AgentPod> {
        self.pods.get(&pod.name).filter(|found| found.uid == pod.uid)
    }

    /// Whether the very Pod is there.
    pub fn has_pod(&self, pod: &PodRef) -> bool {
        self.get(pod).is_some()
    }

    /// Whether a Node of this name is there.
    pub fn has_node(&self, node: &str) -> bool {
        self.nodes.contains(node)
    }

    /// The node of an agent's Pod.
    pub fn node_of(&self, pod: &PodRef) -> Option<Arc<str>> {
        self.get(pod).map(|pod| pod.node.clone())
    }

    /// Whether the agent in Pod `new` is to speak for a node for which that in Pod `old` speaks now. The newer Pod is,
    /// once it is known here; otherwise an old token could displace the agent that has replaced its own.
    pub fn outranks(&self, new: &PodRef, old: &PodRef) -> bool {
        if new == old {
            return true;
        }
        match (self.get(new), self.get(old)) {
            (Some(fresh), Some(former)) => (fresh.created, &fresh.uid) > (former.created, &former.uid),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            // Nothing says which of the two is newer, but the API server has just vouched for the new one.
            (None, None) => true,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn account() -> Account {
        Account { namespace: "portico-system".into(), name: "portico-agent".into() }
    }

    pub(crate) fn pod(name: &str, uid: &str, node: &str, account: &str, created: &str) -> Object {
        let pod = serde_json::json!({
            "metadata": {"name": name, "namespace": "portico-system", "uid": uid, "creationTimestamp": created},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
        });
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        Object::from(pod).trimmed()
    }

    pub(crate) fn node(name: &str) -> Object {
        let node: k8s_openapi::api::core::v1::Node =
            serde_json::from_value(serde_json::json!({"metadata": {"name": name}})).expect("a Node");
        Object::from(node)
    }

    pub(crate) fn reference(name: &str, uid: &str) -> PodRef {
        PodRef { name: name.into(), uid: uid.into() }
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn only_pods_of_the_account_are_agents_and_a_name_that_is_used_again_is_another_pod() {
        let roster = Roster::new(account());
        roster.note(&Event::Reset(
            Kind::Pod,
            vec![pod("a", "u1", "n1", "portico-agent", OLD), pod("b", "u2", "n2", "default", OLD)],
        ));
        let known = roster.watch();
        assert_eq!(known.borrow().node_of(&reference("a", "u1")).as_deref(), Some("n1"));
        assert_eq!(known.borrow().node_of(&reference("b", "u2")), None);
        roster.note(&Event::Apply(pod("a", "u3", "n1", "portico-agent", NEW)));
        assert!(!known.borrow().has_pod(&reference("a", "u1")));
        assert!(known.borrow().has_pod(&reference("a", "u3")));
        roster.note(&Event::Delete(ObjectKey::new(Kind::Pod, "portico-system", "a")));
        assert!(!known.borrow().has_pod(&reference("a", "u3")));
    }

    #[test]
    fn nothing_is_told_when_nothing_matters() {
        let roster = Roster::new(account());
        let mut known = roster.watch();
        roster.note(&Event::Apply(node("n1")));
        assert!(known.has_changed().expect("the roster lives"));
        known.mark_unchanged();
        roster.note(&Event::Apply(node("n1")));
        roster.note(&Event::Apply(pod("b", "u2", "n2", "default", OLD)));
        roster.note(&Event::Delete(ObjectKey::new(Kind::Pod, "other", "a")));
        assert!(!known.has_changed().expect("the roster lives"));
    }

    #[test]
    fn the_newer_pod_speaks_for_a_node_once_it_is_known() {
        let roster = Roster::new(account());
        roster.note(&Event::Apply(pod("a", "u1", "n1", "portico-agent", OLD)));
        roster.note(&Event::Apply(pod("b", "u2", "n1", "portico-agent", NEW)));
        let (a, b, unknown, other) =
            (reference("a", "u1"), reference("b", "u2"), reference("c", "u9"), reference("d", "u8"));
        let known = roster.watch();
        let outranks = |new, old| known.borrow().outranks(new, old);
        assert!(outranks(&b, &a) && !outranks(&a, &b));
        assert!(outranks(&a, &a));
        assert!(outranks(&a, &unknown) && !outranks(&unknown, &a));
        assert!(outranks(&unknown, &other));
    }
}
