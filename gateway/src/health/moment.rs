//! A point in time, as deadlines need it and as people read it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// Now, on both clocks. Deadlines use the monotonic one, so that a step of the wall clock ends no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// For deadlines.
    pub instant: Instant,
    /// For people, and for other machines.
    pub wall: SystemTime,
}

/// When an agent was last heard. It moves on with every renewal, without anybody being told.
#[derive(Debug)]
pub struct Heard(Mutex<Moment>);

// === impl Moment ===

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// What the wall clock shows at `instant`, if it does not step in between.
    pub fn wall_at(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(ahead) => self.wall + ahead,
            None => self.wall - (self.instant - instant),
        }
    }
}

// === impl Heard ===

impl Heard {
    /// Heard at this moment.
    pub fn at(moment: Moment) -> Self {
        Self(Mutex::new(moment))
    }

    /// Heard again.
    pub fn renew(&self, moment: Moment) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = moment;
    }

    /// When it was.
    pub fn last(&self) -> Moment {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a lease that is renewed by being heard is over.
    pub fn end(&self, term: Duration) -> Instant {
        self.last().instant + term
    }
}
