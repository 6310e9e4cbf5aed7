//! `portico get` against a gateway that serves what each test puts there.

use api::proto::discovery::{Endpoint, EndpointPort, Service, ServiceType, Transport};
use api::proto::inspect::inspect_service_server::{InspectService, InspectServiceServer};
use api::proto::inspect::watch_objects_response::Event;
use api::proto::inspect::{
    ListObjectsRequest, ListObjectsResponse, Object, ObjectKey, Problem, WatchObjectsRequest, WatchObjectsResponse,
    object,
};
use clap::Parser;
use futures::stream::{BoxStream, StreamExt};
use portico_cli::get::args::GetArgs;
use portico_cli::get::{self, GetError};
use runtime::args::Problems;
use serde_json::Value;
use std::io::{self, Write};
use std::sync::Mutex;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// A gateway with fixed content, whose watch tells what the test sends.
#[derive(Default)]
struct Gateway {
    listing: ListObjectsResponse,
    events: Mutex<Option<mpsc::UnboundedReceiver<Event>>>,
}

#[tonic::async_trait]
impl InspectService for Gateway {
    type WatchObjectsStream = BoxStream<'static, Result<WatchObjectsResponse, Status>>;

    async fn list_objects(&self, _: Request<ListObjectsRequest>) -> Result<Response<ListObjectsResponse>, Status> {
        Ok(Response::new(self.listing.clone()))
    }

    async fn watch_objects(
        &self,
        _: Request<WatchObjectsRequest>,
    ) -> Result<Response<Self::WatchObjectsStream>, Status> {
        let events = self.events.lock().unwrap().take().ok_or_else(|| Status::unavailable("one watch only"))?;
        let events = tokio_stream::wrappers::UnboundedReceiverStream::new(events);
        Ok(Response::new(events.map(|event| Ok(WatchObjectsResponse { event: Some(event) })).boxed()))
    }
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    get: GetArgs,
}

/// Serves a gateway and gives its URL.
async fn serve(gateway: Gateway) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(InspectServiceServer::new(gateway));
    tokio::spawn(server.serve_with_incoming(incoming));
    url
}

/// Runs the command; gives what it wrote to both outputs and how it ended.
async fn run(url: &str, arguments: &[&str]) -> (String, String, Result<(), GetError>) {
    let (mut out, mut warnings) = (Vec::new(), Vec::new());
    let ended = run_to(url, arguments, &mut out, &mut warnings).await;
    (String::from_utf8(out).unwrap(), String::from_utf8(warnings).unwrap(), ended)
}

async fn run_to(url: &str, arguments: &[&str], out: impl Write, warnings: impl Write) -> Result<(), GetError> {
    let mut problems = Problems::new();
    let arguments = [&["get"], arguments, &["--gateway", url]].concat();
    let config = Cli::parse_from(arguments).get.parse(&mut problems);
    problems.finish().unwrap();
    get::run(config.unwrap(), out, warnings).await
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { namespace: namespace.into(), name: name.into() }
}

fn service(namespace: &str, name: &str) -> Object {
    let service = Service {
        namespace: namespace.into(),
        name: name.into(),
        r#type: ServiceType::ClusterIp.into(),
        cluster_ips: vec!["10.96.0.1".into()],
        ..Default::default()
    };
    let key = Some(key(namespace, name));
    Object { key, kind: Some(object::Kind::Service(service)), ..Default::default() }
}

fn endpoint(service: &str, address: &str) -> Object {
    let endpoint = Endpoint {
        namespace: "default".into(),
        service: service.into(),
        address: address.into(),
        ports: vec![EndpointPort { name: String::new(), transport: Transport::Tcp.into(), port: 80 }],
        ready: true,
        serving: true,
        ..Default::default()
    };
    let key = Some(key("default", &format!("{service}/ipv4/{address}")));
    Object { key, kind: Some(object::Kind::Endpoint(endpoint)), ..Default::default() }
}

fn problem(reason: &str, message: &str) -> Problem {
    Problem { reason: reason.into(), message: message.into() }
}

