//! Routes between nodes: what a cloud's route controller does. The controller manager gives each Node its part of the Pod
//! addresses; here the other nodes, and the machine, learn the way there, and the Node's condition says so.

use std::pin::pin;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use super::{
    netns,
    plan::{Plan, Role},
};

const CONDITION: &str = "NetworkUnavailable";

/// Makes routes for ever.
///
/// # Errors
/// When a route cannot be made, or a Node is not the API server's any more.
pub async fn run(client: Client, plan: Plan) -> Result<()> {
    let nodes: Api<Node> = Api::all(client);
    let mut changes = pin!(watcher(nodes.clone(), watcher::Config::default()).default_backoff().applied_objects());
    loop {
        match changes.try_next().await {
            Ok(Some(node)) => route(&nodes, &plan, &node).await?,
            Ok(None) => return Ok(()),
            // The watcher connects again; a stopped API server is something that tests want.
            Err(error) => tracing::warn!(%error, "cannot watch Nodes"),
        }
    }
}

async fn route(nodes: &Api<Node>, plan: &Plan, node: &Node) -> Result<()> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let cidrs = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    let role = Role::parse(name).filter(|role| plan.roles().any(|other| other == *role));
    let Some(role @ Role::Node(_)) = role else { return Ok(()) };
    if cidrs.is_empty() || is_routed(node) {
        return Ok(());
    }
    netns::route_pods(None, role, cidrs).with_context(|| format!("cannot route from the machine to {name}"))?;
    let others = plan.roles().filter(|other| *other != role && *other != Role::Client);
    for other in others {
        netns::route_pods(Some(&other.namespace()), role, cidrs)
            .with_context(|| format!("cannot route from {} to {name}", other.name()))?;
    }
    tracing::info!(node = name, ?cidrs, "routes are made");
    let now = Some(Time(Timestamp::now()));
    let condition = NodeCondition {
        type_: CONDITION.to_owned(),
        status: "False".to_owned(),
        reason: Some("RouteCreated".to_owned()),
        message: Some("every node has routes to the Pods of this one".to_owned()),
        last_heartbeat_time: now.clone(),
        last_transition_time: now,
    };
    let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    match nodes.patch_status(name, &PatchParams::default(), &patch).await {
        Ok(_) => {}
        // The Node's next change brings it here again.
        Err(error) => tracing::warn!(node = name, %error, "cannot say that routes are made"),
    }
    Ok(())
}

/// Whether this Node's routes were made. A Node that is deleted and comes back has lost the condition with the rest.
fn is_routed(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == CONDITION && condition.status == "False")
}
