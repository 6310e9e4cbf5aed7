use super::*;

/// What a reader has made of a watch.
#[derive(Default)]
struct Reader {
    nodes: BTreeMap<String, NodeHealth>,
    updates: usize,
    token: String,
    resets: Vec<String>,
}

impl Reader {
    /// Reads up to and including the next bookmark.
    async fn bookmark(&mut self, watch: &mut Streaming<WatchNodeHealthResponse>) -> Bookmark {
        loop {
            if let Some(bookmark) = self.event(watch).await {
                return bookmark;
            }
        }
    }

    /// Reads until a node is in this state.
    async fn until(&mut self, watch: &mut Streaming<WatchNodeHealthResponse>, node: &str, state: HealthState) {
        while self.state(node) != Some(state) {
            self.event(watch).await;
        }
    }

    async fn event(&mut self, watch: &mut Streaming<WatchNodeHealthResponse>) -> Option<Bookmark> {
        let event = soon("an event", watch.message()).await.unwrap().expect("the watch goes on").event;
        match event.expect("an event is never empty") {
            Event::Updated(node) => {
                self.updates += 1;
                self.nodes.insert(node.name.clone(), node);
            }
            Event::Removed(name) => {
                self.nodes.remove(&name);
            }
            Event::Reset(reset) => self.resets.push(reset.reason),
            Event::Bookmark(bookmark) => {
                self.token = bookmark.resume_token.clone();
                return Some(bookmark);
            }
        }
        None
    }

    fn state(&self, node: &str) -> Option<HealthState> {
        Some(self.nodes.get(&format!("nodes/{node}"))?.health.as_ref()?.state())
    }

    fn names(&self) -> Vec<&str> {
        self.nodes.keys().map(|name| name.strip_prefix("nodes/").unwrap()).collect()
    }
}

fn resuming(token: &str) -> WatchNodeHealthRequest {
    WatchNodeHealthRequest { resume_token: token.into(), ..Default::default() }
}

