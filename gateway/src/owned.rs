//! Objects that gateways make for themselves and keep: how they are told from those of others, and when to look again.

use std::{
    collections::BTreeMap,
    future::ready,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    core::ObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use runtime::backoff::Backoff;

/// Says that an object is ours to write.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "portico-gateway");

/// How a look at what is there ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Another gateway wrote first, or we did: look again.
    Again,
    /// Nothing to do before this time.
    Until(SystemTime),
}

/// When to look at a Secret, and at what goes with it: when it changes, and when something is due.
pub struct Turns {
    changes: BoxStream<'static, ()>,
    backoff: Backoff,
    at_least: Duration,
}

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

// === impl Turns ===

impl Turns {
    /// Turns at a Secret of this name, and after `at_least` whatever was planned: clocks jump, and objects get deleted.
    pub fn new(secrets: Api<Secret>, name: &str, at_least: Duration) -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(60));
        Self { changes: changes(secrets, name).boxed(), backoff, at_least }
    }

    /// How long it is until the next look is due, after this one; `None` for one that failed.
    pub fn due(&mut self, looked: Option<Looked>) -> Duration {
        match looked {
            Some(Looked::Again) => Duration::ZERO,
            Some(Looked::Until(time)) => {
                self.backoff.healthy();
                time.duration_since(SystemTime::now()).unwrap_or_default().min(self.at_least)
            }
            None => self.backoff.next(),
        }
    }

    /// Waits until the next look is due, or the Secret changes.
    pub async fn next(&mut self, due: Duration) {
        tokio::select! {
            () = tokio::time::sleep(due) => {}
            Some(()) = self.changes.next() => {}
        }
    }
}
