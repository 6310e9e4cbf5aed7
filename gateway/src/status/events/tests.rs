use std::sync::Arc;

use api::proto::node::{NodeServingState::Serving, NodeStatus};

use super::*;
use crate::{
    health::{
        fixture::{TERM, fault, request, status},
        moment::Moment,
    },
    watch::object::Kind,
};

fn object(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Service, "default", name)
}

fn problem(message: &str) -> Problem {
    Problem::new("INVALID_ANNOTATION", message)
}

fn write_due(ledger: &mut Ledger, now: Instant, problems: &ByObject) -> Vec<(String, u32)> {
    let due = ledger.due(now, problems);
    let told = due.iter().map(|(object, problem, count)| (format!("{object}: {}", problem.message), *count)).collect();
    due.into_iter().for_each(|(object, problem, _)| ledger.wrote(now, object, problem));
    told
}

#[tokio::test(start_paused = true)]
async fn a_problem_is_told_once_then_now_and_then_and_anew_when_it_comes_back() {
    let mut ledger = Ledger::default();
    let mut problems = ByObject::from([(object("web"), vec![problem("one"), problem("two"), problem("one")])]);
    let now = Instant::now();
    let both = [("Service default/web: one".to_owned(), 0), ("Service default/web: two".to_owned(), 0)];
    assert_eq!(write_due(&mut ledger, now, &problems), both);
    assert_eq!(write_due(&mut ledger, now + PAUSE, &problems), []);
    problems.get_mut(&object("web")).expect("is there").pop();
    let later = now + REPEAT;
    assert_eq!(write_due(&mut ledger, later, &problems).iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(write_due(&mut ledger, later, &ByObject::new()), []);
    assert_eq!(write_due(&mut ledger, later, &problems), both);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_written_stays_due() {
    let mut ledger = Ledger::default();
    let problems = ByObject::from([(object("web"), vec![problem("one")])]);
    let now = Instant::now();
    assert_eq!(ledger.due(now, &problems).len(), 1);
    assert_eq!(ledger.due(now + PAUSE, &problems).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_object_that_changes_all_the_time_is_limited_and_others_are_not() {
    let mut ledger = Ledger::default();
    let now = Instant::now();
    let told = |ledger: &mut Ledger, now, name: &str, number: u32| {
        write_due(ledger, now, &ByObject::from([(object(name), vec![problem(&number.to_string())])])).len()
    };
    let burst: usize = (0..100).map(|number| told(&mut ledger, now, "noisy", number)).sum();
    assert_eq!(burst, 25);
    assert_eq!(told(&mut ledger, now, "quiet", 0), 1);
    assert_eq!(told(&mut ledger, now + PER_OBJECT.1, "noisy", 1), 1, "one more after a pause");
    let many = (0..200).map(|number| (object(&format!("s{number}")), vec![problem("x")])).collect();
    assert_eq!(write_due(&mut Ledger::default(), now, &many).len(), 50, "and all together are");
}

#[test]
fn an_event_is_what_the_api_server_accepts() {
    let regarding = ObjectReference { uid: Some("u-1".to_owned()), ..ObjectReference::default() };
    let long = problem(&"ä".repeat(2_000));
    let name = "n".repeat(253);
    let event = event(&object(&name), regarding.clone(), &long, "gateway-1", Timestamp::UNIX_EPOCH);
    assert_eq!(event.note.as_deref().map(str::len), Some(1024));
    assert!(event.metadata.name.as_deref().is_some_and(|name| name.len() <= 253));
    assert_eq!(event.reason.as_deref(), Some("InvalidAnnotation"));
    let of_node = super::event(
        &ObjectKey::new(Kind::Node, "", "node-1"),
        regarding,
        &problem("x"),
        "gateway-1",
        Timestamp::UNIX_EPOCH,
    );
    assert_eq!(of_node.metadata.namespace.as_deref(), Some("default"));
}

#[tokio::test(start_paused = true)]
async fn an_event_is_written_about_the_object_and_then_counted() {
    let server = crate::status::fixture::ApiServer::new();
    let web = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default", "uid": "u-1" } });
    server.set("/api/v1/namespaces/default/services/web", web);
    let problems = ByObject::from([(object("web"), vec![problem("wrong")]), (object("gone"), vec![problem("wrong")])]);
    let (_sender, catalog) = watch::channel(Catalog { problems: Arc::new(problems), ..Catalog::default() });
    let reports = Arc::new(Reports::new(TERM));
    tokio::spawn(Events::new(server.client(), "gateway-1", Leadership::always(), catalog, reports.clone()).run());
    tokio::time::sleep(PAUSE * 3).await;
    let folder = "/apis/events.k8s.io/v1/namespaces/default/events/";
    let events = server.list(folder);
    assert_eq!(events.len(), 1, "none of what is gone: {events:?}");
    let event = &events[0];
    assert_eq!(event["regarding"]["uid"], "u-1");
    assert_eq!((&event["note"], &event["type"]), (&json!("wrong"), &json!("Warning")));
    assert!(event["series"].is_null());
    tokio::time::sleep(REPEAT + PAUSE).await;
    assert_eq!(server.list(folder)[0]["series"]["count"], 2);

    // What an agent reports is told as well, and as soon as it does.
    let status = NodeStatus { faults: vec![fault("web", "PORT_IN_USE")], ..status("n1", "a", Serving) };
    let _reporter = reports.open(request(status), Moment::now()).expect("it is right");
    tokio::time::sleep(PAUSE / 2).await;
    let events = server.list(folder);
    assert_eq!(events.iter().filter(|event| event["reason"] == "PortInUse").count(), 1, "{events:?}");
}
