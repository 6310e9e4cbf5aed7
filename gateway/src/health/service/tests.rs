//! The service over a real connection, with a store that is filled by hand and an agent that is a stream.

use std::{collections::BTreeMap, future::Future, time::Duration};

use api::{
    proto::{
        health::{
            Bookmark, HealthState, NodeHealth, NodeSelector, ServiceSelector,
            node_health_service_client::NodeHealthServiceClient, watch_node_health_response::Event,
            watch_service_health_response::Event as ServiceEvent,
        },
        node::{
            NodeServingState::{self, Draining, Serving},
            NodeStatus, ReportNodeStatusRequest, ReportNodeStatusResponse,
            node_status_service_client::NodeStatusServiceClient,
        },
    },
    resource::{Key, Kind, service::TrafficPolicy},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Streaming,
    transport::{Channel, Server},
};

use super::*;
use crate::{
    health::{
        Config, Health,
        fixture::{fault, node, renewal, request, serve, service, set, status, store},
    },
    identity::{gate::Gate, layer::GateLayer},
    snapshot::store::{Change, Store},
};

mod list;
mod watch;

/// Far more than anything takes here; a test that waits for it has failed.
const LIMIT: Duration = Duration::from_secs(20);

/// A replica on a port of its own.
struct Replica {
    store: Arc<Store>,
    health: Health,
    trigger: drain::Trigger,
    channel: Channel,
}

/// An agent's stream.
struct Agent {
    requests: mpsc::Sender<ReportNodeStatusRequest>,
    responses: Streaming<ReportNodeStatusResponse>,
    node: String,
}

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, event).await.unwrap_or_else(|_| panic!("{what} did not happen within {LIMIT:?}"))
}

// === impl Replica ===

impl Replica {
    /// Serves a store with these nodes. Leases last long enough not to matter unless a test says otherwise.
    async fn start(nodes: &[&str]) -> Self {
        Self::serve(store(nodes), Duration::from_secs(3600), "replica-1").await
    }

