//! Whether the tables keep up with the state (S13.3), and how long that takes (S20).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use api::resource::name::NamespacedName;

use crate::table::Family;

/// A change that waits for this long is late: twice the period in which kube-proxy writes its rules anew.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Of each IP family: when a change was queued, and when changes were programmed. Without a clock of its own.
#[derive(Clone, Debug)]
pub struct Pace {
    timeout: Duration,
    families: [FamilyPace; 2],
}

/// One family of a [`Pace`].
#[derive(Clone, Copy, Debug, Default)]
struct FamilyPace {
    /// When the oldest change was queued that is not programmed.
    pending: Option<Instant>,
    /// When changes were programmed last; a family for which this never happened is not judged.
    updated: Option<(Instant, SystemTime)>,
    queued: Option<SystemTime>,
}

/// What a [`Pace`] says of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyState {
    /// Which one.
    pub family: Family,
    /// Nothing waits for too long.
    pub in_time: bool,
    /// When changes were programmed last.
    pub updated: Option<SystemTime>,
    /// When a change was queued last.
    pub queued: Option<SystemTime>,
}

/// The pace of an agent, shared by those who program and those who ask.
#[derive(Clone, Debug)]
pub struct Programming(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    pace: Pace,
    seen: Changes,
    pending: Changes,
}

/// Changes of Services and endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of Services.
    pub services: u64,
    /// Of endpoints.
    pub endpoints: u64,
}

// === impl Pace ===

impl Pace {
    /// A pace of somebody who just starts, which is in time.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, families: Default::default() }
    }

    /// A change waits to be programmed. What waits longer already keeps its time.
    pub fn queued(&mut self, family: Family, now: Instant, time: SystemTime) {
        let family = self.family(family);
        family.pending.get_or_insert(now);
        family.queued = Some(time);
    }

    /// All that waited is programmed.
    pub fn updated(&mut self, family: Family, now: Instant, time: SystemTime) {
        let family = self.family(family);
        family.pending = None;
        family.updated = Some((now, time));
    }

    /// Both families, as of `now`.
    pub fn states(&self, now: Instant) -> [FamilyState; 2] {
        let state = |family: Family| {
            let pace = &self.families[family as usize];
            let late = pace.pending.is_some_and(|since| now.saturating_duration_since(since) >= self.timeout);
            FamilyState {
                family,
                in_time: pace.updated.is_none() || !late,
                updated: pace.updated.map(|(_, time)| time),
                queued: pace.queued,
            }
        };
        Family::ALL.map(state)
    }

    /// Whether every family is in time.
    pub fn in_time(&self, now: Instant) -> bool {
        self.states(now).iter().all(|state| state.in_time)
    }

    fn family(&mut self, family: Family) -> &mut FamilyPace {
        &mut self.families[family as usize]
    }
}

// === impl Programming ===

impl Default for Programming {
    fn default() -> Self {
        let inner = Inner { pace: Pace::new(TIMEOUT), seen: Changes::default(), pending: Changes::default() };
        Self(Arc::new(Mutex::new(inner)))
    }
}

impl Programming {
    /// Changes are on their way. A table holds both families, so both wait for it.
    pub fn queued(&self) {
        self.with(|inner| {
            for family in Family::ALL {
                inner.pace.queued(family, Instant::now(), SystemTime::now());
            }
        });
    }

    /// Changes of a commit, which is about to be programmed.
    pub fn received(&self, changes: Changes) {
        self.with(|inner| {
            for counted in [&mut inner.seen, &mut inner.pending] {
                counted.services += changes.services;
                counted.endpoints += changes.endpoints;
            }
        });
    }

    /// Everything received is in force.
    pub fn updated(&self) {
        self.with(|inner| {
            for family in Family::ALL {
                inner.pace.updated(family, Instant::now(), SystemTime::now());
            }
            inner.pending = Changes::default();
        });
    }

    /// The pace as it is.
    pub fn pace(&self) -> Pace {
        self.with(|inner| inner.pace.clone())
    }

    /// Changes seen since the start, and those of them that are not in force.
    pub fn changes(&self) -> (Changes, Changes) {
        self.with(|inner| (inner.seen, inner.pending))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // Every step leaves the counts whole, so a panic elsewhere does not spoil them.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Trigger times by Service.
pub type Triggers = BTreeMap<NamespacedName, Vec<SystemTime>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_late_once_its_oldest_change_has_waited_for_the_timeout() {
        let (begin, time) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut pace = Pace::new(Duration::from_secs(10));
        pace.queued(Family::Ipv4, at(0), time);
        assert!(pace.in_time(at(100)), "what was never programmed is starting");
        pace.updated(Family::Ipv4, at(100), time);
        pace.updated(Family::Ipv6, at(100), time);
        assert!(pace.in_time(at(1_000)), "nothing waits");
        pace.queued(Family::Ipv6, at(1_000), time);
        pace.queued(Family::Ipv6, at(1_009), time);
        assert_eq!((pace.in_time(at(1_009)), pace.in_time(at(1_010))), (true, false));
        pace.updated(Family::Ipv4, at(1_011), time);
        assert!(!pace.in_time(at(1_011)), "the other family does not help");
        pace.updated(Family::Ipv6, at(1_012), time);
        assert!(pace.in_time(at(2_000)));
    }
}
