use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use tokio::sync::watch as state;

use super::*;

/// An API server with one list for each path, and a channel of lines for each watch.
#[derive(Clone)]
struct ApiServer {
    behaviour: state::Receiver<Behaviour>,
    lines: Arc<Mutex<BTreeMap<&'static str, mpsc::Receiver<String>>>>,
}

/// What the server does at present.
#[derive(Clone, Debug)]
struct Behaviour {
    secrets_allowed: bool,
    pools_known: bool,
    /// A list of these objects is never answered.
    silent: Option<&'static str>,
    /// The Services there are.
    services: &'static str,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default();
        let is_watch = request.uri().query().unwrap_or_default().contains("watch=true");
        if !is_watch && self.behaviour.borrow().silent == Some(resource) {
            return Box::pin(std::future::pending());
        }
        let answer = self.answer(&request);
        Box::pin(async { Ok(answer) })
    }
}

impl ApiServer {
    fn answer(&self, request: &Request<Body>) -> Answer {
        let query = request.uri().query().unwrap_or_default();
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default();
        let behaviour = self.behaviour.borrow().clone();
        if resource == "secrets" && !behaviour.secrets_allowed {
            return refusal(StatusCode::FORBIDDEN, "Forbidden");
        }
        if resource == "addresspools" && !behaviour.pools_known {
            // As the API server says it of a path that it does not know.
            let mut response = whole("404 page not found\n");
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        if query.contains("watch=true") {
            let name = ["services", "pods"].into_iter().find(|name| *name == resource);
            let lines = name.and_then(|name| self.lines.lock().expect("no panic").remove(name));
            // A watch of which the test has nothing to say stays silent.
            let (sender, silent) = mpsc::channel(1);
            let keep = lines.is_none().then_some(sender);
            let frames = futures::stream::unfold((lines.unwrap_or(silent), keep), |(mut lines, keep)| async move {
                let line = lines.recv().await?;
                Some((Ok(Frame::data(Bytes::from(line + "\n"))), (lines, keep)))
            });
            return Response::new(StreamBody::new(frames).boxed_unsync());
        }
        let (kind, items) = match resource {
            "services" => ("Service", behaviour.services),
            "secrets" => {
                assert!(query.contains("fieldSelector=type%3Dkubernetes.io%2Ftls"), "{query}");
                ("Secret", "")
            }
            "endpointslices" => ("EndpointSlice", ""),
            "pods" => ("Pod", ""),
            "nodes" => ("Node", ""),
            "namespaces" => ("Namespace", r#"{"metadata":{"name":"kube-system","uid":"u-1"}}"#),
            "addresspools" => {
                ("AddressPool", r#"{"metadata":{"name":"public"},"spec":{"addresses":["192.0.2.0/24"]}}"#)
            }
            "servicecidrs" => {
                ("ServiceCIDR", r#"{"metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16"]}}"#)
            }
            "kube-system" => {
                let body = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"kube-system","uid":"u-1"}}"#;
                return whole(body);
            }
            other => panic!("unexpected request for {other}"),
        };
        let version = match kind {
            "EndpointSlice" => "discovery.k8s.io/v1",
            "AddressPool" => "portico.dev/v1alpha1",
            "ServiceCIDR" => "networking.k8s.io/v1",
            _ => "v1",
        };
        let list = format!(
            r#"{{"apiVersion":"{version}","kind":"{kind}List","metadata":{{"resourceVersion":"10"}},"items":[{items}]}}"#
        );
        whole(&list)
    }
}

fn refusal(code: StatusCode, reason: &str) -> Answer {
    let status = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":"no","reason":"{reason}","code":{}}}"#,
        code.as_u16()
    );
    let mut response = whole(&status);
    *response.status_mut() = code;
    response
}

fn whole(body: &str) -> Answer {
    Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed_unsync())
}

struct Fixture {
    batches: mpsc::Receiver<Batch>,
    source: Source,
    services: mpsc::Sender<String>,
    behaviour: state::Sender<Behaviour>,
}

const A: &str = r#"{"metadata":{"name":"a","namespace":"x","managedFields":[{}],"resourceVersion":"5"}}"#;
const C: &str = r#"{"metadata":{"name":"c","namespace":"x","resourceVersion":"20"}}"#;

fn fixture(change: impl FnOnce(&mut Behaviour)) -> Fixture {
    let mut behaviour = Behaviour { secrets_allowed: true, pools_known: true, silent: None, services: A };
    change(&mut behaviour);
    let (services, service_lines) = mpsc::channel(4);
    let (sender, behaviour) = state::channel(behaviour);
    let lines = Arc::new(Mutex::new(BTreeMap::from([("services", service_lines)])));
    let source = Source::new(Client::new(ApiServer { behaviour, lines }, "default"));
    let (batch_sender, batches) = mpsc::channel(16);
    tokio::spawn(source.clone().run(batch_sender));
    Fixture { batches, source, services, behaviour: sender }
}

/// The report of what cannot be watched, once there is one and that many kinds were listed.
async fn reported(fixture: &mut Fixture, listed: usize) -> Arc<Reports> {
    let (mut reported, mut kinds) = (None, 0);
    loop {
        let batch = fixture.batches.recv().await.expect("the source runs");
        kinds += batch.events.len();
        reported = batch.reports.or(reported);
        if let Some(reported) = reported.as_ref().filter(|_| kinds >= listed) {
            return reported.clone();
        }
    }
}

async fn resets(fixture: &mut Fixture, count: usize) -> Vec<Kind> {
    let mut kinds = Vec::new();
    while kinds.len() < count {
        let batch = fixture.batches.recv().await.expect("the source runs");
        kinds.extend(batch.events.iter().map(|event| match event {
            Event::Reset(kind, _) => *kind,
            other => panic!("{other:?} before everything was listed"),
        }));
    }
    kinds.sort();
    kinds
}

