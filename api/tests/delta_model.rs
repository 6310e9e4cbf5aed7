//! Both ends of the delta protocol against each other: whatever is lost, refused, restarted or coalesced, once the
//! stream is quiet the agent holds exactly the gateway's state, less what it refuses.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use api::{
    delta::{
        Changes, Rejection,
        client::{Client, Received},
        frame::{Encoded, Step, View, slices},
        server::{Frame, Heard, Resync, Server},
        version::{Digest, Digests},
    },
    proto::discovery as wire,
    resource::{Key, Kind, Resource, name::NamespacedName, settings::Settings, workload::Workload},
};
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

/// A gateway's store, as simple as can be.
#[derive(Default)]
struct Model {
    now: BTreeMap<Key, Encoded>,
    digests: Digests,
    revision: u64,
    log: VecDeque<(u64, Digests, BTreeSet<Key>)>,
}

impl Model {
    fn commit(&mut self, change: impl IntoIterator<Item = (Key, Option<Encoded>)>) {
        let mut touched = BTreeSet::new();
        let before = self.digests;
        for (key, content) in change {
            if let Some(old) = self.now.remove(&key) {
                self.digests.remove(&key, old.version);
            }
            if let Some(new) = content {
                self.digests.add(&key, new.version);
                self.now.insert(key.clone(), new);
            }
            touched.insert(key);
        }
        self.log.push_back((self.revision, before, touched));
        self.revision += 1;
        while self.log.len() > 4 {
            self.log.pop_front();
        }
    }

    /// The same content in a new process: no history.
    fn restart(&mut self) {
        self.log.clear();
        self.revision = 0;
    }
}

impl View for Model {
    fn revision(&self) -> u64 {
        self.revision
    }
    fn digests(&self) -> &Digests {
        &self.digests
    }
    fn commit_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
    fn find(&self, kind: Kind, digest: &Digest) -> Option<u64> {
        self.log.iter().find(|(_, digests, _)| digests.of(kind) == digest).map(|(revision, ..)| *revision)
    }
    fn touched(&self, kind: Kind, revision: u64) -> Option<Vec<Key>> {
        let oldest = self.log.front().map_or(self.revision, |(revision, ..)| *revision);
        if revision < oldest {
            return None;
        }
        let keys: BTreeSet<&Key> = self
            .log
            .iter()
            .filter(|(at, ..)| *at >= revision)
            .flat_map(|(_, _, keys)| keys)
            .filter(|key| key.kind == kind)
            .collect();
        Some(keys.into_iter().cloned().collect())
    }
    fn get(&self, key: &Key) -> Option<&Encoded> {
        self.now.get(key)
    }
    fn all(&self, kind: Kind) -> Vec<&Encoded> {
        self.now.values().filter(|encoded| encoded.key.kind == kind).collect()
    }
    fn slices(&self, step: &Step) -> Arc<[Bytes]> {
        slices(self, step)
    }
}

/// The agent's side: what it applied, and what it refuses.
struct Agent {
    client: Client,
    applied: BTreeMap<Key, Bytes>,
}

impl Agent {
    fn apply(&mut self, changes: Changes, refuse: impl Fn(&Key, &Bytes) -> bool) -> wire::WatchRequest {
        let mut rejections = Vec::new();
        for changed in changes.set {
            if refuse(&changed.key, &changed.body) {
                let message = "refused by the test".to_owned();
                rejections.push(Rejection { key: changed.key, version: changed.version, message });
            } else {
                self.applied.insert(changed.key, changed.body);
            }
        }
        for key in changes.removed {
            self.applied.remove(&key);
        }
        self.client.applied(&rejections)
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// Commits new content for these names.
    Commit(Vec<(u8, u8)>),
    /// Moves up to this many messages of the gateway to the agent, and the answers back.
    Deliver(u8),
    /// Moves messages one way only, so that answers stay under way.
    Hold(u8),
    /// Breaks the stream, losing what is under way.
    Break,
    /// Restarts the gateway, keeping its content.
    RestartGateway,
    /// Restarts the agent, losing what it holds.
    RestartAgent,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => proptest::collection::vec((0..12u8, 0..5u8), 1..5).prop_map(Action::Commit),
        4 => (1..6u8).prop_map(Action::Deliver),
        2 => (1..6u8).prop_map(Action::Hold),
        2 => Just(Action::Break),
        1 => Just(Action::RestartGateway),
        1 => Just(Action::RestartAgent),
    ]
}

