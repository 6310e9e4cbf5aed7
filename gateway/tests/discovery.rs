//! From files on disk to what an agent holds, over real gRPC.

use std::{fs, path::Path};

use api::{
    delta::client::Received,
    proto::discovery::{GoodbyeReason, ListResourcesRequest, discovery_service_client::DiscoveryServiceClient},
    resource::{Key, Kind, Resource},
};
use common::{Agent, Gateway, LIMIT};

mod common;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, appProtocol: http}]
";

fn pod(name: &str, address: &str, ready: bool) -> String {
    let status = if ready { "True" } else { "False" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec: {{nodeName: n1, containers: []}}\n\
         status: {{podIP: {address}, conditions: [{{type: Ready, status: '{status}'}}]}}\n---\n"
    )
}

/// Replaces a file as editors and kubectl do: in one step.
fn write(directory: &Path, name: &str, content: &str) {
    let temporary = directory.join(format!(".{name}.new"));
    fs::write(&temporary, content).expect("writes");
    fs::rename(temporary, directory.join(name)).expect("renames");
}

fn is_ready(agent: &Agent, name: &str) -> Option<bool> {
    match agent.held.get(&Key::new(Kind::Endpoint, name)) {
        Some(Resource::Endpoint(endpoint)) => Some(endpoint.ready),
        _ => None,
    }
}

#[tokio::test]
async fn files_become_resources_and_edits_become_small_commits() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "web.yaml", WEB);
    write(directory.path(), "pods.yaml", &(pod("a", "127.10.0.1", true) + &pod("b", "127.10.0.2", true)));
    let gateway = Gateway::start(directory.path()).await;
    let mut agent = Agent::new("n1");
    let mut stream = agent.connect(&gateway.discovery).await;
    agent.commit(&mut stream).await;
    assert_eq!(agent.names(Kind::Service), ["default/web"]);
    assert_eq!(agent.names(Kind::Endpoint), ["default/web/ipv4/127.10.0.1", "default/web/ipv4/127.10.0.2"]);
    assert_eq!(agent.names(Kind::Workload), ["127.10.0.1", "127.10.0.2"]);
    assert_eq!(agent.names(Kind::Settings), ["default"]);

    write(directory.path(), "pods.yaml", &(pod("a", "127.10.0.1", true) + &pod("b", "127.10.0.2", false)));
    agent.until(&mut stream, |agent| is_ready(agent, "default/web/ipv4/127.10.0.2") == Some(false)).await;
    assert_eq!(agent.last, (2, 0), "one Pod changes its endpoint and the time of its slice");

    write(directory.path(), "pods.yaml", &pod("a", "127.10.0.1", true));
    agent.until(&mut stream, |agent| agent.names(Kind::Endpoint).len() == 1).await;
    assert_eq!(agent.last, (1, 2), "its slice; its endpoint and its workload");

    fs::remove_file(directory.path().join("web.yaml")).expect("removes");
    agent.until(&mut stream, |agent| agent.names(Kind::Service).is_empty()).await;
    assert_eq!(agent.names(Kind::Endpoint), Vec::<&str>::new());
    gateway.stop().await;
}

