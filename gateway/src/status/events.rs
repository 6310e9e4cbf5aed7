//! Problems of objects as Events, where people look for them: `kubectl describe`.
//!
//! One Event stands for one problem of one object. It is written when the problem appears, and repeated while it lasts,
//! because the API server forgets Events after an hour. What is written is limited for each object and altogether: one
//! broken controller must not fill the cluster's storage through us.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{election::Leadership, faults};
use crate::{
    catalog::Catalog,
    health::report::Reports,
    problem::{ByObject, Problem},
    watch::object::ObjectKey,
};

/// How often the Event of a problem that lasts is repeated.
const REPEAT: Duration = Duration::from_secs(30 * 60);
/// Events of one object: this many at once, and one more after each pause. As client-go limits its own.
const PER_OBJECT: (u32, Duration) = (25, Duration::from_secs(300));
/// Events of all objects: this many at once, and one more after each pause.
const ALTOGETHER: (u32, Duration) = (50, Duration::from_millis(200));
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait after a failure, and for the limits.
const PAUSE: Duration = Duration::from_secs(5);
/// Length that the API server allows for a note, in bytes.
const NOTE_LIMIT: usize = 1024;
/// Who reports.
const CONTROLLER: &str = "portico.dev/gateway";

/// What Events there are, and which are due. It has no clock and no IO.
#[derive(Debug, Default)]
pub struct Ledger {
    /// When the Event of a problem was written last, and how often.
    written: BTreeMap<(ObjectKey, Problem), (Instant, u32)>,
    objects: BTreeMap<ObjectKey, Bucket>,
    all: Bucket,
}

/// A number of permits that fills up with time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When it will be full. `None` if it is.
    full_at: Option<Instant>,
}

/// Writes Events.
pub struct Events {
    client: Client,
    /// Names this process in the Events.
    instance: String,
    leadership: Leadership,
    catalog: watch::Receiver<Catalog>,
    /// What agents say.
    reports: Arc<Reports>,
}

// === impl Bucket ===

impl Bucket {
    /// Takes a permit, if there is one.
    fn take(&mut self, now: Instant, (size, refill): (u32, Duration)) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + refill;
        let allowed = full_at <= now + refill * size;
        if allowed {
            self.full_at = Some(full_at);
        }
        allowed
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

// === impl Ledger ===

impl Ledger {
    /// The problems whose Event is to be written now, each with the number of times it was written before. Problems that
    /// are gone are forgotten, so that they are told again when they come back.
    pub fn due(&mut self, now: Instant, problems: &ByObject) -> Vec<(ObjectKey, Problem, u32)> {
        let mut due = Vec::new();
        let mut present = BTreeSet::new();
        for (object, problem) in problems.iter().flat_map(|(object, all)| all.iter().map(move |one| (object, one))) {
            let id = (object.clone(), problem.clone());
            let before = self.written.get(&id);
            if before.is_none_or(|(at, _)| *at + REPEAT <= now)
                && !present.contains(&id)
                && self.objects.entry(object.clone()).or_default().take(now, PER_OBJECT)
                && self.all.take(now, ALTOGETHER)
            {
                due.push((object.clone(), problem.clone(), before.map_or(0, |(_, count)| *count)));
            }
            present.insert(id);
        }
        self.written.retain(|id, _| present.contains(id));
        self.objects.retain(|_, bucket| !bucket.is_full(now));
        due
    }

    /// Notes that an Event was written.
    pub fn wrote(&mut self, now: Instant, object: ObjectKey, problem: Problem) {
        let (at, count) = self.written.entry((object, problem)).or_insert((now, 0));
        (*at, *count) = (now, count.saturating_add(1));
    }
}

// === impl Events ===

impl Events {
    /// Tells of the problems in `catalog` and of what agents report that they cannot serve, whenever `leadership` holds.
    pub fn new(
        client: Client,
        instance: &str,
        leadership: Leadership,
        catalog: watch::Receiver<Catalog>,
        reports: Arc<Reports>,
    ) -> Self {
        Self { client, instance: instance.to_owned(), leadership, catalog, reports }
    }

