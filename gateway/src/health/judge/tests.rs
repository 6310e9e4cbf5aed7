use std::time::Duration;

use api::{
    proto::{
        health::{HealthState, NodeHealth, ServiceHealth},
        node::NodeServingState::{Draining, Failed, Serving, Starting},
    },
    resource::service::TrafficPolicy,
};

use super::*;
use crate::{
    health::{
        fixture::{self, TERM, endpoint, fault, node, place, renewal, request, serve, service, set, status},
        report::Reporter,
    },
    snapshot::store::Change,
};

/// A judge with what it judges by.
struct Court {
    store: Arc<Store>,
    reports: Arc<Reports>,
    judge: Judge,
    boards: Boards,
    start: Moment,
}

impl Court {
    fn of(nodes: &[&str]) -> Self {
        let store = fixture::store(nodes);
        let reports = Arc::new(Reports::new(TERM));
        let (judge, boards) = Judge::new(store.clone(), reports.clone());
        Self { store, reports, judge, boards, start: Moment::now() }
    }

    fn at(&self, seconds: u64) -> Moment {
        self.start.after(Duration::from_secs(seconds))
    }

    /// Judges, and returns the seconds after the start at which time changes a verdict.
    fn judge(&mut self, seconds: u64) -> Option<u64> {
        let next = self.judge.judge(self.at(seconds))?;
        Some((next - self.start.instant).as_secs())
    }

    fn report(&self, seconds: u64, status: NodeStatus) -> Reporter {
        self.reports.open(request(status), self.at(seconds)).expect("a good report")
    }

    fn board(&self) -> Arc<Board> {
        self.boards.borrow().clone().expect("something was judged")
    }

    fn node(&self, name: &str) -> NodeHealth {
        self.board().node(name).expect("the node is listed")
    }

    /// State, reason and weight.
    fn verdict(&self, name: &str) -> (HealthState, String, u32) {
        let node = self.node(name);
        let health = node.health.unwrap_or_default();
        (health.state(), health.reason, node.weight)
    }

    fn service(&self, name: &str) -> ServiceHealth {
        self.board().service(&NamespacedName::new("default", name), true).expect("the Service is listed")
    }

    /// Node, state, reason, weight and serving endpoints of each backend.
    fn backends(&self, service: &str) -> Vec<(String, HealthState, String, u32, u32)> {
        let backends = self.service(service).backends.into_iter();
        let row = |backend: api::proto::health::Backend| {
            let health = backend.health.unwrap_or_default();
            (backend.node, health.state(), health.reason, backend.weight, backend.serving_endpoint_count)
        };
        backends.map(row).collect()
    }
}

fn says(state: HealthState, reason: &str, weight: u32) -> (HealthState, String, u32) {
    (state, reason.to_owned(), weight)
}

#[test]
fn nothing_is_published_before_the_sources_were_read() {
    let (store, reports) = (Arc::new(Store::new()), Arc::new(Reports::new(TERM)));
    let (mut judge, boards) = Judge::new(store.clone(), reports);
    assert_eq!(judge.judge(Moment::now()), None);
    assert!(boards.borrow().is_none());
    store.commit([]);
    judge.judge(Moment::now());
    assert!(boards.borrow().is_some(), "that there is nothing is a state as well");
}

#[test]
fn a_node_whose_agent_vanishes_is_unknown_and_then_unhealthy() {
    let mut court = Court::of(&["n1"]);
    assert_eq!(court.judge(0), Some(15));
    assert_eq!(court.verdict("n1"), says(HealthState::Unknown, "CONTROL_PLANE_WARMUP", 1));
    assert!(court.board().degraded);

    let reporter = court.report(1, status("n1", "a", Serving));
    assert_eq!(court.judge(1), Some(16));
    assert_eq!(court.verdict("n1"), says(HealthState::Healthy, "SERVING", 1));
    assert!(!court.board().degraded);

    let etag = court.board().nodes_etag.clone();
    reporter.report(renewal(), court.at(10)).unwrap();
    let revision = court.board().nodes_revision;
    assert_eq!(court.judge(16), Some(25), "the lease was renewed without anybody being woken");
    assert_eq!((court.board().nodes_revision, &court.board().nodes_etag), (revision, &etag));

    drop(reporter);
    court.judge(24);
    assert_eq!(court.verdict("n1"), says(HealthState::Healthy, "SERVING", 1), "the end of a stream ends no lease");
    assert_eq!(court.judge(25), Some(40));
    assert_eq!(court.verdict("n1"), says(HealthState::Unknown, "LEASE_EXPIRED", 1));
    assert_ne!(court.board().nodes_etag, etag);
    assert_eq!(court.judge(40), None);
    assert_eq!(court.verdict("n1"), says(HealthState::Unhealthy, "LEASE_EXPIRED", 0));

    court.report(50, status("n1", "b", Serving));
    court.judge(50);
    assert_eq!(court.verdict("n1"), says(HealthState::Healthy, "SERVING", 1));
    assert_eq!(court.board().nodes_etag, etag, "what is said is what was said before");
}

