//! What becomes of the packet rules, for those who look: metrics, and `/debug/intercept`.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::program::Error;
use crate::table::Family;

/// Shared by the one who keeps the rules and by those who ask.
#[derive(Clone, Debug, Default)]
pub struct State(Arc<Mutex<Seen>>);

/// What there is to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Addresses and ports of Services that the rules in force know.
    pub destinations: usize,
    /// When rules came into force last.
    pub installed: Option<SystemTime>,
    /// How often others had removed or changed them.
    pub repairs: u64,
    /// How often they could not be installed or looked at.
    pub failures: u64,
    /// What was wrong the last time, and when.
    pub last_error: Option<(SystemTime, String)>,
}

// === impl State ===

impl State {
    /// Rules for so many destinations are in force.
    pub fn in_force(&self, destinations: usize) {
        let mut seen = self.lock();
        seen.destinations = destinations;
        seen.installed = Some(SystemTime::now());
    }

    /// Somebody had removed or changed them, and they are installed again.
    pub fn repaired(&self) {
        let mut seen = self.lock();
        seen.repairs += 1;
        seen.installed = Some(SystemTime::now());
    }

    /// They could not be installed, or not be looked at.
    pub fn failed(&self, error: &Error) {
        let mut seen = self.lock();
        seen.failures += 1;
        seen.last_error = Some((SystemTime::now(), error.to_string()));
    }

    /// All of it.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// Registers what is read when somebody scrapes.
    pub fn observe(&self, meter: &Meter) {
        let state = self.clone();
        meter
            .u64_observable_gauge("portico.intercept.destinations")
            .with_description("Addresses and ports of Services in the packet rules in force")
            .with_callback(move |gauge| gauge.observe(state.seen().destinations as u64, &[]))
            .build();
        let state = self.clone();
        meter
            .u64_observable_counter("portico.intercept.repairs")
            .with_description(
                "How often the packet rules were installed again because somebody had removed or changed them",
            )
            .with_callback(move |counter| counter.observe(state.seen().repairs, &[]))
            .build();
        let state = self.clone();
        meter
            .u64_observable_counter("kubeproxy_sync_proxy_rules_nftables_sync_failures")
            .with_description("How often the packet rules could not be installed; one transaction holds both families")
            .with_callback(move |counter| {
                for family in Family::ALL {
                    counter.observe(state.seen().failures, &[KeyValue::new("ip_family", family.label())]);
                }
            })
            .build();
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Every step leaves the values whole, so a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = |time: &SystemTime| time.elapsed().unwrap_or_default().as_secs();
        match &self.installed {
            Some(time) => writeln!(out, "{} destinations in force, {} s ago", self.destinations, age(time))?,
            None => writeln!(out, "no rules in force")?,
        }
        writeln!(out, "{} repairs, {} failures", self.repairs, self.failures)?;
        match &self.last_error {
            Some((time, error)) => writeln!(out, "last error, {} s ago: {error}", age(time)),
            None => Ok(()),
        }
    }
}
