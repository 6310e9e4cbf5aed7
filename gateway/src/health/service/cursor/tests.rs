use std::sync::Arc;

use api::{
    proto::{
        health::{HealthState, WatchNodeHealthResponse, watch_node_health_response::Event},
        node::NodeServingState::{self, Draining, Serving},
    },
    resource::{Key, Kind},
};

use super::*;
use crate::{
    health::{
        fixture::{node, request, set, status, store},
        judge::Judge,
        moment::Moment,
        report::{Reporter, Reports},
        service::query::NodeQuery,
    },
    snapshot::store::{Change, Store},
};

const INTERVAL: Duration = Duration::from_secs(5);
const LEASE: Duration = Duration::from_secs(3600);

/// A replica without any IO, and a watch on it.
struct Scene {
    store: Arc<Store>,
    reports: Arc<Reports>,
    judge: Judge,
    boards: crate::health::judge::Boards,
    cursor: Cursor<NodeQuery>,
    start: Moment,
}

impl Scene {
    fn of(nodes: &[&str], min_interval: Duration) -> Self {
        let (store, reports) = (store(nodes), Arc::new(Reports::new(LEASE)));
        let (judge, boards) = Judge::new(store.clone(), reports.clone());
        let cursor = Cursor::new(NodeQuery::new(None).unwrap(), min_interval);
        let mut scene = Self { store, reports, judge, boards, cursor, start: Moment::now() };
        scene.board();
        scene
    }

    fn board(&mut self) -> Arc<Board> {
        self.judge.judge(self.start);
        self.boards.borrow().clone().unwrap()
    }

    fn agent(&self, node: &str, state: NodeServingState) -> Reporter {
        self.reports.open(request(status(node, "a", state)), self.start).unwrap()
    }

    fn say(&self, agent: &Reporter, state: NodeServingState) {
        agent.report(request(status(agent.node(), "a", state)), self.start).unwrap();
    }

    /// What is told after so many seconds, and the seconds after which something held back is due.
    fn told(&mut self, seconds: u64) -> (Vec<String>, Option<u64>) {
        let (board, now) = (self.board(), self.start.instant + Duration::from_secs(seconds));
        let due = self.cursor.due(&board, now);
        let told = due.keys.iter().filter_map(|key| self.cursor.tell(&board, key, now)).map(text).collect();
        (told, due.next.map(|next| (next - self.start.instant).as_secs()))
    }
}

fn text(event: WatchNodeHealthResponse) -> String {
    match event.event {
        Some(Event::Updated(node)) => {
            let state = node.health.as_ref().map_or(HealthState::Unspecified, |health| health.state());
            format!("{} {}", node.name, state.as_str_name().trim_start_matches("HEALTH_STATE_"))
        }
        Some(Event::Removed(name)) => format!("{name} gone"),
        other => panic!("a cursor never tells {other:?}"),
    }
}

#[test]
fn only_the_latest_is_told_and_only_if_it_differs() {
    let mut scene = Scene::of(&["n1"], Duration::ZERO);
    let agent = scene.agent("n1", Serving);
    assert_eq!(scene.told(0), (vec!["nodes/n1 HEALTHY".into()], None));
    assert_eq!(scene.told(0), (vec![], None));
    scene.say(&agent, Draining);
    scene.board();
    scene.say(&agent, Serving);
    assert_eq!(scene.told(0), (vec![], None), "it was drained and is back: the reader knows it as it is");
    scene.say(&agent, Draining);
    assert_eq!(scene.told(0), (vec!["nodes/n1 DRAINING".into()], None));
}

#[test]
fn good_news_wait_for_the_interval_and_bad_news_do_not() {
    let mut scene = Scene::of(&["n1"], INTERVAL);
    let agent = scene.agent("n1", Serving);
    assert_eq!(scene.told(0), (vec!["nodes/n1 HEALTHY".into()], None));
    let before = scene.cursor.token("r");
    scene.say(&agent, Draining);
    assert_eq!(scene.told(1), (vec!["nodes/n1 DRAINING".into()], None));
    scene.say(&agent, Serving);
    assert_eq!(scene.told(2), (vec![], Some(6)));
    let token = Token::decode(&scene.cursor.token("r")).unwrap();
    assert!(token.revision > Token::decode(&before).unwrap().revision);
    assert_eq!(token.etag, "", "what was told is on no board");
    assert_eq!(scene.told(6), (vec!["nodes/n1 HEALTHY".into()], None));
    assert_ne!(Token::decode(&scene.cursor.token("r")).unwrap().etag, "");
}

#[test]
fn what_was_held_back_is_told_by_whoever_resumes() {
    let mut scene = Scene::of(&["n1"], INTERVAL);
    let agent = scene.agent("n1", Draining);
    scene.told(0);
    scene.say(&agent, Serving);
    assert_eq!(scene.told(1).0, Vec::<String>::new());
    let (token, board) = (scene.cursor.token("r"), scene.board());
    scene.cursor = Cursor::new(NodeQuery::new(None).unwrap(), Duration::ZERO);
    assert_eq!(scene.cursor.resume(&token, &board, "r"), Resumed::Gone(vec![]));
    assert_eq!(scene.told(1).0, ["nodes/n1 HEALTHY"]);
}

#[test]
fn removals_are_told_once_and_never_held_back() {
    let mut scene = Scene::of(&["n1", "n2"], INTERVAL);
    assert_eq!(scene.told(0).0.len(), 2);
    scene.store.commit([Change::Remove(Key::new(Kind::Node, "n1"))]);
    assert_eq!(scene.told(1), (vec!["nodes/n1 gone".into()], None));
    assert_eq!(scene.told(1), (vec![], None));
}

#[test]
fn a_token_that_is_too_old_or_of_another_selection_starts_anew() {
    let mut scene = Scene::of(&["n1"], Duration::ZERO);
    scene.told(0);
    let token = scene.cursor.token("r");
    for index in 0..1100 {
        let name = format!("x{index}");
        scene.store.commit([set(node(&name))]);
        scene.board();
        scene.store.commit([Change::Remove(Key::new(Kind::Node, name))]);
        scene.board();
    }
    let _agent = scene.agent("n1", Serving);
    let board = scene.board();
    let mut resumed = Cursor::new(NodeQuery::new(None).unwrap(), Duration::ZERO);
    assert_eq!(resumed.resume(&token, &board, "r"), Resumed::Anew("TOO_OLD"));
    let selector = api::proto::health::NodeSelector { zones: vec!["z1".into()], states: vec![] };
    let mut other = Cursor::new(NodeQuery::new(Some(selector)).unwrap(), Duration::ZERO);
    assert_eq!(other.resume(&token, &board, "r"), Resumed::Anew("OTHER_SELECTION"));
}
