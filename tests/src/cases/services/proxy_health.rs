//! What the node proxy says of its own health over time (S13).

use std::time::{Duration, Instant, SystemTime};

use agent::{
    apply::programming::Pace,
    health::proxy::{Facts, Question, answer},
};
use serde::Deserialize;
use serde_json::Value;

use super::{node::Node, rows::family};

/// One step; only one of its fields is there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Step {
    queued: Option<Vec<String>>,
    updated: Option<Vec<String>>,
    advance_seconds: Option<u64>,
    node: Option<Value>,
    check: Option<Check>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Check {
    healthz: Option<u16>,
    livez: Option<u16>,
    node_eligible: Option<bool>,
}

/// Runs the steps on a clock of their own.
pub(super) fn run(node: &mut Node, timeout: u64, steps: &[Step]) -> Result<(), String> {
    let (mut now, mut time) = (Instant::now(), SystemTime::now());
    let mut pace = Pace::new(Duration::from_secs(timeout));
    for (index, step) in steps.iter().enumerate() {
        for name in step.queued.iter().flatten() {
            pace.queued(family(name)?, now, time);
        }
        for name in step.updated.iter().flatten() {
            pace.updated(family(name)?, now, time);
        }
        if let Some(seconds) = step.advance_seconds {
            now += Duration::from_secs(seconds);
            time += Duration::from_secs(seconds);
        }
        if let Some(object) = &step.node {
            node.apply(std::slice::from_ref(object))?;
        }
        if let Some(expected) = &step.check {
            let eligible = !node.table().location.leaving;
            let facts = Facts { pace: pace.clone(), eligible, draining: false };
            check(expected, &facts, now, time).map_err(|reason| format!("health step {}: {reason}", index + 1))?;
        }
    }
    Ok(())
}

fn check(expected: &Check, facts: &Facts, now: Instant, time: SystemTime) -> Result<(), String> {
    let (health, life) = (answer(Question::Health, facts, now, time), answer(Question::Life, facts, now, time));
    if expected.healthz.is_some_and(|status| status != health.status) {
        return Err(format!("/healthz answers {} {}", health.status, health.body));
    }
    if expected.livez.is_some_and(|status| status != life.status) {
        return Err(format!("/livez answers {} {}", life.status, life.body));
    }
    let body: Value = serde_json::from_str(&health.body).map_err(|error| error.to_string())?;
    if expected.node_eligible.is_some_and(|eligible| body["nodeEligible"] != Value::Bool(eligible)) {
        return Err(format!("/healthz says {body}"));
    }
    Ok(())
}
