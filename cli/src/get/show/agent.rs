//! Agents.

use super::super::age;
use super::{Key, metadata, or_none};
use api::proto::inspect::AgentState;
use api::proto::node::{NodeServingState, ServiceFault};
use serde_json::{Value, json};
use std::time::SystemTime;

/// The cells and the document of an agent.
pub fn show(key: &Key, agent: &AgentState, now: SystemTime) -> (Vec<String>, Value) {
    let cells = vec![
        state(agent.state()).into(),
        if agent.connected { "yes" } else { "no" }.into(),
        agent.behind.to_string(),
        agent.acknowledged_resources.to_string(),
        agent.rejected_resources.to_string(),
        agent.open_listeners.to_string(),
        agent.faults.len().to_string(),
        or_none(&agent.version),
        age::since(agent.connect_time.as_ref(), now),
        or_none(&agent.resync),
        or_none(&agent.peer),
        or_none(&agent.instance_id),
    ];
    let document = json!({
        "kind": "Agent",
        "metadata": metadata(key, None),
        "status": {
            "acknowledgedResources": agent.acknowledged_resources,
            "behind": agent.behind,
            "connectTime": agent.connect_time.map(|time| time.to_string()),
            "connected": agent.connected,
            "faults": agent.faults.iter().map(fault).collect::<Vec<_>>(),
            "instanceId": agent.instance_id,
            "openListeners": agent.open_listeners,
            "peer": agent.peer,
            "rejectedResources": agent.rejected_resources,
            "resync": agent.resync,
            "state": state(agent.state()),
            "version": agent.version,
        },
    });
    (cells, document)
}

fn fault(fault: &ServiceFault) -> Value {
    json!({
        "service": fault.service,
        "nodePort": super::some(fault.node_port),
        "reason": fault.reason,
        "message": fault.message,
        "since": fault.fault_since.map(|time| time.to_string()),
    })
}

fn state(state: NodeServingState) -> &'static str {
    match state {
        NodeServingState::Unspecified => "Unknown",
        NodeServingState::Starting => "Starting",
        NodeServingState::Serving => "Serving",
        NodeServingState::Draining => "Draining",
        NodeServingState::Failed => "Failed",
    }
}
