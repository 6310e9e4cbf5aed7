//! Telling the API server what a Pod does: its status, on change only, and that it is gone from the node.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodStatus},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::sync::watch;

use crate::kubelet::{
    pods::{Kubelet, Wish},
    status::{Observed, status},
};

/// How soon a report that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Reports the status of a Pod whenever it changes, until it is finished or the Pod is gone.
pub async fn run(kubelet: Arc<Kubelet>, mut wishes: watch::Receiver<Wish>, mut observed: watch::Receiver<Observed>) {
    let before = wishes.borrow().pod.status.as_ref().and_then(|status| status.conditions.clone());
    let mut conditions: Vec<PodCondition> = before.unwrap_or_default();
    let mut reported: Option<PodStatus> = None;
    loop {
        let pod = wishes.borrow_and_update().pod.clone();
        let now = observed.borrow_and_update().clone();
        let status = status(&pod, &now, &kubelet.config.addresses, &conditions, Timestamp::now());
        if reported.as_ref() != Some(&status) || !is_told(&pod, &status) {
            match report(&kubelet.client, &pod, &status).await {
                Ok(true) => {
                    conditions = status.conditions.clone().unwrap_or_default();
                    reported = Some(status);
                }
                // Nobody wants to know any longer. The end of the containers does not wait for it.
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(pod = pod.name_any(), %error, "cannot report the status of a Pod");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if now.finished {
            return;
        }
        tokio::select! {
            changed = observed.changed() => if changed.is_err() { return },
            changed = wishes.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether the API server holds our conditions. Others write them too: those of a node that was not heard for a while are
/// set to not ready, and only its kubelet sets them right.
fn is_told(pod: &Pod, status: &PodStatus) -> bool {
    let held = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let told = |ours: &PodCondition| held().any(|held| (&held.type_, &held.status) == (&ours.type_, &ours.status));
    status.conditions.iter().flatten().all(told)
}

/// False when there is no such Pod any longer. Conditions of others are kept: a strategic patch merges by type.
async fn report(client: &Client, pod: &Pod, status: &PodStatus) -> Result<bool, kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    // With the UID the API server refuses a report about a Pod whose name a new one has taken.
    let mut status = json!(status);
    // Addresses would be merged too, with those that the Pod had before its node was restarted.
    if let Some(addresses) = status["podIPs"].as_array_mut() {
        addresses.push(json!({ "$patch": "replace" }));
    }
    let patch = Patch::Strategic(json!({ "metadata": { "uid": pod.uid() }, "status": status }));
    match pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(refusal)) if refusal.is_not_found() || refusal.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a Pod whose containers have ended from the API server. Tries until it is gone.
pub async fn delete(client: &Client, pod: &Pod) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
    let at_once = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
    loop {
        match pods.delete(&pod.name_any(), &at_once).await {
            Ok(_) => return,
            Err(kube::Error::Api(refusal)) if refusal.is_not_found() || refusal.is_conflict() => return,
            Err(error) => {
                tracing::warn!(pod = pod.name_any(), %error, "cannot remove a Pod");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
