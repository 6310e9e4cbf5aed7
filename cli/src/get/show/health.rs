//! The verdicts on nodes.

use super::super::age;
use super::{Key, join, metadata, or_none};
use api::proto::health::{HealthState, NodeAddress, NodeAddressType, NodeHealth};
use serde_json::{Value, json};
use std::time::SystemTime;

/// What names of nodes begin with in this API.
const PREFIX: &str = "nodes/";

/// The node behind a resource name.
pub fn key(name: &str) -> Key {
    Key { namespace: String::new(), name: name.strip_prefix(PREFIX).unwrap_or(name).into() }
}

/// The resource name of a node.
pub fn resource_name(node: &str) -> String {
    format!("{PREFIX}{node}")
}

/// The cells and the document of a verdict.
pub fn show(key: &Key, node: &NodeHealth, now: SystemTime) -> (Vec<String>, Value) {
    let health = node.health.clone().unwrap_or_default();
    let addresses: Vec<String> = node.addresses.iter().map(|address| address.address.clone()).collect();
    let cells = vec![
        state(health.state()).into(),
        or_none(&health.reason),
        node.weight.to_string(),
        or_none(&node.zone),
        age::since(health.state_since.as_ref(), now),
        age::until(health.expire_time.as_ref(), now),
        join(&addresses),
        or_none(&health.message),
    ];
    let document = json!({
        "kind": "NodeHealth",
        "metadata": metadata(key, None),
        "addresses": node.addresses.iter().map(address).collect::<Vec<_>>(),
        "health": {
            "expireTime": health.expire_time.map(|time| time.to_string()),
            "message": health.message,
            "observeTime": health.observe_time.map(|time| time.to_string()),
            "reason": health.reason,
            "state": state(health.state()),
            "stateSince": health.state_since.map(|time| time.to_string()),
        },
        "region": node.region,
        "weight": node.weight,
        "zone": node.zone,
    });
    (cells, document)
}

fn address(address: &NodeAddress) -> Value {
    let kind = match address.r#type() {
        NodeAddressType::Unspecified => None,
        NodeAddressType::Internal => Some("InternalIP"),
        NodeAddressType::External => Some("ExternalIP"),
    };
    json!({"type": kind, "address": address.address})
}

fn state(state: HealthState) -> &'static str {
    match state {
        HealthState::Unspecified | HealthState::Unknown => "Unknown",
        HealthState::Healthy => "Healthy",
        HealthState::Draining => "Draining",
        HealthState::Unhealthy => "Unhealthy",
    }
}
