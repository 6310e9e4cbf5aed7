//! Objects that gateways make for themselves and keep: how they are told from those of others, and when to look again.

use std::{collections::BTreeMap, future::ready};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    core::ObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};

/// Says that an object is ours to write.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "portico-gateway");

/// The metadata of an object of ours that is not there yet.
pub fn metadata(name: &str) -> ObjectMeta {
    let labels = BTreeMap::from([(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())]);
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() }
}

/// Whether a gateway made the object.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY.0));
    label.is_some_and(|label| label == MANAGED_BY.1)
}

/// Whether a write failed because another gateway was first: the object was created, changed or deleted meanwhile. In each
/// case what is there now is to be looked at.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

/// Says whenever a Secret of this name may have changed.
pub fn changes(secrets: Api<Secret>, name: &str) -> impl Stream<Item = ()> + use<> {
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher(secrets, only).default_backoff().filter_map(|event| {
        // That the watch fails is seen, and said, when the object is read next.
        let is_change =
            matches!(event, Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone));
        ready(is_change.then_some(()))
    })
}
