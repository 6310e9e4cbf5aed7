//! How long to wait before trying again.
//!
//! The wait grows exponentially and is drawn at random, so that a thousand agents that lost the same gateway do not
//! come back in step. It falls back to the minimum after a healthy *period*, not after a mere success: a peer that
//! accepts connections and drops them at once would otherwise be met with the shortest wait for ever.

use std::time::Duration;
use tokio::time::Instant;

/// The state of one thing that is retried.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    healthy_after: Duration,
    /// The upper bound of the next wait, before it is cut to `max`.
    ceiling: Duration,
    /// Since when the thing has worked, if it works.
    healthy_since: Option<Instant>,
}

impl Backoff {
    /// Waits between `min` and `max`; `healthy_after` of health brings the wait back to `min`. A `max` below `min`
    /// counts as `min`.
    pub fn new(min: Duration, max: Duration, healthy_after: Duration) -> Self {
        Backoff { min, max: max.max(min), healthy_after, ceiling: first_ceiling(min), healthy_since: None }
    }

    /// Notes a failure now; the answer is how long to wait before the next attempt.
    #[expect(clippy::should_implement_trait, reason = "there is always a next wait, so no Option and no Iterator")]
    pub fn next(&mut self) -> Duration {
        self.next_at(Instant::now())
    }

    /// Notes that the thing works now. Calling it again while it works changes nothing.
    pub fn healthy(&mut self) {
        self.healthy_at(Instant::now());
    }

    /// [`Backoff::next`] at a given time.
    ///
    /// The wait is drawn evenly from `min` to a ceiling, which doubles with each failure up to `max`. The lower end is
    /// `min` and not zero: a peer that is down must never be tried in a tight loop, however the dice fall.
    pub fn next_at(&mut self, now: Instant) -> Duration {
        if let Some(since) = self.healthy_since.take()
            && now.saturating_duration_since(since) >= self.healthy_after
        {
            self.ceiling = first_ceiling(self.min);
        }
        let ceiling = self.ceiling.min(self.max);
        self.ceiling = ceiling.saturating_mul(2);
        self.min + (ceiling - self.min).mul_f64(fastrand::f64())
    }

    /// [`Backoff::healthy`] at a given time.
    pub fn healthy_at(&mut self, now: Instant) {
        self.healthy_since.get_or_insert(now);
    }
}

/// The first wait is already spread: over one `min` beyond the minimum.
fn first_ceiling(min: Duration) -> Duration {
    min.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(10);
    const HEALTHY: Duration = Duration::from_secs(60);

    fn failed(times: usize, now: Instant) -> Backoff {
        let mut backoff = Backoff::new(MIN, MAX, HEALTHY);
        for _ in 0..times {
            backoff.next_at(now);
        }
        backoff
    }

    /// The smallest and largest of many draws of the wait that a state would give.
    fn spread(backoff: &Backoff, now: Instant) -> (Duration, Duration) {
        let draws: Vec<Duration> = (0..2000).map(|_| backoff.clone().next_at(now)).collect();
        (*draws.iter().min().unwrap(), *draws.iter().max().unwrap())
    }

    #[test]
    fn the_range_doubles_up_to_the_maximum_and_is_used_in_full() {
        let now = Instant::now();
        for (failures, ceiling) in [(0, MIN * 2), (1, MIN * 4), (3, MIN * 16), (20, MAX), (500, MAX)] {
            let (low, high) = spread(&failed(failures, now), now);
            assert!(low >= MIN && high <= ceiling, "{failures}: {low:?}..{high:?}");
            let width = ceiling - MIN;
            assert!(low < MIN + width / 10 && high > ceiling - width / 10, "{failures}: {low:?}..{high:?}");
        }
    }

    #[test]
    fn a_short_success_does_not_reset() {
        let now = Instant::now();
        let mut backoff = failed(20, now);
        backoff.healthy_at(now);
        let (_, high) = spread(&backoff, now + HEALTHY - Duration::from_millis(1));
        assert!(high > MAX / 2, "{high:?}");
    }

    #[test]
    fn a_healthy_period_resets_even_if_noted_once() {
        let now = Instant::now();
        let mut backoff = failed(20, now);
        backoff.healthy_at(now);
        assert!(backoff.next_at(now + HEALTHY) <= MIN * 2);
    }

    #[test]
    fn repeated_notes_do_not_restart_the_period() {
        let now = Instant::now();
        let mut backoff = failed(20, now);
        backoff.healthy_at(now);
        backoff.healthy_at(now + HEALTHY / 2);
        assert!(backoff.next_at(now + HEALTHY) <= MIN * 2);
    }

    #[test]
    fn health_before_a_failure_does_not_count_after_it() {
        let now = Instant::now();
        let mut backoff = failed(20, now);
        backoff.healthy_at(now);
        backoff.next_at(now + HEALTHY / 2);
        let (_, high) = spread(&backoff, now + HEALTHY * 2);
        assert!(high > MAX / 2, "{high:?}");
    }

    #[test]
    fn extreme_settings_do_not_overflow() {
        let now = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::ZERO, Duration::ZERO);
        assert_eq!(backoff.next_at(now), Duration::from_secs(5));
        let mut backoff = Backoff::new(Duration::ZERO, MAX, HEALTHY);
        assert_eq!(backoff.next_at(now), Duration::ZERO);
    }
}