#[tokio::test]
async fn a_list_is_one_reset_and_what_follows_are_events() {
    let mut fixture = fixture(|_| {});
    assert_eq!(fixture.source.cluster_uid().await, "u-1");
    let expected = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Endpoints).collect::<Vec<_>>();
    assert_eq!(resets(&mut fixture, 8).await, expected);
    for (verb, name) in [("ADDED", "b"), ("DELETED", "a")] {
        let object = format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"x","resourceVersion":"11"}}}}"#
        );
        let line = format!(r#"{{"type":"{verb}","object":{object}}}"#);
        fixture.services.send(line).await.expect("the watch reads");
    }
    let added = fixture.batches.recv().await.expect("the source runs").events;
    let [Event::Apply(object)] = &added[..] else { panic!("{added:?}") };
    assert_eq!(object.key().to_string(), "Service x/b");
    assert_eq!(object.metadata().resource_version, None, "versions are no content");
    let deleted = fixture.batches.recv().await.expect("the source runs").events;
    let [Event::Delete(key)] = &deleted[..] else { panic!("{deleted:?}") };
    assert_eq!(key.to_string(), "Service x/a");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_may_not_be_listed_is_reported_until_it_may() {
    let mut fixture = fixture(|behaviour| behaviour.secrets_allowed = false);
    let reported = reported(&mut fixture, 7).await;
    assert_eq!(reported.source.len(), 1);
    assert!(reported.source[0].message.contains("objects of kind Secret"), "{:?}", reported.source);
    assert_eq!(reported.unwatched.iter().collect::<Vec<_>>(), [&Kind::Secret]);
    fixture.behaviour.send_modify(|behaviour| behaviour.secrets_allowed = true);
    let batch = fixture.batches.recv().await.expect("the source runs");
    assert!(matches!(batch.events[..], [Event::Reset(Kind::Secret, _)]));
    assert_eq!(batch.reports.map(|reports| (reports.source.len(), reports.unwatched.len())), Some((0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_hangs_is_reported_and_asked_for_again() {
    let mut fixture = fixture(|behaviour| behaviour.silent = Some("nodes"));
    let reported = reported(&mut fixture, 7).await;
    let message = &reported.source[0].message;
    assert!(message.contains("objects of kind Node") && message.contains("did not answer within 60s"), "{message}");
    fixture.behaviour.send_modify(|behaviour| behaviour.silent = None);
    let batch = fixture.batches.recv().await.expect("the source runs");
    assert!(matches!(batch.events[..], [Event::Reset(Kind::Node, _)]));
    assert_eq!(batch.reports.map(|reports| reports.source.len()), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_forgotten_leads_to_one_reset_and_no_report() {
    let mut fixture = fixture(|_| {});
    resets(&mut fixture, 8).await;
    fixture.behaviour.send_modify(|behaviour| behaviour.services = C);
    let expired = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#;
    fixture.services.send(expired.to_owned()).await.expect("the watch reads");
    let batch = fixture.batches.recv().await.expect("the source runs");
    assert!(batch.reports.is_none(), "{:?}", batch.reports);
    let [Event::Reset(Kind::Service, objects)] = &batch.events[..] else { panic!("{:?}", batch.events) };
    // The one that was deleted meanwhile is not among them, by which it is seen to be gone.
    assert_eq!(objects.iter().map(|object| object.key().to_string()).collect::<Vec<_>>(), ["Service x/c"]);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_an_empty_list_until_it_is() {
    let mut fixture = fixture(|behaviour| behaviour.pools_known = false);
    let mut pools = Vec::new();
    let mut kinds = 0;
    while kinds < 8 {
        let batch = fixture.batches.recv().await.expect("the source runs");
        assert!(batch.reports.is_none(), "{:?}", batch.reports);
        for event in batch.events {
            kinds += 1;
            if let Event::Reset(Kind::AddressPool, objects) = event {
                pools.push(objects.len());
            }
        }
    }
    assert_eq!(pools, [0]);
    fixture.behaviour.send_modify(|behaviour| behaviour.pools_known = true);
    let batch = fixture.batches.recv().await.expect("the source runs");
    let [Event::Reset(Kind::AddressPool, objects)] = &batch.events[..] else { panic!("{:?}", batch.events) };
    assert_eq!(objects.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_failed_and_goes_on_is_not_reported_for_ever() {
    let mut fixture = fixture(|_| {});
    resets(&mut fixture, 8).await;
    fixture.services.send("this is no event".to_owned()).await.expect("the watch reads");
    let reports = fixture.batches.recv().await.expect("the source runs").reports.expect("it is told");
    assert_eq!(reports.unwatched.iter().collect::<Vec<_>>(), [&Kind::Service]);
    let batch = fixture.batches.recv().await.expect("the source runs");
    assert!(batch.events.is_empty(), "nothing was lost: {:?}", batch.events);
    assert_eq!(batch.reports.map(|reports| reports.unwatched.len()), Some(0));
}

#[test]
fn an_outage_is_over_when_the_answer_is_that_a_kind_is_not_installed() {
    let failures = Failures::default();
    let reports = failures.note(Kind::AddressPool, "no connection").expect("it is news");
    assert!(reports.unwatched.contains(&Kind::AddressPool));
    let status = kube::core::Status::failure("404 page not found", "Failed to parse error data").with_code(404);
    let error = watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()));
    let reports = failures.failed(Kind::AddressPool, &error).expect("it is news");
    assert_eq!(*reports, Reports::default());
    assert!(failures.failed(Kind::AddressPool, &error).is_none(), "it is said once");
}