#[tokio::test]
async fn a_watch_tells_the_state_a_bookmark_and_then_every_change() {
    let replica = Replica::start(&["n1", "n2"]).await;
    let mut agent = replica.agent("n1", Serving).await;
    replica.judged("n1", HealthState::Healthy).await;
    let mut watch = replica.watch_nodes(WatchNodeHealthRequest::default()).await;
    let mut reader = Reader::default();
    let bookmark = reader.bookmark(&mut watch).await;
    assert!(bookmark.initial_state_complete);
    assert!(bookmark.freshness.unwrap().degraded, "n2 was not heard yet");
    assert_eq!((reader.names(), reader.updates), (vec!["n1", "n2"], 2));

    agent.say(Draining).await;
    reader.until(&mut watch, "n1", HealthState::Draining).await;
    assert_eq!(reader.nodes["nodes/n1"].weight, 0);
    replica.store.commit([set(node("n3")), Change::Remove(Key::new(Kind::Node, "n2"))]);
    while reader.names() != ["n1", "n3"] {
        reader.event(&mut watch).await;
    }
    assert_eq!(reader.updates, 4, "nothing else was told");
    replica.trigger.start();
    let status = loop {
        match soon("the end", watch.message()).await {
            Ok(event) => assert!(event.is_some(), "the end has a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_node_that_leaves_the_selection_is_removed() {
    let replica = Replica::start(&["n1"]).await;
    let mut agent = replica.agent("n1", Serving).await;
    replica.judged("n1", HealthState::Healthy).await;
    let selector = NodeSelector { zones: vec![], states: vec![HealthState::Healthy as i32] };
    let request = WatchNodeHealthRequest { selector: Some(selector), ..Default::default() };
    let mut watch = replica.watch_nodes(request).await;
    let mut reader = Reader::default();
    reader.bookmark(&mut watch).await;
    assert_eq!(reader.names(), ["n1"]);
    agent.say(Draining).await;
    while !reader.nodes.is_empty() {
        reader.event(&mut watch).await;
    }
    agent.say(Serving).await;
    reader.until(&mut watch, "n1", HealthState::Healthy).await;
}

#[tokio::test]
async fn a_watch_resumes_with_what_changed_meanwhile() {
    let replica = Replica::start(&["n1", "n2", "n3"]).await;
    let mut agent = replica.agent("n1", Serving).await;
    let mut reader = Reader::default();
    replica.judged("n1", HealthState::Healthy).await;
    reader.bookmark(&mut replica.watch_nodes(resuming("")).await).await;
    agent.say(Draining).await;
    replica.store.commit([Change::Remove(Key::new(Kind::Node, "n2"))]);
    let gone = |board: &Option<Arc<Board>>| {
        let board = board.as_ref().expect("was judged before");
        !board.nodes.contains_key("n2") && board.node("n1").unwrap().health.unwrap().state() == HealthState::Draining
    };
    soon("the board", replica.health.boards.clone().wait_for(gone)).await.unwrap();
    reader.updates = 0;
    let mut watch = replica.watch_nodes(resuming(&reader.token)).await;
    reader.bookmark(&mut watch).await;
    assert_eq!((reader.names(), reader.updates), (vec!["n1", "n3"], 1), "n3 was not told again");
    assert_eq!(reader.state("n1"), Some(HealthState::Draining));
    assert!(reader.resets.is_empty());
    // What was told before the interruption is followed as well.
    replica.store.commit([Change::Remove(Key::new(Kind::Node, "n3"))]);
    while reader.names() != ["n1"] {
        reader.event(&mut watch).await;
    }
}

#[tokio::test]
async fn another_replica_resumes_what_it_agrees_with_and_resets_the_rest() {
    let (one, two) = (Replica::start(&["n1"]).await, store(&["n1"]));
    let two = Replica::serve(two, Duration::from_secs(3600), "replica-2").await;
    let mut reader = Reader::default();
    reader.bookmark(&mut one.watch_nodes(resuming("")).await).await;
    let token = reader.token.clone();

    reader.updates = 0;
    reader.bookmark(&mut two.watch_nodes(resuming(&token)).await).await;
    assert_eq!((reader.updates, reader.resets.len()), (0, 0));

    let _agent = two.agent("n1", Serving).await;
    two.judged("n1", HealthState::Healthy).await;
    reader.bookmark(&mut two.watch_nodes(resuming(&token)).await).await;
    assert_eq!((reader.updates, reader.resets.as_slice()), (1, &["UNKNOWN_TOKEN".to_owned()][..]));
    reader.bookmark(&mut two.watch_nodes(resuming("nonsense")).await).await;
    assert_eq!((reader.updates, reader.resets.len()), (2, 2));
}

#[tokio::test]
async fn a_lease_that_ends_is_told_when_it_does() {
    let replica = Replica::serve(store(&["n1"]), Duration::from_millis(300), "r").await;
    let agent = replica.agent("n1", Serving).await;
    let mut watch = replica.watch_nodes(resuming("")).await;
    let mut reader = Reader::default();
    drop(agent);
    // A slow machine may be told of the last verdict only, which is by time alone as well.
    reader.until(&mut watch, "n1", HealthState::Unhealthy).await;
    assert_eq!(reader.nodes["nodes/n1"].health.as_ref().unwrap().reason, "LEASE_EXPIRED");
    reader.bookmark(&mut watch).await;
    let before = reader.token.clone();
    reader.bookmark(&mut watch).await;
    assert_eq!(reader.token, before, "bookmarks come without news as well");
}

#[tokio::test]
async fn a_service_watch_tells_of_backends_and_faults() {
    let replica = Replica::start(&["n1"]).await;
    replica.store.commit([serve(service("web", TrafficPolicy::Cluster))]);
    let mut agent = replica.agent("n1", Serving).await;
    let mut watch = replica.watch_services(WatchServiceHealthRequest::default()).await;
    let mut next = async |state: HealthState| {
        loop {
            let event = soon("an event", watch.message()).await.unwrap().expect("the watch goes on").event;
            let Some(ServiceEvent::Updated(service)) = event else { continue };
            let health = service.backends[0].health.clone().unwrap();
            if health.state() == state {
                return (health.reason, service.healthy_backend_count);
            }
        }
    };
    assert_eq!(next(HealthState::Healthy).await, ("SERVING".to_owned(), 1));
    let faulty = NodeStatus { faults: vec![fault("web", "PORT_IN_USE")], ..status("n1", "a", Serving) };
    agent.send(request(faulty)).await;
    assert_eq!(next(HealthState::Unhealthy).await, ("PORT_IN_USE".to_owned(), 0));
    agent.say(Draining).await;
    assert_eq!(next(HealthState::Draining).await, ("AGENT_DRAINING".to_owned(), 0));
    replica.store.commit([Change::Remove(Key::new(Kind::Service, "default/web"))]);
    let removed = loop {
        let event = soon("the removal", watch.message()).await.unwrap().expect("the watch goes on").event;
        if let Some(ServiceEvent::Removed(name)) = event {
            break name;
        }
    };
    assert_eq!(removed, "namespaces/default/services/web");
}

#[tokio::test]
async fn a_negative_interval_is_refused() {
    let replica = Replica::start(&["n1"]).await;
    let min_interval = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let request = WatchNodeHealthRequest { min_interval, ..Default::default() };
    let status = replica.client().watch_node_health(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}
