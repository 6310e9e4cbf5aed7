//! What nodes can do for a Service, as it stands on the board. Backends are not kept: there are as many as Services times
//! nodes, and each follows from its Service and its node.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use api::proto::health as wire;
use prost::Message as _;

use super::{Board, node::NodeEntry};
use crate::health::{
    known::Target,
    verdict::{self, BackendFacts, BackendVerdict, Fault, State},
};

/// What is known of a Service as something that nodes serve.
#[derive(Debug)]
pub struct ServiceEntry {
    /// The Service and its endpoints.
    pub target: Arc<Target>,
    /// What nodes cannot serve of it.
    pub faults: BTreeMap<Arc<str>, FaultEntry>,
    /// Revision at which it last differed, its nodes aside.
    pub revision: u64,
    hash: blake3::Hash,
}

/// What a node cannot serve of a Service, or could not until a while ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultEntry {
    /// The fault; `None` if it is over.
    pub fault: Option<Fault>,
    /// When it began, or was over.
    pub since: SystemTime,
}

// === impl ServiceEntry ===

impl ServiceEntry {
    /// The entry that follows `before`: of `revision` if anything differs that load balancers are told.
    pub fn next(
        target: Arc<Target>,
        faults: BTreeMap<Arc<str>, FaultEntry>,
        before: Option<&Arc<Self>>,
        revision: u64,
    ) -> Arc<Self> {
        let hash = hash(&target, &faults);
        let unchanged = before.filter(|before| before.hash == hash);
        Arc::new(Self { target, faults, revision: unchanged.map_or(revision, |before| before.revision), hash })
    }

    /// Hash of all that is said of it, nodes and times aside.
    pub fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// The message, with backends if they are wanted.
    pub fn message(&self, board: &Board, with_backends: bool) -> wire::ServiceHealth {
        let mut message = head(&self.target);
        for (name, node) in board.listed() {
            let (verdict, since) = self.backend(name, node);
            message.healthy_backend_count += u32::from(verdict.state == State::Healthy);
            if !with_backends {
                continue;
            }
            let health = wire::Health {
                state: verdict.state.wire() as i32,
                reason: verdict.reason.into_owned(),
                message: verdict.message.into_owned(),
                state_since: Some(since.into()),
                ..node.health(board.term)
            };
            message.backends.push(wire::Backend {
                node: name.to_string(),
                addresses: node.said.addresses(),
                zone: node.said.node.zone.clone(),
                health: Some(health),
                weight: verdict.weight,
                serving_endpoint_count: match self.target.is_local_only() {
                    true => self.target.on(name).local.serving,
                    false => self.target.serving,
                },
            });
        }
        message
    }

    /// The verdict on a node as a target, and since when it stands.
    fn backend(&self, name: &str, node: &NodeEntry) -> (BackendVerdict, SystemTime) {
        let present = self.target.is_local_only().then(|| self.target.on(name));
        let fault = self.faults.get(name);
        let verdict = verdict::backend(&BackendFacts {
            node: &node.said.verdict,
            node_weight: node.said.weight,
            fault: fault.and_then(|entry| entry.fault.as_ref()),
            local: present.map(|present| present.local),
        });
        let own = fault.map(|entry| entry.since).into_iter().chain(present.map(|present| present.since)).max();
        let own = own.unwrap_or(self.target.since);
        let since = if verdict.by_node { own.max(node.said.since) } else { own };
        (verdict, since)
    }
}

/// Everything but the backends.
fn head(target: &Target) -> wire::ServiceHealth {
    let service = &target.service;
    let ports = service.ports.iter().map(|port| wire::ServicePort {
        name: port.name.clone(),
        protocol: port.transport.as_str().to_owned(),
        port: port.port.get().into(),
        node_port: port.node_port.map_or(0, |port| port.get().into()),
    });
    wire::ServiceHealth {
        name: format!("namespaces/{}/services/{}", service.name.namespace, service.name.name),
        ports: ports.collect(),
        local_only: target.is_local_only(),
        health_check_node_port: service.health_check_node_port.map_or(0, |port| port.get().into()),
        backends: Vec::new(),
        healthy_backend_count: 0,
    }
}

fn hash(target: &Target, faults: &BTreeMap<Arc<str>, FaultEntry>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head(target).encode_length_delimited_to_vec());
    let text = |hasher: &mut blake3::Hasher, text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    // The class is no part of the message, but of selectors.
    text(&mut hasher, &target.service.load_balancer_class);
    if target.is_local_only() {
        // Nodes that have nothing any more are like those that never had anything.
        for (node, present) in target.local.iter().filter(|(_, present)| present.local != Default::default()) {
            text(&mut hasher, node);
            hasher.update(&present.local.ready.to_le_bytes());
            hasher.update(&present.local.serving.to_le_bytes());
        }
    } else {
        hasher.update(&target.serving.to_le_bytes());
    }
    for (node, fault) in faults.iter().filter_map(|(node, entry)| Some((node, entry.fault.as_ref()?))) {
        text(&mut hasher, node);
        text(&mut hasher, &fault.reason);
        text(&mut hasher, &fault.message);
    }
    hasher.finalize()
}