#[tokio::test]
async fn a_broken_file_takes_nothing_away_and_the_others_live_on() {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), "web.yaml", WEB);
    write(directory.path(), "pods.yaml", &pod("a", "127.10.0.1", true));
    let gateway = Gateway::start(directory.path()).await;
    let mut agent = Agent::new("n1");
    let mut stream = agent.connect(&gateway.discovery).await;
    agent.commit(&mut stream).await;

    write(directory.path(), "web.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web\n");
    write(directory.path(), "pods.yaml", &pod("a", "127.10.0.9", true));
    agent.until(&mut stream, |agent| agent.names(Kind::Endpoint) == ["default/web/ipv4/127.10.0.9"]).await;
    assert_eq!(agent.names(Kind::Service), ["default/web"]);

    write(directory.path(), "web.yaml", &WEB.replace("appProtocol: http", "appProtocol: grpc"));
    let speaks_grpc = |agent: &Agent| match agent.held.get(&Key::new(Kind::Service, "default/web")) {
        Some(Resource::Service(service)) => service.ports[0].protocol == api::resource::service::AppProtocol::Grpc,
        _ => false,
    };
    agent.until(&mut stream, speaks_grpc).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_restarted_gateway_has_nothing_to_send_to_an_agent_that_holds_everything() {
    let directory = tempfile::tempdir().expect("a directory");
    let services: String = (0..20)
        .map(|index| format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{index}}}\nspec: {{type: NodePort, ports: [{{port: 80}}]}}\n"))
        .collect();
    write(directory.path(), "services.yaml", &services);
    let first = Gateway::start(directory.path()).await;
    let mut agent = Agent::new("n1");
    let mut stream = agent.connect(&first.discovery).await;
    agent.commit(&mut stream).await;
    assert_eq!(agent.names(Kind::Service).len(), 20);
    let all = agent.held.keys().map(Key::to_string).collect::<Vec<_>>();
    assert_eq!(agent.last, (22, 0), "the Services, the settings, and one node: {all:?}");
    let draining = tokio::spawn(first.stop());
    match agent.next(&mut stream).await {
        Some(Received::Goodbye(goodbye)) => assert_eq!(goodbye.reason(), GoodbyeReason::Shutdown),
        other => panic!("{other:?} instead of a goodbye"),
    }
    drop(stream);
    draining.await.expect("no panic");

    let second = Gateway::start(directory.path()).await;
    let mut stream = agent.connect(&second.discovery).await;
    agent.commit(&mut stream).await;
    assert_eq!(agent.last, (0, 0), "addresses and node ports are the same, so nothing was sent");
    assert_eq!(metric(&second.registry, "portico_control_plane_resync_total", "none"), 1.0);
    assert_eq!(metric(&second.registry, "portico_control_plane_resync_total", "full"), 0.0);
    second.stop().await;
}

fn metric(registry: &prometheus::Registry, name: &str, kind: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let family = family.unwrap_or_else(|| {
        panic!("no {name} among {:?}", families.iter().map(|f| f.name().to_owned()).collect::<Vec<_>>())
    });
    let of_kind = |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|label| label.value() == kind);
    family.get_metric().iter().find(of_kind).map_or(0.0, |metric| metric.get_counter().get_value())
}

#[tokio::test]
async fn a_newer_stream_of_a_node_takes_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let gateway = Gateway::start(directory.path()).await;
    let (mut old, mut new) = (Agent::new("n1"), Agent::new("n1"));
    let mut old_stream = old.connect(&gateway.discovery).await;
    old.commit(&mut old_stream).await;
    let mut new_stream = new.connect(&gateway.discovery).await;
    new.commit(&mut new_stream).await;
    match old.next(&mut old_stream).await {
        Some(Received::Goodbye(goodbye)) => assert_eq!(goodbye.reason(), GoodbyeReason::Superseded),
        other => panic!("{other:?} instead of a goodbye"),
    }
    drop((old_stream, new_stream));
    gateway.stop().await;
}

#[tokio::test]
async fn resources_are_listed_in_pages_of_one_commit() {
    let directory = tempfile::tempdir().expect("a directory");
    let nodes: String =
        (0..5).map(|index| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{index}}}\n")).collect();
    write(directory.path(), "nodes.yaml", &nodes);
    let gateway = Gateway::start(directory.path()).await;
    tokio::time::timeout(LIMIT, gateway.readiness.wait()).await.expect("gets ready");
    let mut client = DiscoveryServiceClient::connect(gateway.discovery.clone()).await.expect("connects");
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListResourcesRequest { r#type: Kind::Node.wire() as i32, page_size: 2, page_token: token };
        let page = client.list_resources(request).await.expect("lists").into_inner();
        assert!(page.resources.len() <= 2);
        names.extend(page.resources.into_iter().map(|resource| resource.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["n0", "n1", "n2", "n3", "n4"]);
    let negative = ListResourcesRequest { r#type: Kind::Node.wire() as i32, page_size: -1, page_token: String::new() };
    let status = client.list_resources(negative).await.expect_err("is refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    gateway.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_option() {
    let directory = tempfile::tempdir().expect("a directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("is bound");
    let message = common::start_error(directory.path(), &["--health-listen", &address.to_string()]).await;
    assert!(message.starts_with(&format!("--health-listen {address}: cannot listen")), "{message}");
}
