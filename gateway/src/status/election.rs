//! Leadership at work: the Lease read and written, and what the rest of the process knows of it.

use std::time::{Duration, Instant as StdInstant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use runtime::drain;
use tokio::{sync::watch, time::Instant};

use super::lease::{Action, Elector, Observed, Record, Stored, Timing};

/// How long one request may take. Two of them fit into the time in which a leader has to renew.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);

/// Whether this process leads. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Term>);

/// How long somebody leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Term {
    None,
    /// The deadline is part of the value, so that nobody has to be told when it passes.
    Until(Instant),
    /// There is nobody else.
    Always,
}

/// What was to be done only by the leader was not, or not wholly, because this process does not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another replica leads")]
pub struct NotLeader;

/// One replica's part in the election.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    elector: Elector,
    timing: Timing,
    term: watch::Sender<Term>,
}

// === impl Leadership ===

impl Leadership {
    /// That of a process that has no rivals.
    pub fn always() -> Self {
        Self(watch::channel(Term::Always).1)
    }

    /// Whether this process leads now.
    pub fn holds(&self) -> bool {
        self.0.borrow().holds(Instant::now())
    }

    /// Completes when this process leads; never, if nobody can tell any more.
    pub async fn gained(&mut self) {
        if self.0.wait_for(|term| term.holds(Instant::now())).await.is_err() {
            std::future::pending().await
        }
    }

    /// Completes when this process does not lead; at once, if it does not now.
    pub async fn lost(&mut self) {
        loop {
            let term = *self.0.borrow_and_update();
            let until = match term {
                Term::Always => return std::future::pending().await,
                Term::Until(until) if Instant::now() < until => until,
                Term::None | Term::Until(_) => return,
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = self.0.changed() => {
                    // Without an election nobody renews, and the deadline decides.
                    if changed.is_err() {
                        tokio::time::sleep_until(until).await;
                    }
                }
            }
        }
    }

    /// Runs `work` as long as this process leads. What is in flight when it stops leading is dropped, which closes the
    /// connection it was sent on.
    ///
    /// # Errors
    /// [`NotLeader`] if it does not lead, or stopped before the work was done.
    pub async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, NotLeader> {
        let mut this = self.clone();
        tokio::select! {
            biased;
            () = this.lost() => Err(NotLeader),
            done = work => Ok(done),
        }
    }
}

// === impl Term ===

impl Term {
    fn holds(self, now: Instant) -> bool {
        match self {
            Term::None => false,
            Term::Until(until) => now < until,
            Term::Always => true,
        }
    }
}

// === impl Election ===

impl Election {
    /// A candidate for the Lease. `client` must not retry by itself, because a renewal that comes late is worth nothing.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, timing: Timing) -> (Self, Leadership) {
        let (term, receiver) = watch::channel(Term::None);
        let election = Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            elector: Elector::new(identity, timing),
            timing,
            term,
        };
        (election, Leadership(receiver))
    }

    /// Takes part until the drain starts, and then gives the Lease back.
    pub async fn run(mut self, mut drain: drain::Watch) {
        let guard = drain.guard();
        loop {
            let drained = tokio::select! {
                biased;
                () = drain.started() => true,
                () = self.turn() => false,
            };
            if drained {
                break;
            }
            // Replicas that were started together do not ask together.
            let pause = self.timing.retry_period.mul_f64(1.0 + fraction() / 5.0);
            tokio::select! {
                biased;
                () = drain.started() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
        drop(guard);
    }

    /// Looks or renews, and says who leads now.
    async fn turn(&mut self) {
        let mut observed = Observed::Tick;
        loop {
            let action = self.elector.step(now(), Timestamp::now(), observed);
            // Before any answer is waited for: what was found out may be that somebody else leads.
            self.publish();
            observed = match action {
                Action::Wait => return,
                Action::Read => self.read().await,
                Action::Write(record, version) => self.write(record, version).await,
            };
        }
    }

    fn publish(&mut self) {
        let term = match self.elector.leads_until(now()) {
            Some(until) => Term::Until(Instant::from_std(until)),
            None => Term::None,
        };
        let before = self.term.send_replace(term);
        match (before, term) {
            (Term::None, Term::Until(_)) => tracing::info!(lease = self.name, "this replica leads now"),
            (Term::Until(_), Term::None) => {
                let leader = self.elector.holder().unwrap_or_default();
                tracing::warn!(lease = self.name, leader, "this replica does not lead any more");
            }
            _ => {}
        }
    }

    async fn read(&self) -> Observed {
        match tokio::time::timeout(REQUEST_LIMIT, self.leases.get_opt(&self.name)).await {
            Ok(Ok(lease)) => Observed::Read(lease.map(stored)),
            Ok(Err(error)) => self.failed("read", &error.to_string()),
            Err(_) => self.failed("read", "no answer in time"),
        }
    }

    async fn write(&self, record: Record, version: Option<String>) -> Observed {
        let began = now();
        let lease = lease(&self.name, &record, version.clone());
        let parameters = PostParams::default();
        let request = async {
            match version {
                Some(_) => self.leases.replace(&self.name, &parameters, &lease).await,
                None => self.leases.create(&parameters, &lease).await,
            }
        };
        match tokio::time::timeout(REQUEST_LIMIT, request).await {
            Ok(Ok(lease)) => Observed::Written(stored(lease), began),
            // Replaced, created or deleted by somebody else meanwhile.
            Ok(Err(kube::Error::Api(status)))
                if status.is_conflict()
                    || status.is_already_exists()
                    || (version.is_some() && status.is_not_found()) =>
            {
                Observed::Conflict
            }
            Ok(Err(error)) => self.failed("written", &error.to_string()),
            Err(_) => self.failed("written", "no answer in time"),
        }
    }

    fn failed(&self, what: &'static str, reason: &str) -> Observed {
        tracing::warn!(lease = self.name, reason, "the lease cannot be {what}; trying again");
        Observed::Failed
    }

    /// Stops leading, and lets others begin at once. Without an answer they begin when the record expires.
    async fn release(mut self) {
        let released = self.elector.release(now(), Timestamp::now());
        self.term.send_replace(Term::None);
        if let Some((record, version)) = released {
            match self.write(record, Some(version)).await {
                Observed::Written(..) => tracing::info!(lease = self.name, "gave the lease back"),
                _ => tracing::info!(lease = self.name, "could not give the lease back; it will expire"),
            }
        }
    }
}

fn now() -> StdInstant {
    // That of the runtime, which tests can hold still.
    Instant::now().into_std()
}

/// At random between 0 and 1.
fn fraction() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// A Lease as a record. What is missing in it counts as nothing.
fn stored(lease: Lease) -> Stored {
    let spec = lease.spec.unwrap_or_default();
    let time = |time: Option<MicroTime>| time.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
    let record = Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(seconds),
        acquired: time(spec.acquire_time),
        renewed: time(spec.renew_time),
        transitions: spec.lease_transitions.unwrap_or_default(),
    };
    Stored { record, version: lease.metadata.resource_version.unwrap_or_default() }
}

fn lease(name: &str, record: &Record, version: Option<String>) -> Lease {
    Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), resource_version: version, ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(record.holder.clone().unwrap_or_default()),
            lease_duration_seconds: i32::try_from(record.duration.as_secs()).ok(),
            acquire_time: Some(MicroTime(record.acquired)),
            renew_time: Some(MicroTime(record.renewed)),
            lease_transitions: Some(record.transitions),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests;
