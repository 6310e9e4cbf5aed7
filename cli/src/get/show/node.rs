//! Nodes.

use super::super::age;
use super::{Key, join, metadata, or_none};
use api::proto::discovery::Node;
use api::proto::inspect::{NodeState, Object};
use serde_json::{Value, json};
use std::time::SystemTime;

/// The cells and the document of a node.
pub fn show(key: &Key, object: &Object, state: &NodeState, now: SystemTime) -> (Vec<String>, Value) {
    let node = state.node.clone().unwrap_or_default();
    let cells = vec![
        status(state, &node),
        if state.agent_connected { "connected" } else { "missing" }.into(),
        or_none(&node.zone),
        join(&node.internal_addresses),
        age::since(object.create_time.as_ref(), now),
        join(&node.external_addresses),
        or_none(&node.region),
        join(&node.pod_cidrs),
    ];
    (cells, document(key, object, state, &node))
}

/// The verdict, then what keeps external load balancers away, as kubectl adds SchedulingDisabled.
fn status(state: &NodeState, node: &Node) -> String {
    let mut status = if state.health.is_empty() { "Unknown".into() } else { or_none(&state.health) };
    if node.leaving {
        status.push_str(",Leaving");
    }
    if node.excluded_from_load_balancers {
        status.push_str(",LoadBalancingDisabled");
    }
    status
}

fn document(key: &Key, object: &Object, state: &NodeState, node: &Node) -> Value {
    let mut metadata = metadata(key, object.create_time.as_ref());
    metadata["labels"] = json!({
        "node.kubernetes.io/exclude-from-external-load-balancers":
            node.excluded_from_load_balancers.then_some("true"),
        "topology.kubernetes.io/region": node.region,
        "topology.kubernetes.io/zone": node.zone,
    });
    let addresses = |kind: &'static str, addresses: &[String]| -> Vec<Value> {
        addresses.iter().map(|address| json!({"type": kind, "address": address})).collect()
    };
    let internal = addresses("InternalIP", &node.internal_addresses);
    let external = addresses("ExternalIP", &node.external_addresses);
    let addresses = [internal, external].concat();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": {"podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs},
        "status": {
            "addresses": addresses,
            "agentConnected": state.agent_connected,
            "health": state.health,
            "leaving": node.leaving,
        },
    })
}