#[tokio::test]
async fn a_list_is_a_table_and_problems_are_warnings() {
    let mut broken = service("default", "web");
    broken.problems = vec![problem("NODE_PORT_TAKEN", "30080 is in use")];
    let listing = ListObjectsResponse {
        objects: vec![broken, service("shop", "db")],
        problems: vec![problem("MANIFEST_INVALID", "a.yaml:3: spec.ports: is missing")],
    };
    let url = serve(Gateway { listing, ..Default::default() }).await;
    let (out, warnings, ended) = run(&url, &["svc"]).await;
    ended.unwrap();
    let expected = "\
NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE
web    ClusterIP   10.96.0.1    <none>        <none>    <unknown>
";
    assert_eq!(out, expected);
    let expected = "\
warning: MANIFEST_INVALID: a.yaml:3: spec.ports: is missing
warning: services default/web: NODE_PORT_TAKEN: 30080 is in use
";
    assert_eq!(warnings, expected);

    let (out, _, ended) = run(&url, &["services", "-A", "-o", "json"]).await;
    ended.unwrap();
    let list: Value = serde_json::from_str(&out).unwrap();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!((list["kind"].as_str(), names), (Some("List"), vec!["web", "db"]));

    let (out, _, ended) = run(&url, &["service", "db", "-n", "shop", "-o", "yaml"]).await;
    ended.unwrap();
    let document: Value = serde_saphyr::from_str(&out).unwrap();
    assert_eq!((&document["kind"], &document["metadata"]["namespace"]), (&"Service".into(), &"shop".into()));
}

#[tokio::test]
async fn nothing_found_is_said_where_people_look() {
    let url = serve(Gateway::default()).await;
    let (out, warnings, ended) = run(&url, &["svc", "-n", "shop"]).await;
    ended.unwrap();
    assert_eq!((out.as_str(), warnings.as_str()), ("", "No resources found in shop namespace.\n"));
    let (out, warnings, ended) = run(&url, &["svc", "-o", "json"]).await;
    ended.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), serde_json::json!({"kind": "List", "items": []}));
    assert_eq!(warnings, "");
    let (_, _, ended) = run(&url, &["svc", "web"]).await;
    assert_eq!(ended.unwrap_err().to_string(), "services \"web\" not found in namespace \"default\"");
    let (_, _, ended) = run(&url, &["nodes", "one"]).await;
    assert_eq!(ended.unwrap_err().to_string(), "nodes \"one\" not found");
}

#[tokio::test]
async fn errors_say_where_and_what_to_check() {
    // Bound but not listening: connections are refused, and nobody else can take the port meanwhile.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = format!("http://{}", socket.local_addr().unwrap());
    let (_, _, ended) = run(&closed, &["svc"]).await;
    let text = ended.unwrap_err().to_string();
    assert!(text.starts_with(&format!("cannot reach the gateway at {closed}: Connection refused")), "{text}");
    assert!(text.contains("--gateway"), "{text}");

    // This gateway has no health service, as a discovery port has none.
    let url = serve(Gateway::default()).await;
    let (_, _, ended) = run(&url, &["health"]).await;
    let text = ended.unwrap_err().to_string();
    assert!(text.contains(&url) && text.contains("--health-listen"), "{text}");

    // A replica that is down does not matter while another is up.
    let (_, _, ended) = run(&format!("{closed},{url}"), &["svc"]).await;
    ended.unwrap();
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_what_happens_by_service() {
    let (events, receiver) = mpsc::unbounded_channel();
    let url = serve(Gateway { events: Mutex::new(Some(receiver)), ..Default::default() }).await;
    for event in [
        Event::Updated(endpoint("web", "10.0.0.1")),
        Event::Updated(endpoint("db", "10.0.0.9")),
        Event::Synced(true),
        Event::Updated(endpoint("web", "10.0.0.2")),
        Event::Updated(endpoint("other", "10.0.0.3")),
        Event::Removed(key("default", "web/ipv4/10.0.0.1")),
        Event::Removed(key("default", "web/ipv4/10.0.0.2")),
    ] {
        events.send(event).unwrap();
    }
    drop(events);
    let (out, _, ended) = run(&url, &["ep", "web", "--watch"]).await;
    let expected = "\
EVENT      NAME   ENDPOINTS     AGE
ADDED      web    10.0.0.1:80   <unknown>
MODIFIED   web    10.0.0.1:80,10.0.0.2:80   <unknown>
MODIFIED   web    10.0.0.2:80               <unknown>
DELETED    web    10.0.0.2:80               <unknown>
";
    assert_eq!(out, expected);
    assert_eq!(ended.unwrap_err().to_string(), format!("the gateway at {url} ended the watch"));
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_error() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let listing = ListObjectsResponse { objects: vec![service("default", "web")], ..Default::default() };
    let url = serve(Gateway { listing, ..Default::default() }).await;
    run_to(&url, &["svc"], Gone, io::sink()).await.unwrap();
}
