//! The answers of `/healthz` and `/livez` (S13).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use crate::apply::programming::Pace;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// `/healthz`: whether load balancers may send traffic here.
    Health,
    /// `/livez`: whether the agent works. A restart would not help a node that is being deleted.
    Life,
}

/// What the answers depend on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether programming keeps up.
    pub pace: Pace,
    /// The node is neither being deleted nor tainted for it (S13.2). A node that is not known counts as eligible.
    pub eligible: bool,
    /// The agent is ending: it fails `/healthz` before it stops serving (S16.3).
    pub draining: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status: 200 or 503.
    pub status: u16,
    /// JSON.
    pub body: String,
}

/// What a probe is told.
pub fn answer(question: Question, facts: &Facts, now: Instant, time: SystemTime) -> Answer {
    let states = facts.pace.states(now);
    let in_time = states.iter().all(|state| state.in_time);
    let well = match question {
        Question::Life => in_time,
        Question::Health => in_time && facts.eligible && !facts.draining,
    };
    let newest = states.iter().filter_map(|state| state.updated).max();
    // Old clients expect a recent time of whoever is well.
    let updated = if well { time } else { newest.unwrap_or(UNIX_EPOCH) };
    let families = states.iter().filter_map(|state| {
        let family = json!({"lastUpdated": timestamp(state.updated?), "healthy": state.in_time});
        Some((state.family.label().to_owned(), family))
    });
    let mut body = json!({
        "lastUpdated": timestamp(updated),
        "currentTime": timestamp(time),
        "healthy": in_time,
        "status": families.collect::<Map<String, Value>>(),
    });
    if question == Question::Health {
        body["nodeEligible"] = json!(facts.eligible);
    }
    Answer { status: if well { 200 } else { 503 }, body: body.to_string() }
}

/// RFC 3339.
fn timestamp(time: SystemTime) -> String {
    Timestamp::from(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::table::Family;

    #[test]
    fn bodies_are_those_of_kube_proxy() {
        let (begin, epoch) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_000));
        let mut pace = Pace::new(Duration::from_secs(10));
        pace.updated(Family::Ipv4, begin, epoch);
        let mut facts = Facts { pace, eligible: true, draining: false };
        let ask = |question, facts: &Facts, after| {
            let after = Duration::from_secs(after);
            let Answer { status, body } = answer(question, facts, begin + after, epoch + after);
            (status, serde_json::from_str::<Value>(&body).expect("JSON"))
        };
        let (status, body) = ask(Question::Health, &facts, 5);
        let expected = json!({
            "lastUpdated": "1970-01-01T00:16:45Z", "currentTime": "1970-01-01T00:16:45Z", "healthy": true,
            "nodeEligible": true, "status": {"IPv4": {"lastUpdated": "1970-01-01T00:16:40Z", "healthy": true}},
        });
        assert_eq!((status, body), (200, expected));

        facts.pace.queued(Family::Ipv4, begin, epoch);
        let (status, body) = ask(Question::Life, &facts, 20);
        assert_eq!(
            (status, &body["lastUpdated"], &body["healthy"]),
            (503, &json!("1970-01-01T00:16:40Z"), &json!(false))
        );
        assert!(body.get("nodeEligible").is_none());
    }

    #[test]
    fn a_node_that_leaves_fails_health_and_lives() {
        let facts = |eligible, draining| Facts { pace: Pace::new(Duration::from_secs(10)), eligible, draining };
        let status = |question, facts: Facts| answer(question, &facts, Instant::now(), SystemTime::now()).status;
        assert_eq!(status(Question::Health, facts(true, false)), 200);
        assert_eq!(status(Question::Health, facts(false, false)), 503);
        assert_eq!(status(Question::Health, facts(true, true)), 503);
        assert_eq!(status(Question::Life, facts(false, true)), 200);
    }
}