/// Content 0 removes; content 4 is what the agent refuses.
fn content(name: u8, value: u8) -> (Key, Option<Encoded>) {
    let resource = if name == 0 {
        let cluster_domain = format!("domain-{value}");
        Resource::Settings(Settings { cluster_domain, service_cidrs: vec![], node_ports: (1, 2) })
    } else {
        let pod = NamespacedName::new("default", format!("pod-{value}"));
        Resource::Workload(Workload { address: [10, 0, 0, name].into(), pod, node: String::new() })
    };
    (resource.key(), (value > 0).then(|| Encoded::new(&resource)))
}

fn refuse(_: &Key, body: &Bytes) -> bool {
    body.windows(2).any(|pair| pair == b"-4")
}

/// One stream with what is under way in both directions.
struct Stream {
    server: Server,
    to_agent: VecDeque<Bytes>,
    to_gateway: VecDeque<wire::WatchRequest>,
}

impl Stream {
    fn open(agent: &mut Agent) -> Self {
        let to_gateway = VecDeque::from([agent.client.hello()]);
        Self { server: Server::new(), to_agent: VecDeque::new(), to_gateway }
    }

    fn send(&mut self, frame: Frame) {
        self.to_agent.push_back(frame.parts().into_iter().flatten().copied().collect());
    }

    fn gateway(&mut self, model: &Model) {
        while let Some(request) = self.to_gateway.pop_front() {
            if let Heard::Hello { .. } = self.server.request(request, "uid").expect("the agent keeps the protocol") {
                let welcome = wire::Welcome { cluster_uid: "uid".to_owned(), bucket_count: 1, ..Default::default() };
                let frame = self.server.welcome(welcome, model).expect("hello was heard");
                self.send(frame);
            }
        }
        while let Some(frame) = self.server.respond(model) {
            self.send(frame);
        }
    }

    fn agent(&mut self, agent: &mut Agent, count: usize) {
        for _ in 0..count {
            let Some(bytes) = self.to_agent.pop_front() else { return };
            let response = wire::WatchResponse::decode(bytes).expect("the gateway writes whole messages");
            match agent.client.receive(response).expect("the gateway keeps the protocol") {
                Received::Welcome(_) => {}
                Received::Staged(ack) => self.to_gateway.push_back(ack),
                Received::Commit(changes, _) => {
                    let ack = agent.apply(changes, refuse);
                    self.to_gateway.push_back(ack);
                }
                Received::Goodbye(_) => unreachable!("the model never says goodbye"),
            }
        }
    }

    fn settle(&mut self, agent: &mut Agent, model: &Model) {
        for _ in 0..100 {
            self.gateway(model);
            if self.to_agent.is_empty() && self.to_gateway.is_empty() {
                return;
            }
            self.agent(agent, usize::MAX);
        }
        panic!("the stream never becomes quiet");
    }
}

fn new_agent() -> Agent {
    Agent { client: Client::new("node-a", "test"), applied: BTreeMap::new() }
}

