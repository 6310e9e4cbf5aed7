use super::*;

async fn list(replica: &Replica, request: ListNodeHealthRequest) -> ListNodeHealthResponse {
    replica.client().list_node_health(request).await.unwrap().into_inner()
}

fn names(answer: &ListNodeHealthResponse) -> Vec<&str> {
    answer.nodes.iter().map(|node| node.name.strip_prefix("nodes/").unwrap()).collect()
}

#[tokio::test]
async fn pages_are_of_one_revision_whatever_happens_meanwhile() {
    let replica = Replica::start(&["n1", "n2", "n3", "n4", "n5"]).await;
    let first = list(&replica, ListNodeHealthRequest { page_size: 2, ..Default::default() }).await;
    assert_eq!(names(&first), ["n1", "n2"]);

    let mut boards = replica.health.boards.clone();
    boards.mark_unchanged();
    replica.store.commit([set(node("n35")), Change::Remove(Key::new(Kind::Node, "n4"))]);
    soon("the next board", boards.changed()).await.unwrap();

    let request = |token: &str| ListNodeHealthRequest { page_size: 2, page_token: token.into(), ..Default::default() };
    let second = list(&replica, request(&first.next_page_token)).await;
    assert_eq!(names(&second), ["n3", "n4"]);
    assert_eq!(second.freshness.unwrap().etag, first.freshness.as_ref().unwrap().etag);
    let third = list(&replica, request(&second.next_page_token)).await;
    assert_eq!((names(&third), &*third.next_page_token), (vec!["n5"], ""));
    assert_eq!(names(&list(&replica, ListNodeHealthRequest::default()).await), ["n1", "n2", "n3", "n35", "n5"]);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let replica = Replica::start(&["n1", "n2"]).await;
    let first = list(&replica, ListNodeHealthRequest { page_size: 1, ..Default::default() }).await;
    let token = first.next_page_token;
    let zones = |zone: &str| Some(NodeSelector { zones: vec![zone.into()], states: vec![] });
    let states = |state| Some(NodeSelector { zones: vec![], states: vec![state] });
    let cases = [
        ListNodeHealthRequest { page_size: -1, ..Default::default() },
        ListNodeHealthRequest { page_token: "nonsense".into(), ..Default::default() },
        ListNodeHealthRequest { page_token: token.clone(), selector: zones("z1"), ..Default::default() },
        ListNodeHealthRequest { selector: states(0), ..Default::default() },
        ListNodeHealthRequest { selector: states(99), ..Default::default() },
    ];
    for case in cases {
        let status = replica.client().list_node_health(case.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{case:?}: {}", status.message());
    }
    let other = Replica::serve(store(&["n1", "n2"]), Duration::from_secs(15), "replica-2").await;
    let elsewhere = ListNodeHealthRequest { page_token: token, ..Default::default() };
    assert_eq!(other.client().list_node_health(elsewhere).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn selectors_narrow_by_zone_and_state() {
    let replica = Replica::start(&["n1", "n2"]).await;
    let mut far = node("n3");
    far.zone = "z2".into();
    replica.store.commit([set(far)]);
    let _agents = (replica.agent("n1", Serving).await, replica.agent("n3", Serving).await);
    replica.judged("n1", HealthState::Healthy).await;
    replica.judged("n3", HealthState::Healthy).await;
    let select = |zones: &[&str], states: &[HealthState]| {
        let zones = zones.iter().map(ToString::to_string).collect();
        let states = states.iter().map(|state| *state as i32).collect();
        ListNodeHealthRequest { selector: Some(NodeSelector { zones, states }), ..Default::default() }
    };
    let healthy = [HealthState::Healthy];
    assert_eq!(names(&list(&replica, select(&[], &[])).await), ["n1", "n2", "n3"]);
    assert_eq!(names(&list(&replica, select(&["z1"], &[])).await), ["n1", "n2"]);
    assert_eq!(names(&list(&replica, select(&[], &healthy)).await), ["n1", "n3"]);
    assert_eq!(names(&list(&replica, select(&["z2", "z3"], &healthy)).await), ["n3"]);
    assert_eq!(names(&list(&replica, select(&["z1"], &[HealthState::Draining])).await), Vec::<&str>::new());
}

#[tokio::test]
async fn polling_costs_nothing_while_nothing_differs() {
    let replica = Replica::start(&["n1"]).await;
    let mut agent = replica.agent("n1", Serving).await;
    replica.judged("n1", HealthState::Healthy).await;
    let etag = list(&replica, ListNodeHealthRequest::default()).await.freshness.unwrap().etag;
    let poll = ListNodeHealthRequest { if_changed_from: etag.clone(), ..Default::default() };
    agent.send(renewal()).await;
    let answer = list(&replica, poll.clone()).await;
    assert!(answer.unchanged && answer.nodes.is_empty());
    assert_eq!(answer.freshness.unwrap().etag, etag);
    agent.say(Draining).await;
    replica.judged("n1", HealthState::Draining).await;
    let answer = list(&replica, poll).await;
    assert!(!answer.unchanged && answer.nodes.len() == 1);
}

#[tokio::test]
async fn services_are_listed_without_backends_unless_asked_for() {
    let replica = Replica::start(&["n1"]).await;
    let mut boards = replica.health.boards.clone();
    boards.mark_unchanged();
    let mut classed = service("classed", TrafficPolicy::Cluster);
    classed.load_balancer_class = "portico.dev/gateway".into();
    replica.store.commit([serve(service("web", TrafficPolicy::Cluster)), serve(classed)]);
    soon("the next board", boards.changed()).await.unwrap();
    let list = async |view: HealthView, namespaces: &[&str], classes: &[&str]| {
        let strings = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let selector = ServiceSelector { namespaces: strings(namespaces), load_balancer_classes: strings(classes) };
        let request = ListServiceHealthRequest { view: view as i32, selector: Some(selector), ..Default::default() };
        let services = replica.client().list_service_health(request).await.unwrap().into_inner().services;
        let row = |service: api::proto::health::ServiceHealth| {
            (service.name.rsplit_once('/').unwrap().1.to_owned(), service.backends.len())
        };
        services.into_iter().map(row).collect::<Vec<_>>()
    };
    let both = |backends| vec![("classed".to_owned(), backends), ("web".to_owned(), backends)];
    assert_eq!(list(HealthView::Unspecified, &[], &[]).await, both(0));
    assert_eq!(list(HealthView::Full, &["default"], &[]).await, both(1));
    assert_eq!(list(HealthView::Basic, &[], &["portico.dev/gateway"]).await, [("classed".to_owned(), 0)]);
    assert_eq!(list(HealthView::Basic, &["other"], &[]).await, []);
}
