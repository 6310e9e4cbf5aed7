//! How often work is done that is the larger the more there is, however small the change: compiling the table, and writing
//! the packet rules. What changes now and then is worked on at once. In a stream of changes, such as thousands of
//! Services that come one after the other, each piece of work takes what has gathered since the last one, and all pieces
//! together a bounded share of one processor; otherwise their cost would grow with the square of the number of Services.

use std::time::Duration;

use tokio::time::Instant;

/// Rest after each piece of work, in multiples of the time it took: at most a fifth of the time is spent.
const REST: u32 = 4;

/// No change waits for longer than this, whatever the last piece of work took.
const LONGEST: Duration = Duration::from_millis(500);

/// When the next piece of work may begin.
#[derive(Clone, Copy, Debug)]
pub struct DutyCycle {
    due: Instant,
}

// === impl DutyCycle ===

impl DutyCycle {
    /// The first piece of work may begin at `now`.
    pub fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When the next piece of work may begin.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// A piece of work was done.
    pub fn worked(&mut self, began: Instant, ended: Instant) {
        self.due = ended + (ended.saturating_duration_since(began) * REST).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_a_fifth_of_the_time_and_is_never_late() {
        let begin = Instant::now();
        let mut duty = DutyCycle::new(begin);
        assert_eq!(duty.due(), begin);
        let check = |duty: &mut DutyCycle, took, rest| {
            let ended = begin + Duration::from_millis(took);
            duty.worked(begin, ended);
            assert_eq!(duty.due(), ended + Duration::from_millis(rest), "after {took} ms");
        };
        check(&mut duty, 0, 0);
        check(&mut duty, 5, 20);
        check(&mut duty, 2_000, 500);
    }
}