fn acceptable(model: &Model) -> BTreeMap<Key, Bytes> {
    let good = model.now.iter().filter(|(key, encoded)| !refuse(key, &encoded.body));
    good.map(|(key, encoded)| (key.clone(), encoded.body.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_agent_converges_on_the_gateway(actions in proptest::collection::vec(action(), 1..60)) {
        let mut model = Model::default();
        let mut agent = new_agent();
        let mut stream = Stream::open(&mut agent);
        for action in actions {
            match action {
                Action::Commit(changes) => model.commit(changes.into_iter().map(|(name, value)| content(name, value))),
                Action::Deliver(count) => {
                    stream.gateway(&model);
                    stream.agent(&mut agent, count.into());
                    stream.gateway(&model);
                }
                Action::Hold(count) => stream.agent(&mut agent, count.into()),
                Action::Break => stream = Stream::open(&mut agent),
                Action::RestartGateway => {
                    model.restart();
                    stream = Stream::open(&mut agent);
                }
                Action::RestartAgent => {
                    agent = new_agent();
                    stream = Stream::open(&mut agent);
                }
            }
        }
        stream.settle(&mut agent, &model);
        // What is refused now may still be served in its last good version; everything else is equal.
        let refused: BTreeSet<&Key> =
            model.now.iter().filter(|(key, encoded)| refuse(key, &encoded.body)).map(|(key, _)| key).collect();
        let served: BTreeMap<Key, Bytes> =
            agent.applied.iter().filter(|(key, _)| !refused.contains(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        prop_assert_eq!(served, acceptable(&model));
        prop_assert!(agent.applied.keys().all(|key| model.now.contains_key(key)));
        prop_assert_eq!(stream.server.rejected(), refused.len());
    }

    #[test]
    fn encoding_a_step_and_a_full_state_agree(changes in proptest::collection::vec((0..12u8, 0..4u8), 1..40)) {
        let mut model = Model::default();
        let (mut by_step, mut by_full) = (new_agent(), new_agent());
        let mut stream = Stream::open(&mut by_step);
        for (name, value) in changes {
            model.commit([content(name, value)]);
            stream.settle(&mut by_step, &model);
        }
        Stream::open(&mut by_full).settle(&mut by_full, &model);
        prop_assert_eq!(by_step.client.digests(), by_full.client.digests());
        prop_assert_eq!(by_step.applied, by_full.applied);
    }
}

#[test]
fn an_agent_that_holds_the_newest_state_is_sent_no_resource() {
    let mut model = Model::default();
    let mut agent = new_agent();
    model.commit((1..6).map(|name| content(name, 1)));
    Stream::open(&mut agent).settle(&mut agent, &model);
    model.restart();
    let mut again = Stream::open(&mut agent);
    again.gateway(&model);
    assert_eq!(again.server.resync(), Resync::None);
    assert_eq!(again.to_agent.len(), 2, "a welcome and an empty commit");
    let commit = wire::WatchResponse::decode(again.to_agent[1].clone()).expect("decodes");
    let Some(wire::watch_response::Kind::Update(update)) = commit.kind else { panic!("not an update") };
    assert!(update.resources.is_empty() && update.removed.is_empty() && update.replaced_buckets.is_empty());
}

#[test]
fn an_agent_that_is_a_few_commits_behind_is_sent_the_changes_only() {
    let mut model = Model::default();
    let mut agent = new_agent();
    model.commit((1..6).map(|name| content(name, 1)));
    Stream::open(&mut agent).settle(&mut agent, &model);
    model.commit([content(2, 2)]);
    model.commit([content(3, 0)]);
    let mut again = Stream::open(&mut agent);
    again.gateway(&model);
    assert_eq!(again.server.resync(), Resync::Log);
    let commit = wire::WatchResponse::decode(again.to_agent[1].clone()).expect("decodes");
    let Some(wire::watch_response::Kind::Update(update)) = commit.kind else { panic!("not an update") };
    assert_eq!((update.resources.len(), update.removed.len(), update.replaced_buckets.len()), (1, 1, 0));
}

#[test]
fn a_slow_agent_gets_one_merged_step() {
    let mut model = Model::default();
    let mut agent = new_agent();
    let mut stream = Stream::open(&mut agent);
    stream.settle(&mut agent, &model);
    let mut sent = 0;
    for round in 0..40u8 {
        model.commit([content(1 + round % 3, 1 + round % 3)]);
        stream.gateway(&model);
        sent = stream.to_agent.len();
    }
    assert!(sent <= 4, "{sent} updates are open, the window is four");
    stream.settle(&mut agent, &model);
    assert_eq!(agent.applied, acceptable(&model));
}

#[test]
fn an_acknowledgement_out_of_order_ends_the_stream() {
    let mut model = Model::default();
    let mut agent = new_agent();
    let mut stream = Stream::open(&mut agent);
    model.commit([content(1, 1)]);
    stream.gateway(&model);
    let ack = wire::Ack { nonce: "999".to_owned(), ..Default::default() };
    let request = wire::WatchRequest { kind: Some(wire::watch_request::Kind::Ack(ack)) };
    let violation = stream.server.request(request, "uid").expect_err("the nonce is wrong");
    assert!(violation.to_string().contains("999"), "{violation}");
}

#[test]
fn large_states_are_cut_into_slices_and_applied_whole() {
    let mut model = Model::default();
    let mut agent = new_agent();
    let many = (0..30_000u32).map(|index| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + index).into();
        let pod = NamespacedName::new("default", format!("a-pod-with-a-long-name.{index}"));
        let resource = Resource::Workload(Workload { address, pod, node: "node-a".to_owned() });
        (resource.key(), Some(Encoded::new(&resource)))
    });
    model.commit(many);
    let mut stream = Stream::open(&mut agent);
    stream.gateway(&model);
    assert!(stream.to_agent.len() > 2);
    while stream.to_agent.len() > 1 || !stream.to_gateway.is_empty() {
        stream.agent(&mut agent, 1);
        if stream.to_agent.is_empty() {
            break;
        }
        assert!(agent.applied.is_empty() || agent.applied.len() == 30_000, "nothing is applied before the commit");
        stream.gateway(&model);
    }
    stream.settle(&mut agent, &model);
    assert_eq!(agent.applied.len(), 30_000);
}