    async fn serve(store: Arc<Store>, lease: Duration, replica_id: &str) -> Self {
        let (trigger, drain) = drain::channel();
        let config = Config { lease, replica_id: replica_id.into() };
        let (health, judge) = Health::new(config, store.clone(), drain);
        tokio::spawn(judge.run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let anyone = GateLayer(Gate::open(Arc::default()));
        let server =
            Server::builder().layer(anyone).add_service(health.node_status()).add_service(health.node_health());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut this = Self { store, health, trigger, channel };
        let listed = *this.store.revisions().borrow() > 0;
        if listed {
            soon("the first board", this.health.boards.wait_for(Option::is_some)).await.unwrap();
        }
        this
    }

    fn client(&self) -> NodeHealthServiceClient<Channel> {
        NodeHealthServiceClient::new(self.channel.clone())
    }

    /// Opens an agent's stream; returns when its report was taken.
    async fn agent(&self, node: &str, state: NodeServingState) -> Agent {
        let (requests, receiver) = mpsc::channel(4);
        requests.send(request(status(node, "a", state))).await.unwrap();
        let mut client = NodeStatusServiceClient::new(self.channel.clone());
        let responses = client.report_node_status(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let mut agent = Agent { requests, responses, node: node.to_owned() };
        agent.answer().await;
        agent
    }

    /// Waits for a board on which a node is in this state.
    async fn judged(&self, node: &str, state: HealthState) {
        let is = |board: &Option<Arc<Board>>| {
            let verdict = board.as_ref().and_then(|board| board.node(node)?.health);
            verdict.is_some_and(|health| health.state() == state)
        };
        soon("the verdict", self.health.boards.clone().wait_for(is)).await.unwrap();
    }

    async fn watch_nodes(&self, request: WatchNodeHealthRequest) -> Streaming<WatchNodeHealthResponse> {
        self.client().watch_node_health(request).await.unwrap().into_inner()
    }

    async fn watch_services(&self, request: WatchServiceHealthRequest) -> Streaming<WatchServiceHealthResponse> {
        self.client().watch_service_health(request).await.unwrap().into_inner()
    }
}

// === impl Agent ===

impl Agent {
    async fn answer(&mut self) -> ReportNodeStatusResponse {
        soon("an answer", self.responses.message()).await.unwrap().expect("the stream is open")
    }

    async fn say(&mut self, state: NodeServingState) {
        self.send(request(status(&self.node, "a", state))).await;
    }

    async fn send(&mut self, request: ReportNodeStatusRequest) {
        self.requests.send(request).await.unwrap();
        self.answer().await;
    }
}

#[tokio::test]
async fn agents_are_told_the_pace_with_the_first_answer() {
    let replica = Replica::serve(store(&["n1"]), Duration::from_secs(15), "r").await;
    let (requests, receiver) = mpsc::channel(4);
    requests.send(ReportNodeStatusRequest { sequence: 7, ..request(status("n1", "a", Serving)) }).await.unwrap();
    let mut client = NodeStatusServiceClient::new(replica.channel.clone());
    let mut responses = client.report_node_status(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let answer = soon("an answer", responses.message()).await.unwrap().unwrap();
    let seconds = |duration: Option<prost_types::Duration>| duration.unwrap_or_default().seconds;
    assert_eq!((answer.sequence, seconds(answer.report_interval), seconds(answer.lease_duration)), (7, 5, 15));

    let (requests, receiver) = mpsc::channel(4);
    requests.send(renewal()).await.unwrap();
    let mut responses = client.report_node_status(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let refused = soon("the refusal", responses.message()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_stream_that_is_replaced_is_told_so() {
    let replica = Replica::start(&["n1"]).await;
    let mut old = replica.agent("n1", Serving).await;
    let _new = replica.agent("n1", Serving).await;
    let status = soon("the end of the old stream", old.responses.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
}

#[tokio::test]
async fn get_answers_for_one_and_says_what_is_wrong_with_a_name() {
    let replica = Replica::start(&["n1"]).await;
    let mut hidden = node("n2");
    hidden.excluded_from_load_balancers = true;
    replica.store.commit([set(hidden), serve(service("web", TrafficPolicy::Cluster))]);
    let _agent = replica.agent("n1", Serving).await;
    replica.judged("n1", HealthState::Healthy).await;
    let mut client = replica.client();

    let answer = client.get_node_health(GetNodeHealthRequest { name: "nodes/n1".into() }).await.unwrap().into_inner();
    let (node, freshness) = (answer.node.unwrap(), answer.freshness.unwrap());
    assert_eq!((&*node.name, node.weight, &*node.zone, &*node.region), ("nodes/n1", 1, "z1", "r1"));
    assert_eq!((&*freshness.replica_id, freshness.degraded), ("replica-1", false));
    for (name, code) in [
        ("nodes/n2", Code::NotFound),
        ("nodes/n9", Code::NotFound),
        ("n1", Code::InvalidArgument),
        ("nodes/", Code::InvalidArgument),
        ("nodes/a/b", Code::InvalidArgument),
    ] {
        let status = client.get_node_health(GetNodeHealthRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}");
    }

    let name = "namespaces/default/services/web";
    let answer = client.get_service_health(GetServiceHealthRequest { name: name.into() }).await.unwrap().into_inner();
    let service = answer.service.unwrap();
    assert_eq!((&*service.name, service.healthy_backend_count, service.backends.len()), (name, 1, 1));
    assert_eq!((service.ports[0].port, service.ports[0].node_port, &*service.ports[0].protocol), (80, 30080, "TCP"));
    for (name, code) in [
        ("namespaces/default/services/none", Code::NotFound),
        ("namespaces/default/services/", Code::InvalidArgument),
        ("default/web", Code::InvalidArgument),
    ] {
        let status = client.get_service_health(GetServiceHealthRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(status.code(), code, "{name}");
    }
}

#[tokio::test]
async fn nothing_is_answered_before_the_sources_were_read() {
    let store = Arc::new(Store::new());
    let replica = Replica::serve(store.clone(), Duration::from_secs(15), "r").await;
    let status = replica.client().list_node_health(ListNodeHealthRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let mut watch = replica.watch_nodes(WatchNodeHealthRequest::default()).await;
    store.commit([set(node("n1"))]);
    let event = soon("the first event", watch.message()).await.unwrap().unwrap().event;
    assert!(matches!(event, Some(Event::Updated(node)) if node.name == "nodes/n1"));
}
