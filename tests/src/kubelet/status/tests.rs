use serde_json::{Value, json};

use super::*;

fn pod(policy: &str, extra: Value) -> Pod {
    let mut pod = json!({ "metadata": { "name": "web", "generation": 3 }, "spec": { "restartPolicy": policy,
        "containers": [{ "name": "main" }] }, "status": {} });
    for (key, value) in extra.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

fn running(ready: bool) -> Seen {
    Seen { state: State::Running { since: Timestamp::UNIX_EPOCH }, ready, started: true, ..Default::default() }
}

fn ended(code: i32) -> Seen {
    let end = ContainerStateTerminated { exit_code: code, ..Default::default() };
    Seen { state: State::Terminated(end), ..Default::default() }
}

fn crashed() -> Seen {
    let end = ContainerStateTerminated { exit_code: 1, ..Default::default() };
    Seen { state: State::waiting("CrashLoopBackOff", None), last: Some(end), ..Default::default() }
}

fn seen(containers: &[(&str, Seen)]) -> Observed {
    let containers = containers.iter().map(|(name, seen)| ((*name).to_owned(), seen.clone())).collect();
    Observed { containers, prepared: true, ..Default::default() }
}

/// Conditions are given as the initials of the true ones: Prepared, Initialized, Containers ready, Ready.
#[track_caller]
fn check(pod: &Pod, observed: &Observed, phase: &str, conditions: &str) {
    let status = status(pod, observed, &[], &[], Timestamp::UNIX_EPOCH);
    assert_eq!(status.phase.as_deref(), Some(phase));
    let initial = |condition: &PodCondition| match condition.type_.as_str() {
        "PodReadyToStartContainers" => 'P',
        other => other.chars().next().unwrap(),
    };
    let all = status.conditions.unwrap();
    let is_true: String = all.iter().filter(|condition| condition.status == "True").map(initial).collect();
    assert_eq!(is_true, conditions);
}

#[test]
fn a_pod_is_pending_until_its_containers_have_begun_and_ready_when_they_are() {
    let pod = pod("Always", json!({}));
    check(&pod, &Observed::default(), "Pending", "I");
    check(&pod, &seen(&[]), "Pending", "PI");
    check(&pod, &seen(&[("main", running(false))]), "Running", "PI");
    check(&pod, &seen(&[("main", running(true))]), "Running", "PICR");
    check(&pod, &seen(&[("main", crashed())]), "Running", "PI");
    check(&pod, &seen(&[("main", ended(0))]), "Running", "PI");
}

#[test]
fn containers_that_are_not_restarted_end_the_pod() {
    check(&pod("Never", json!({})), &seen(&[("main", ended(0))]), "Succeeded", "PI");
    check(&pod("Never", json!({})), &seen(&[("main", ended(1))]), "Failed", "PI");
    check(&pod("OnFailure", json!({})), &seen(&[("main", ended(0))]), "Succeeded", "PI");
    check(&pod("OnFailure", json!({})), &seen(&[("main", ended(1))]), "Running", "PI");
}

#[test]
fn a_pod_that_was_ended_has_a_phase_that_is_final() {
    let finished = |code| Observed { finished: true, prepared: false, ..seen(&[("main", ended(code))]) };
    check(&pod("Always", json!({})), &finished(0), "Succeeded", "I");
    check(&pod("Always", json!({})), &finished(143), "Failed", "I");
    let never_began = Observed { finished: true, ..Default::default() };
    check(&pod("Always", json!({})), &never_began, "Failed", "I");
}

#[test]
fn initial_containers_come_first_and_sidecars_count_for_readiness() {
    let pod = pod(
        "Always",
        json!({ "initContainers": [{ "name": "first" }, { "name": "side", "restartPolicy": "Always" }] }),
    );
    check(&pod, &seen(&[("first", running(false))]), "Pending", "P");
    check(&pod, &seen(&[("first", ended(0))]), "Pending", "P");
    check(&pod, &seen(&[("first", ended(0)), ("side", running(true))]), "Pending", "PI");
    check(&pod, &seen(&[("first", ended(0)), ("side", running(true)), ("main", running(true))]), "Running", "PICR");
    check(&pod, &seen(&[("first", ended(0)), ("side", running(false)), ("main", running(true))]), "Running", "PI");
}

#[test]
fn readiness_gates_close_the_pod_until_they_are_true() {
    let mut pod = pod("Always", json!({ "readinessGates": [{ "conditionType": "example.com/in" }] }));
    let observed = seen(&[("main", running(true))]);
    check(&pod, &observed, "Running", "PIC");
    let gate = PodCondition { type_: "example.com/in".to_owned(), status: "True".to_owned(), ..Default::default() };
    pod.status = Some(PodStatus { conditions: Some(vec![gate]), ..Default::default() });
    check(&pod, &observed, "Running", "PICR");
}

#[test]
fn the_time_of_a_transition_moves_with_the_status_only() {
    let pod = pod("Always", json!({}));
    let later = Timestamp::from_second(60).unwrap();
    let first = status(&pod, &seen(&[("main", running(false))]), &[], &[], Timestamp::UNIX_EPOCH);
    let second = status(&pod, &seen(&[("main", running(true))]), &[], first.conditions.as_deref().unwrap(), later);
    let time = |type_: &str| {
        let all = second.conditions.iter().flatten();
        all.into_iter().find(|condition| condition.type_ == type_).unwrap().last_transition_time.clone().unwrap().0
    };
    assert_eq!((time("Ready"), time("Initialized")), (later, Timestamp::UNIX_EPOCH));
}

#[test]
fn a_waiting_container_says_what_for() {
    let reason = |pod: &Pod, observed: &Observed| {
        let status = status(pod, observed, &[], &[], Timestamp::UNIX_EPOCH);
        let state = status.container_statuses.unwrap().remove(0).state.unwrap();
        state.waiting.unwrap().reason.unwrap()
    };
    let initial = pod("Always", json!({ "initContainers": [{ "name": "first" }] }));
    assert_eq!(reason(&pod("Always", json!({})), &Observed::default()), "ContainerCreating");
    assert_eq!(reason(&initial, &seen(&[("first", running(false))])), "PodInitializing");
    assert_eq!(reason(&pod("Always", json!({})), &seen(&[("main", crashed())])), "CrashLoopBackOff");
}