#[test]
fn what_an_agent_says_is_known_at_once() {
    let mut court = Court::of(&["n1"]);
    let reporter = court.report(0, status("n1", "a", Starting));
    court.judge(0);
    assert_eq!(court.verdict("n1"), says(HealthState::Unhealthy, "NOT_SYNCED", 0));
    for (state, expected) in [
        (Serving, says(HealthState::Healthy, "SERVING", 1)),
        (Failed, says(HealthState::Unhealthy, "AGENT_FAILED", 0)),
        (Draining, says(HealthState::Draining, "AGENT_DRAINING", 0)),
    ] {
        reporter.report(request(status("n1", "a", state)), court.at(1)).unwrap();
        court.judge(1);
        assert_eq!(court.verdict("n1"), expected);
    }
    drop(reporter);
    court.judge(16);
    assert_eq!(court.verdict("n1"), says(HealthState::Unknown, "LEASE_EXPIRED", 0), "unknown keeps the weight");
}

#[test]
fn times_tell_when_a_verdict_was_reached_and_how_long_it_holds() {
    let mut court = Court::of(&["n1", "n2"]);
    let begun = court.start.wall - Duration::from_secs(3600);
    let since = NodeStatus { state_since: Some(begun.into()), ..status("n1", "a", Serving) };
    let reporter = court.report(1, since);
    court.judge(1);
    let health = court.node("n1").health.unwrap();
    assert_eq!(health.state_since, Some(begun.into()), "a restart of the control plane changes no node");
    reporter.report(renewal(), court.at(6)).unwrap();
    let health = court.node("n1").health.unwrap();
    assert_eq!(health.observe_time, Some(court.at(6).wall.into()), "renewals are seen without a new board");
    assert_eq!(health.expire_time, Some(court.at(21).wall.into()));
    let health = court.node("n2").health.unwrap();
    assert_eq!((health.observe_time, health.expire_time), (None, Some(court.at(15 + 1).wall.into())));

    court.judge(21);
    let health = court.node("n1").health.unwrap();
    assert_eq!(health.state_since, Some(court.at(21).wall.into()));
    assert_eq!(health.observe_time, Some(court.at(6).wall.into()));
    assert_eq!(health.expire_time, Some(court.at(36).wall.into()), "then it becomes unhealthy");
    court.judge(36);
    assert_eq!(court.node("n1").health.unwrap().expire_time, None);
}

#[test]
fn nodes_come_leave_and_hide() {
    let mut court = Court::of(&["n1"]);
    court.judge(0);
    court.store.commit([set(node("n2"))]);
    court.judge(100);
    assert_eq!(court.verdict("n2"), says(HealthState::Unknown, "AGENT_NOT_SEEN", 0));
    court.report(101, status("n2", "a", Serving));
    let mut leaving = node("n2");
    leaving.leaving = true;
    court.store.commit([set(leaving)]);
    court.judge(101);
    assert_eq!(court.verdict("n2"), says(HealthState::Draining, "NODE_LEAVING", 0));
    let mut hidden = node("n2");
    hidden.excluded_from_load_balancers = true;
    court.store.commit([set(hidden)]);
    court.judge(102);
    assert!(court.board().node("n2").is_none() && court.board().nodes.contains_key("n2"));
    let revision = court.board().revision;
    court.store.commit([Change::Remove(api::resource::Key::new(api::resource::Kind::Node, "n2"))]);
    court.judge(103);
    let board = court.board();
    assert!(!board.nodes.contains_key("n2"));
    let removed: Vec<_> = board.removed_nodes.since(revision).unwrap().map(ToString::to_string).collect();
    assert_eq!(removed, ["n2"]);
    assert!(court.reports.list().contains_key("n2"), "its agent still reports, or did until now");
    court.judge(200);
    assert!(!court.reports.list().contains_key("n2"));
}

