//! What people and load balancers ask, over real gRPC: problems of manifests, health of nodes, names by reflection.

use std::{fs, path::Path};

use api::{
    delta::server::Resync,
    proto::{
        grpc_health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
        health::{GetNodeHealthRequest, HealthState, node_health_service_client::NodeHealthServiceClient},
        inspect::{
            ListObjectsRequest, ListObjectsResponse, ObjectKind, WatchObjectsRequest,
            inspect_service_client::InspectServiceClient, object, watch_objects_response::Event,
        },
        node::{
            NodeServingState, NodeStatus, ReportNodeStatusRequest, node_status_service_client::NodeStatusServiceClient,
        },
    },
};
use common::{Agent, Gateway, LIMIT};
use tokio_stream::wrappers::ReceiverStream;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

mod common;

const NODE: &str =
    "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: 127.0.1.1}]}\n";

fn write(directory: &Path, name: &str, content: &str) {
    fs::write(directory.join(name), content).expect("writes");
}

async fn list(gateway: &Gateway, kind: ObjectKind) -> ListObjectsResponse {
    let mut client = InspectServiceClient::connect(gateway.health.clone()).await.expect("connects");
    let request = ListObjectsRequest { kind: kind as i32, ..Default::default() };
    client.list_objects(request).await.expect("lists").into_inner()
}

#[tokio::test]
async fn problems_of_files_and_objects_are_shown_until_they_are_solved() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "nodes.yaml", NODE);
    write(directory.path(), "broken.yaml", "kind: {");
    write(
        directory.path(),
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {portico.dev/balancing: randon}}\n\
         spec: {ports: [{port: 80}]}\n",
    );
    let gateway = Gateway::start(directory.path()).await;
    tokio::time::timeout(LIMIT, gateway.readiness.wait()).await.expect("gets ready");
    let services = list(&gateway, ObjectKind::Service).await;
    assert!(services.problems[0].message.starts_with("broken.yaml: line 1"), "{:?}", services.problems);
    let web = &services.objects[0];
    assert!(web.create_time.is_some());
    assert!(web.problems[0].message.contains("did you mean random?"), "{:?}", web.problems);

    let mut client = InspectServiceClient::connect(gateway.health.clone()).await.expect("connects");
    let request = WatchObjectsRequest { kind: ObjectKind::Service as i32, ..Default::default() };
    let mut watch = client.watch_objects(request).await.expect("watches").into_inner();
    write(
        directory.path(),
        "web.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {portico.dev/balancing: random}}\n\
         spec: {ports: [{port: 80}]}\n",
    );
    loop {
        let event = tokio::time::timeout(LIMIT, watch.message()).await.expect("something is said");
        let event = event.expect("the stream is open").and_then(|response| response.event);
        if let Some(Event::Updated(object)) = event
            && object.problems.is_empty()
        {
            let Some(object::Kind::Service(service)) = object.kind else { panic!("not a Service") };
            assert_eq!((service.name.as_str(), service.balancing.is_some()), ("web", true));
            break;
        }
    }
    write(directory.path(), "broken.yaml", "");
    let solved = async {
        while !list(&gateway, ObjectKind::Service).await.problems.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, solved).await.expect("the file is right again");
    drop(watch);
    gateway.stop().await;
}

#[tokio::test]
async fn an_agent_that_reports_is_healthy_and_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "nodes.yaml", NODE);
    let gateway = Gateway::start(directory.path()).await;
    let mut agent = Agent::new("n1");
    let mut stream = agent.connect(&gateway.discovery).await;
    agent.commit(&mut stream).await;

    let mut reports = NodeStatusServiceClient::connect(gateway.discovery.clone()).await.expect("connects");
    let (sender, outgoing) = tokio::sync::mpsc::channel(4);
    let report = |sequence, state: NodeServingState| {
        let status = NodeStatus {
            node_name: "n1".to_owned(),
            instance_id: "i-1".to_owned(),
            state: state as i32,
            ..Default::default()
        };
        ReportNodeStatusRequest { sequence, status: Some(status) }
    };
    sender.send(report(1, NodeServingState::Serving)).await.expect("has room");
    let mut answers = reports.report_node_status(ReceiverStream::new(outgoing)).await.expect("reports").into_inner();
    let answer = tokio::time::timeout(LIMIT, answers.message()).await.expect("is answered").expect("is open");
    let answer = answer.expect("an answer");
    assert_eq!(answer.lease_duration.map(|lease| lease.seconds), Some(3));
    assert_eq!(answer.report_interval.map(|interval| interval.seconds), Some(1));

    let mut client = NodeHealthServiceClient::connect(gateway.health.clone()).await.expect("connects");
    let mut until = async |wanted: HealthState| loop {
        let request = GetNodeHealthRequest { name: "nodes/n1".to_owned() };
        let node = client.get_node_health(request).await.expect("is known").into_inner().node.expect("a node");
        if node.health.is_some_and(|health| health.state() == wanted) {
            return;
        }
        tokio::task::yield_now().await;
    };
    tokio::time::timeout(LIMIT, until(HealthState::Healthy)).await.expect("is healthy");
    let agents = list(&gateway, ObjectKind::Agent).await;
    let Some(object::Kind::Agent(shown)) = &agents.objects[0].kind else { panic!("not an agent") };
    assert!(shown.connected);
    assert_eq!((shown.node.as_str(), shown.instance_id.as_str()), ("n1", "i-1"));
    assert_eq!(shown.resync, format!("{:?}", Resync::Full).to_lowercase());
    sender.send(report(2, NodeServingState::Draining)).await.expect("has room");
    tokio::time::timeout(LIMIT, until(HealthState::Draining)).await.expect("is draining");
    drop((stream, sender, answers));
    gateway.stop().await;
}

#[tokio::test]
async fn grpc_health_and_reflection_answer_on_the_same_port() {
    let directory = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::start(directory.path()).await;
    tokio::time::timeout(LIMIT, gateway.readiness.wait()).await.expect("gets ready");
    let mut health = HealthClient::connect(gateway.health.clone()).await.expect("connects");
    for service in ["", "portico.health.v1.NodeHealthService"] {
        let checked = health.check(HealthCheckRequest { service: service.to_owned() }).await.expect("is known");
        assert_eq!(checked.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let mut watch =
        health.watch(HealthCheckRequest { service: "nobody".to_owned() }).await.expect("stays").into_inner();
    let first = tokio::time::timeout(LIMIT, watch.message()).await.expect("is answered").expect("is open");
    assert_eq!(first.expect("an answer").status(), ServingStatus::ServiceUnknown);
    drop(watch);

    let channel = tonic::transport::Endpoint::from_shared(gateway.health.clone()).expect("a URL").connect_lazy();
    let mut reflection = ServerReflectionClient::new(channel);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([request])).await.expect("reflects").into_inner();
    let answer = answers.message().await.expect("is open").and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["portico.health.v1.NodeHealthService", "portico.inspect.v1.InspectService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    gateway.stop().await;
}
