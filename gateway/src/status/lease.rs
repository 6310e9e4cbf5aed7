//! Who leads: the rules by which replicas share a Lease, without IO and without a clock of their own.
//!
//! They are those of client-go's leader election, so that the record means the same to whoever looks. Times in the record
//! are for people: the clocks of others are not believed. A record has expired when it did not change for its whole
//! duration, by our own monotonic clock, since we first saw it.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

/// How leadership is timed. A leader that cannot renew stops before anybody else can begin: `renew_deadline` is below
/// `duration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a record must stay unchanged before somebody else takes it.
    pub duration: Duration,
    /// How long after its last renewal a leader still leads.
    pub renew_deadline: Duration,
    /// How often a leader renews, and others look.
    pub retry_period: Duration,
}

/// The record in the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who leads; `None` once it was released.
    pub holder: Option<String>,
    /// How long it is valid without a change.
    pub duration: Duration,
    /// Since when the holder leads.
    pub acquired: Timestamp,
    /// When the holder renewed it last.
    pub renewed: Timestamp,
    /// How often the holder changed.
    pub transitions: i32,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What it says.
    pub record: Record,
    /// The version that a write has to name to replace it.
    pub version: String,
}

/// What became known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It is time to look or to renew.
    Tick,
    /// What is stored; `None` if there is no Lease.
    Read(Option<Stored>),
    /// Our record was written, by a request that began at the given time.
    Written(Stored, Instant),
    /// Somebody else wrote first, so nothing was written.
    Conflict,
    /// There was no answer. A write may have happened or not.
    Failed,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the Lease now.
    Read,
    /// Write this record, in place of the version, or as a new Lease.
    Write(Record, Option<String>),
    /// Nothing until the next tick.
    Wait,
}

/// One replica's part in the election.
#[derive(Clone, Debug)]
pub struct Elector {
    identity: String,
    timing: Timing,
    /// The record seen last, and when it was first seen so.
    seen: Option<(Stored, Instant)>,
    /// Until when we lead without renewing.
    until: Option<Instant>,
}

// === impl Timing ===

impl Timing {
    /// As client-go: 15 seconds, 10 seconds, 2 seconds.
    pub const DEFAULT: Self = Self {
        duration: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
        retry_period: Duration::from_secs(2),
    };
}

// === impl Elector ===

impl Elector {
    /// A replica that does not lead. No two may have the same identity, nor one before and after a restart.
    pub fn new(identity: impl Into<String>, timing: Timing) -> Self {
        Self { identity: identity.into(), timing, seen: None, until: None }
    }

    /// Until when this replica leads, unless it renews before; `None` if it does not lead.
    pub fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    /// Who leads, as far as was seen.
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.0.record.holder.as_deref()
    }

    /// Takes in what became known, and says what to do. `wall` is written into records, and never compared.
    pub fn step(&mut self, now: Instant, wall: Timestamp, observed: Observed) -> Action {
        if self.until.is_some_and(|until| now >= until) {
            self.until = None;
        }
        match observed {
            // A leader knows the version it wrote, and need not read.
            Observed::Tick => match (&self.seen, self.until) {
                (Some((stored, _)), Some(_)) if stored.record.holder.as_deref() == Some(&self.identity) => {
                    self.write(wall)
                }
                _ => Action::Read,
            },
            Observed::Read(None) => {
                self.seen = None;
                self.until = None;
                self.write(wall)
            }
            Observed::Read(Some(stored)) => {
                self.see(stored, now);
                if self.is_taken(now) {
                    self.until = None;
                    return Action::Wait;
                }
                self.write(wall)
            }
            Observed::Written(stored, began) => {
                self.until = Some(began + self.timing.renew_deadline).filter(|until| now < *until);
                self.see(stored, now);
                Action::Wait
            }
            Observed::Conflict => Action::Read,
            Observed::Failed => {
                // Whether our write happened is unknown, so the version is too: the next tick reads.
                self.seen = self.seen.take().map(|(stored, at)| (Stored { version: String::new(), ..stored }, at));
                Action::Wait
            }
        }
    }

    /// The record to write on the way out, so that somebody else can lead at once; `None` if we do not lead.
    pub fn release(&mut self, now: Instant, wall: Timestamp) -> Option<(Record, String)> {
        self.leads_until(now)?;
        self.until = None;
        let (stored, _) = self.seen.as_ref().filter(|(stored, _)| !stored.version.is_empty())?;
        let record = Record {
            holder: None,
            duration: Duration::from_secs(1),
            acquired: wall,
            renewed: wall,
            transitions: stored.record.transitions,
        };
        Some((record, stored.version.clone()))
    }

    fn see(&mut self, stored: Stored, now: Instant) {
        let since = match &self.seen {
            // The version also changes when somebody else touches the object, which renews nothing.
            Some((before, since)) if before.record == stored.record => *since,
            _ => now,
        };
        self.seen = Some((stored, since));
    }

    /// Whether somebody else leads.
    fn is_taken(&self, now: Instant) -> bool {
        let Some((stored, since)) = &self.seen else { return false };
        let by_other = stored.record.holder.as_ref().is_some_and(|holder| *holder != self.identity);
        by_other && now < *since + stored.record.duration
    }

    fn write(&self, wall: Timestamp) -> Action {
        let before = self.seen.as_ref().map(|(stored, _)| stored);
        let record = &before.map(|stored| &stored.record);
        let ours = record.filter(|record| record.holder.as_deref() == Some(&self.identity));
        let version = before.map(|stored| stored.version.clone());
        if version.as_ref().is_some_and(String::is_empty) {
            return Action::Read;
        }
        let next = Record {
            holder: Some(self.identity.clone()),
            duration: self.timing.duration,
            acquired: ours.map_or(wall, |record| record.acquired),
            renewed: wall,
            transitions: match (record, ours) {
                (_, Some(ours)) => ours.transitions,
                (Some(other), None) => other.transitions.saturating_add(1),
                (None, None) => 0,
            },
        };
        Action::Write(next, version)
    }
}

#[cfg(test)]
mod tests;