#[test]
fn backends_follow_nodes_faults_and_local_endpoints() {
    let mut court = Court::of(&["n1", "n2", "n3"]);
    let gone = |last, node| {
        let endpoint = endpoint("local", last, node);
        api::resource::endpoint::Endpoint { ready: false, terminating: true, ..endpoint }
    };
    court.store.commit([
        serve(service("open", TrafficPolicy::Cluster)),
        serve(service("local", TrafficPolicy::Local)),
        place(endpoint("open", 9, "n1")),
        place(endpoint("local", 1, "n1")),
        place(endpoint("local", 2, "n1")),
        place(gone(3, "n2")),
    ]);
    let streams: Vec<_> = ["n1", "n2", "n3"].map(|node| court.report(0, status(node, "a", Serving))).into();
    court.judge(0);
    let row =
        |node: &str, state, reason: &str, weight, serving| (node.to_owned(), state, reason.to_owned(), weight, serving);
    assert_eq!(court.backends("open"), ["n1", "n2", "n3"].map(|node| row(node, HealthState::Healthy, "SERVING", 1, 1)));
    assert_eq!(
        court.backends("local"),
        [
            row("n1", HealthState::Healthy, "SERVING", 2, 2),
            row("n2", HealthState::Draining, "ENDPOINTS_TERMINATING", 0, 1),
            row("n3", HealthState::Unhealthy, "NO_LOCAL_ENDPOINTS", 0, 0),
        ]
    );
    assert_eq!((court.service("open").healthy_backend_count, court.service("local").healthy_backend_count), (3, 1));

    let faulty = NodeStatus { faults: vec![fault("open", "PORT_IN_USE")], ..status("n2", "a", Serving) };
    streams[1].report(request(faulty), court.at(5)).unwrap();
    court.judge(5);
    assert_eq!(court.backends("open")[1], row("n2", HealthState::Unhealthy, "PORT_IN_USE", 0, 1));
    streams[1].report(request(status("n2", "a", Serving)), court.at(7)).unwrap();
    court.judge(7);
    assert_eq!(court.backends("open")[1], row("n2", HealthState::Healthy, "SERVING", 1, 1));
    let since = court.service("open").backends[1].health.clone().unwrap().state_since;
    assert_eq!(since, Some(court.at(7).wall.into()), "since the fault is over");

    court.judge(15);
    let states: Vec<_> = court.backends("open").into_iter().map(|row| (row.1, row.3)).collect();
    assert_eq!(states, [(HealthState::Unknown, 1), (HealthState::Healthy, 1), (HealthState::Unknown, 1)]);
    assert_eq!(court.backends("local")[0], row("n1", HealthState::Unknown, "LEASE_EXPIRED", 2, 2));
}

#[test]
fn an_outage_of_hearing_changes_no_verdict() {
    let names: Vec<String> = (0..12).map(|index| format!("n{index:02}")).collect();
    let mut court = Court::of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let streams: Vec<_> = names.iter().map(|node| court.report(0, status(node, "a", Serving))).collect();
    court.judge(0);
    court.judge(15);
    assert!(court.board().degraded);
    for name in &names {
        assert_eq!(court.verdict(name), says(HealthState::Healthy, "SERVING", 1));
        assert_eq!(court.node(name).health.unwrap().expire_time, None);
    }
    court.judge(1000);
    assert!(court.board().degraded, "it lasts until they are heard");
    for stream in &streams[..11] {
        stream.report(renewal(), court.at(1001)).unwrap();
    }
    court.judge(1001);
    assert!(!court.board().degraded);
    assert_eq!(court.verdict("n11"), says(HealthState::Unknown, "LEASE_EXPIRED", 1));
    court.judge(1015);
    assert_eq!(court.verdict("n11"), says(HealthState::Unknown, "LEASE_EXPIRED", 1));
    court.judge(1016);
    assert_eq!(court.verdict("n11"), says(HealthState::Unhealthy, "LEASE_EXPIRED", 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_is_published_when_it_does() {
    let court = Court::of(&["n1"]);
    let mut boards = court.boards.clone();
    let reporter = court.reports.open(request(status("n1", "a", Serving)), Moment::now()).unwrap();
    let start = Instant::now();
    tokio::spawn(court.judge.run());
    let is = |state: State| {
        move |board: &Option<Arc<Board>>| {
            board.as_ref().is_some_and(|board| board.nodes["n1"].said.verdict.state == state)
        }
    };
    boards.wait_for(is(State::Healthy)).await.unwrap();
    boards.wait_for(is(State::Unknown)).await.unwrap();
    assert_eq!((start.elapsed().as_millis() + 5) / 1000, TERM.as_millis() / 1000, "by the clock alone");
    reporter.report(renewal(), Moment::now()).unwrap();
    boards.wait_for(is(State::Healthy)).await.unwrap();
    boards.wait_for(is(State::Unhealthy)).await.unwrap();
    assert_eq!((start.elapsed().as_millis() + 5) / 1000, 3 * TERM.as_millis() / 1000);
}
