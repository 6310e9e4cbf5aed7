//! Probes of a container: when a row of outcomes changes what is held true, and the task that asks.

use std::{net::IpAddr, ops::ControlFlow, time::Duration};

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::time::{Instant, MissedTickBehavior};

use super::process::Access;

/// Sends a single probe.
pub mod send;

/// What is held true about a container, and the latest outcomes that speak for or against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    held: bool,
    latest: bool,
    run: i32,
    successes: i32,
    failures: i32,
}

/// What a probe is sent to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address of the Pod, or of the node if the Pod is in its network.
    pub address: IpAddr,
    /// The container, for its named ports.
    pub container: Container,
    /// The way in.
    pub access: Access,
}

// === impl Verdict ===

impl Verdict {
    /// What a probe holds true at first.
    pub fn new(probe: &Probe, held: bool) -> Self {
        let at_least_one = |threshold: Option<i32>, default| threshold.unwrap_or(default).max(1);
        let (successes, failures) =
            (at_least_one(probe.success_threshold, 1), at_least_one(probe.failure_threshold, 3));
        Self { held, latest: held, run: 0, successes, failures }
    }

    /// Takes an outcome, and gives what is held true now.
    pub fn observe(&mut self, outcome: bool) -> bool {
        self.run = if self.latest == outcome { self.run.saturating_add(1) } else { 1 };
        self.latest = outcome;
        if self.run >= if outcome { self.successes } else { self.failures } {
            self.held = outcome;
        }
        self.held
    }

    /// Whether failures have reached their threshold.
    pub fn failed(&self) -> bool {
        !self.latest && self.run >= self.failures
    }
}

/// Asks until `tell` breaks off, beginning after the initial delay. It is told what is held true after each outcome, and
/// whether failures have reached their threshold.
pub async fn repeat(
    probe: &Probe,
    target: &Target,
    started: Instant,
    held: bool,
    mut tell: impl FnMut(bool, bool) -> ControlFlow<()>,
) {
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.map_or(default, |s| s.max(0).unsigned_abs().into()))
    };
    let begin = started + seconds(probe.initial_delay_seconds, 0);
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let mut verdict = Verdict::new(probe, held);
    let mut ticks = tokio::time::interval_at(begin, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = match tokio::time::timeout(timeout, send::probe(probe, target)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer in {timeout:?}")),
        };
        if let Err(reason) = &outcome {
            tracing::debug!(container = target.container.name, reason, "a probe failed");
        }
        let now = verdict.observe(outcome.is_ok());
        if tell(now, verdict.failed()).is_break() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(held: bool, successes: i32, failures: i32, outcomes: &str, expected: &str) {
        let probe =
            Probe { success_threshold: Some(successes), failure_threshold: Some(failures), ..Default::default() };
        let mut verdict = Verdict::new(&probe, held);
        let verdicts: String = outcomes.chars().map(|c| if verdict.observe(c == '+') { '+' } else { '-' }).collect();
        assert_eq!(verdicts, expected, "{outcomes}");
    }

    #[test]
    fn a_row_of_outcomes_as_long_as_the_threshold_changes_the_verdict() {
        check(false, 1, 3, "+", "+");
        check(false, 2, 3, "++", "-+");
        check(false, 2, 3, "+-++", "---+");
        check(true, 1, 3, "---+", "++-+");
        check(true, 1, 3, "--+--+", "++++++");
        check(true, 1, 1, "-+-", "-+-");
    }

    #[test]
    fn failures_count_though_nothing_was_held_before() {
        // A startup probe holds nothing true at first, and must still end the container after its failures.
        let probe = Probe { failure_threshold: Some(2), ..Default::default() };
        let mut verdict = Verdict::new(&probe, false);
        verdict.observe(false);
        assert!(!verdict.failed());
        verdict.observe(false);
        assert!(verdict.failed());
    }
}