    /// Runs until there can be no problem any more.
    pub async fn run(mut self) {
        let mut ledger = Ledger::default();
        let mut news = self.reports.news();
        loop {
            self.leadership.gained().await;
            news.mark_unchanged();
            let mut problems = ByObject::clone(&self.catalog.borrow_and_update().problems);
            for (object, found) in faults::problems(&self.reports.list()) {
                problems.entry(object).or_default().extend(found);
            }
            for (object, problem, count) in ledger.due(Instant::now(), &problems) {
                match self.leadership.guard(self.write(&object, &problem, count)).await {
                    Ok(Ok(())) => ledger.wrote(Instant::now(), object, problem),
                    Ok(Err(reason)) => {
                        tracing::warn!(%object, reason, "an Event cannot be written; trying again");
                        break;
                    }
                    Err(_) => break,
                }
            }
            let mut leadership = self.leadership.clone();
            tokio::select! {
                changed = self.catalog.changed() => if changed.is_err() {
                    return;
                },
                Ok(()) = news.changed() => {}
                () = leadership.lost() => {}
                () = tokio::time::sleep(PAUSE), if !problems.is_empty() => {}
            }
        }
    }

    async fn write(&self, object: &ObjectKey, problem: &Problem, count: u32) -> Result<(), String> {
        let write = self.write_unlimited(object, problem, count);
        match tokio::time::timeout(REQUEST_LIMIT, write).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    async fn write_unlimited(&self, object: &ObjectKey, problem: &Problem, count: u32) -> Result<(), kube::Error> {
        // An Event is found by the UID of its object, which may have been replaced since.
        let Some(regarding) = self.reference(object).await? else { return Ok(()) };
        let event = event(object, regarding, problem, &self.instance, Timestamp::now());
        let events: Api<Event> =
            Api::namespaced(self.client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        match events.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let name = event.metadata.name.as_deref().unwrap_or_default();
                let series = EventSeries {
                    // A series has at least two.
                    count: i32::try_from(count).unwrap_or(i32::MAX).saturating_add(1).max(2),
                    last_observed_time: MicroTime(Timestamp::now()),
                };
                let patch = Patch::Merge(json!({ "series": series }));
                events.patch(name, &PatchParams::default(), &patch).await.map(drop)
            }
            // Nobody has to be told of what is in a namespace that is being deleted.
            Err(kube::Error::Api(status))
                if status.is_not_found() || status.is_forbidden() && in_deletion(&status.message) =>
            {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    async fn reference(&self, object: &ObjectKey) -> Result<Option<ObjectReference>, kube::Error> {
        let (group, version) = object.kind.api_version().rsplit_once('/').unwrap_or(("", object.kind.api_version()));
        let kind = object.kind.as_str();
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: object.kind.api_version().to_owned(),
            kind: kind.to_owned(),
            plural: object.kind.plural().to_owned(),
        };
        let objects: Api<DynamicObject> = if object.kind.is_namespaced() {
            Api::namespaced_with(self.client.clone(), &object.namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        };
        let Some(found) = objects.get_metadata_opt(&object.name).await? else { return Ok(None) };
        Ok(Some(ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            namespace: found.metadata.namespace,
            name: found.metadata.name,
            uid: found.metadata.uid,
            ..ObjectReference::default()
        }))
    }
}

fn in_deletion(message: &str) -> bool {
    message.contains("because it is being terminated")
}

/// The Event of a problem. Its name follows from object and problem, so that no replica writes it a second time.
fn event(object: &ObjectKey, regarding: ObjectReference, problem: &Problem, instance: &str, now: Timestamp) -> Event {
    let id = format!("{:?}{}{problem}", object, regarding.uid.as_deref().unwrap_or_default());
    let hash = blake3::hash(id.as_bytes()).to_hex();
    // Names of objects may be as long as names of Events.
    let start = &object.name[..object.name.len().min(200)];
    let namespace = match &*object.namespace {
        "" => "default",
        namespace => namespace,
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", start.trim_end_matches(['.', '-']), &hash[..16])),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(pascal_case(problem.reason)),
        action: Some("Serve".to_owned()),
        note: Some(cut(&problem.message, NOTE_LIMIT).to_owned()),
        regarding: Some(regarding),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cut(instance, 128).to_owned()),
        ..Event::default()
    }
}

/// `UPPER_SNAKE_CASE` as Kubernetes writes reasons.
fn pascal_case(reason: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_string() + &letters.as_str().to_ascii_lowercase()).unwrap_or_default()
    };
    reason.split('_').map(word).collect()
}

fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
