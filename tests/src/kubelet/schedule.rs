//! Which Node a Pod goes to: binds Pods that have none, one at a time, in place of kube-scheduler.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The pure choice.
pub mod fit;

/// How soon a binding that the API server refused is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Everything the choice rests on, by namespace and name.
#[derive(Debug, Default)]
struct World {
    nodes: BTreeMap<(String, String), Node>,
    pods: BTreeMap<(String, String), Pod>,
}

/// Binds Pods to Nodes until it is stopped. A cluster has one of these.
///
/// # Errors
/// When `api` cannot be used to make a client.
pub async fn run(api: kube::Config, stop: CancellationToken) -> anyhow::Result<()> {
    let client = Client::try_from(api)?;
    tokio::select! {
        () = stop.cancelled() => {}
        () = bind_all(client) => {}
    }
    Ok(())
}

async fn bind_all(client: Client) {
    let mut nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
    let mut pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
    let mut world = World::default();
    let mut retry = tokio::time::interval(RETRY);
    let (mut nodes_known, mut pods_known) = (false, false);
    loop {
        tokio::select! {
            Some(event) = nodes.next() => nodes_known |= apply(&mut world.nodes, event),
            Some(event) = pods.next() => pods_known |= apply(&mut world.pods, event),
            _ = retry.tick() => {}
        }
        // Pods that are not known yet would be counted as absent.
        if nodes_known && pods_known {
            bind_pending(&client, &mut world).await;
        }
    }
}

/// Takes an event into a map. True when the map is whole.
fn apply<K: Resource + Clone>(
    map: &mut BTreeMap<(String, String), K>,
    event: Result<watcher::Event<K>, watcher::Error>,
) -> bool {
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match event {
        Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
            map.insert(key(&object), object);
        }
        Ok(watcher::Event::Delete(object)) => {
            map.remove(&key(&object));
        }
        Ok(watcher::Event::Init) => map.clear(),
        Ok(watcher::Event::InitDone) => return true,
        Err(error) => tracing::warn!(%error, "the scheduler cannot watch"),
    }
    false
}

async fn bind_pending(client: &Client, world: &mut World) {
    let pending: Vec<Pod> = world.pods.values().filter(|pod| is_pending(pod)).cloned().collect();
    let nodes: Vec<Node> = world.nodes.values().cloned().collect();
    for mut pod in pending {
        let placed: Vec<&Pod> = world.pods.values().filter(|pod| is_placed(pod)).collect();
        let outcome = match fit::choose(&pod, &nodes, &placed) {
            Ok(node) => {
                let bound = bind(client, &pod, &node).await;
                if bound.is_ok() {
                    // Counted at once: the watch tells it only after the next Pod has been placed.
                    pod.spec.get_or_insert_default().node_name = Some(node);
                    world.pods.insert((pod.namespace().unwrap_or_default(), pod.name_any()), pod.clone());
                }
                bound
            }
            Err(unfit) => explain(client, &pod, &unfit.to_string()).await,
        };
        if let Err(error) = outcome {
            tracing::warn!(pod = pod.name_any(), namespace = pod.namespace(), %error, "cannot place a Pod");
        }
    }
}

fn is_pending(pod: &Pod) -> bool {
    let spec = pod.spec.clone().unwrap_or_default();
    let scheduler = spec.scheduler_name.as_deref().unwrap_or("default-scheduler");
    spec.node_name.is_none()
        && scheduler == "default-scheduler"
        && spec.scheduling_gates.is_none_or(|gates| gates.is_empty())
        && pod.metadata.deletion_timestamp.is_none()
}

fn is_placed(pod: &Pod) -> bool {
    let ended = matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    !ended && pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

async fn bind(client: &Client, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let binding = Binding {
        metadata: ObjectMeta { name: pod.metadata.name.clone(), uid: pod.metadata.uid.clone(), ..Default::default() },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..Default::default()
        },
    };
    let _: Status = pods.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await?;
    Ok(())
}

/// Says in the Pod's status why it has no Node, once for each reason.
async fn explain(client: &Client, pod: &Pod, why: &str) -> Result<(), kube::Error> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if conditions.any(|condition| condition.type_ == "PodScheduled" && condition.message.as_deref() == Some(why)) {
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({ "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": why, "lastTransitionTime": Time(Timestamp::now()) }] } });
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}
