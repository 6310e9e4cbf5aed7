use super::*;

const TERM: Duration = Duration::from_secs(15);

/// Facts whose lease began at `start`.
fn facts(start: Instant, origin: Origin, state: NodeServingState, leaving: bool) -> Facts {
    Facts { lease: Lease { origin, end: start + TERM, term: TERM, held: false }, state, leaving }
}

#[test]
fn the_first_rule_that_matches_decides_on_a_node() {
    use NodeServingState::{Draining, Failed, Serving, Starting, Unspecified};
    use Origin::{NewNode, Reported, Warmup};
    let start = Instant::now();
    // Origin, agent, leaving, seconds since the lease began; state, reason, seconds until time changes it.
    let cases = [
        (Reported, Serving, false, 0, State::Healthy, "SERVING", Some(15)),
        (Reported, Serving, false, 14, State::Healthy, "SERVING", Some(15)),
        (Reported, Serving, false, 15, State::Unknown, "LEASE_EXPIRED", Some(30)),
        (Reported, Serving, false, 29, State::Unknown, "LEASE_EXPIRED", Some(30)),
        (Reported, Serving, false, 30, State::Unhealthy, "LEASE_EXPIRED", None),
        (Reported, Serving, true, 0, State::Draining, "NODE_LEAVING", Some(15)),
        (Reported, Serving, true, 15, State::Unknown, "LEASE_EXPIRED", Some(30)),
        (Reported, Draining, false, 0, State::Draining, "AGENT_DRAINING", Some(15)),
        (Reported, Draining, true, 0, State::Draining, "AGENT_DRAINING", Some(15)),
        (Reported, Draining, false, 30, State::Unhealthy, "LEASE_EXPIRED", None),
        (Reported, Starting, false, 0, State::Unhealthy, "NOT_SYNCED", Some(15)),
        (Reported, Starting, true, 0, State::Unhealthy, "NOT_SYNCED", Some(15)),
        (Reported, Unspecified, false, 0, State::Unhealthy, "NOT_SYNCED", Some(15)),
        (Reported, Failed, true, 0, State::Unhealthy, "AGENT_FAILED", Some(15)),
        (Warmup, Unspecified, true, 0, State::Unknown, "CONTROL_PLANE_WARMUP", Some(15)),
        (Warmup, Unspecified, false, 15, State::Unknown, "LEASE_EXPIRED", Some(30)),
        (Warmup, Unspecified, false, 30, State::Unhealthy, "LEASE_EXPIRED", None),
        (NewNode, Unspecified, false, 14, State::Unknown, "AGENT_NOT_SEEN", Some(15)),
        (NewNode, Unspecified, false, 15, State::Unknown, "LEASE_EXPIRED", Some(30)),
    ];
    for (origin, agent, leaving, age, state, reason, until) in cases {
        let verdict = node(&facts(start, origin, agent, leaving), start + Duration::from_secs(age));
        let got = (verdict.state, &*verdict.reason, verdict.until.map(|until| (until - start).as_secs()));
        assert_eq!(got, (state, reason, until), "{origin:?} {agent:?} leaving={leaving} after {age} s");
    }
}

#[test]
fn a_lease_that_is_held_keeps_the_last_word_for_ever() {
    let start = Instant::now();
    for (agent, state) in [(NodeServingState::Serving, State::Healthy), (NodeServingState::Draining, State::Draining)] {
        let mut facts = facts(start, Origin::Reported, agent, false);
        facts.lease.held = true;
        let verdict = node(&facts, start + 100 * TERM);
        assert_eq!((verdict.state, verdict.until), (state, None));
    }
}

#[test]
fn an_unknown_node_keeps_its_weight() {
    let verdict = |state| Verdict { state, reason: "".into(), message: "".into(), until: None };
    let cases = [
        (State::Healthy, Some(0), Origin::Reported, 1),
        (State::Draining, Some(1), Origin::Reported, 0),
        (State::Unhealthy, Some(1), Origin::Reported, 0),
        (State::Unknown, Some(1), Origin::Reported, 1),
        (State::Unknown, Some(0), Origin::Reported, 0),
        (State::Unknown, None, Origin::Warmup, 1),
        (State::Unknown, None, Origin::NewNode, 0),
    ];
    for (state, before, origin, weight) in cases {
        assert_eq!(node_weight(&verdict(state), before, origin), weight, "{state:?} {before:?} {origin:?}");
    }
}

#[test]
fn a_backend_is_the_worse_of_its_node_and_what_the_node_has_of_the_service() {
    let fault = Fault { reason: "PORT_IN_USE".into(), message: "30080 is in use".into(), since: None };
    let local = |ready, serving| Some(Local { ready, serving });
    // Node, its weight, fault, local endpoints; state, reason, weight, whether the node decided.
    let cases = [
        (State::Healthy, 1, false, None, State::Healthy, "NODE", 1, true),
        (State::Healthy, 1, false, local(3, 4), State::Healthy, "NODE", 3, true),
        (State::Healthy, 1, true, None, State::Unhealthy, "PORT_IN_USE", 0, false),
        (State::Healthy, 1, true, local(3, 3), State::Unhealthy, "PORT_IN_USE", 0, false),
        (State::Healthy, 1, false, local(0, 2), State::Draining, "ENDPOINTS_TERMINATING", 0, false),
        (State::Healthy, 1, false, local(0, 0), State::Unhealthy, "NO_LOCAL_ENDPOINTS", 0, false),
        (State::Unknown, 1, false, None, State::Unknown, "NODE", 1, true),
        (State::Unknown, 0, false, None, State::Unknown, "NODE", 0, true),
        (State::Unknown, 1, false, local(2, 2), State::Unknown, "NODE", 2, true),
        (State::Unknown, 1, false, local(0, 2), State::Draining, "ENDPOINTS_TERMINATING", 0, false),
        (State::Unknown, 1, true, None, State::Unhealthy, "PORT_IN_USE", 0, false),
        (State::Draining, 0, false, local(2, 2), State::Draining, "NODE", 0, true),
        (State::Draining, 0, false, local(0, 2), State::Draining, "NODE", 0, true),
        (State::Draining, 0, false, local(0, 0), State::Unhealthy, "NO_LOCAL_ENDPOINTS", 0, false),
        (State::Unhealthy, 0, true, local(0, 0), State::Unhealthy, "NODE", 0, true),
    ];
    for (state, node_weight, is_faulty, local, expected, reason, weight, by_node) in cases {
        let node = Verdict { state, reason: "NODE".into(), message: "".into(), until: None };
        let facts = BackendFacts { node: &node, node_weight, fault: is_faulty.then_some(&fault), local };
        let got = backend(&facts);
        assert_eq!(
            (got.state, &*got.reason, got.weight, got.by_node),
            (expected, reason, weight, by_node),
            "{state:?} fault={is_faulty} {local:?}"
        );
    }
}
