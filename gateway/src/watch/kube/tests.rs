use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use tokio::sync::watch as state;

use super::*;

/// An API server with one list for each path, and a channel of lines for each watch.
#[derive(Clone)]
struct ApiServer {
    secrets_allowed: state::Receiver<bool>,
    lines: Arc<Mutex<BTreeMap<&'static str, mpsc::Receiver<String>>>>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Answer;
    type Error = Infallible;
    type Future = Ready<Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ready(Ok(self.answer(&request)))
    }
}

impl ApiServer {
    fn answer(&self, request: &Request<Body>) -> Answer {
        let query = request.uri().query().unwrap_or_default();
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default();
        if resource == "secrets" && !*self.secrets_allowed.borrow() {
            let status = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"no","reason":"Forbidden","code":403}"#;
            let mut response = whole(status);
            *response.status_mut() = StatusCode::FORBIDDEN;
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
            "services" => {
                ("Service", r#"{"metadata":{"name":"a","namespace":"x","managedFields":[{}],"resourceVersion":"5"}}"#)
            }
            "secrets" => {
                assert!(query.contains("fieldSelector=type%3Dkubernetes.io%2Ftls"), "{query}");
                ("Secret", "")
            }
            "endpointslices" => ("EndpointSlice", ""),
            "pods" => ("Pod", ""),
            "nodes" => ("Node", ""),
            "namespaces" => ("Namespace", r#"{"metadata":{"name":"kube-system","uid":"u-1"}}"#),
            "kube-system" => {
                let body = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"kube-system","uid":"u-1"}}"#;
                return whole(body);
            }
            other => panic!("unexpected request for {other}"),
        };
        let version = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
        let list = format!(
            r#"{{"apiVersion":"{version}","kind":"{kind}List","metadata":{{"resourceVersion":"10"}},"items":[{items}]}}"#
        );
        whole(&list)
    }
}

fn whole(body: &str) -> Answer {
    Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed_unsync())
}

struct Fixture {
    batches: mpsc::Receiver<Batch>,
    source: Source,
    services: mpsc::Sender<String>,
    allow_secrets: state::Sender<bool>,
}

fn fixture(allowed: bool) -> Fixture {
    let (services, service_lines) = mpsc::channel(4);
    let (allow_secrets, secrets_allowed) = state::channel(allowed);
    let lines = Arc::new(Mutex::new(BTreeMap::from([("services", service_lines)])));
    let source = Source::new(Client::new(ApiServer { secrets_allowed, lines }, "default"));
    let (sender, batches) = mpsc::channel(16);
    tokio::spawn(source.clone().run(sender));
    Fixture { batches, source, services, allow_secrets }
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
    let mut fixture = fixture(true);
    assert_eq!(fixture.source.cluster_uid().await, "u-1");
    let expected = [Kind::Service, Kind::EndpointSlice, Kind::Pod, Kind::Node, Kind::Secret, Kind::Namespace];
    assert_eq!(resets(&mut fixture, 6).await, expected);
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
    let mut fixture = fixture(false);
    let mut reported = None;
    let mut kinds = 0;
    while reported.is_none() || kinds < 5 {
        let batch = fixture.batches.recv().await.expect("the source runs");
        kinds += batch.events.len();
        reported = batch.reports.or(reported);
    }
    let reported = reported.expect("was reported");
    assert_eq!(reported.source.len(), 1);
    assert!(reported.source[0].message.contains("objects of kind Secret"), "{:?}", reported.source);
    fixture.allow_secrets.send_replace(true);
    let batch = fixture.batches.recv().await.expect("the source runs");
    assert!(matches!(batch.events[..], [Event::Reset(Kind::Secret, _)]));
    assert_eq!(batch.reports.map(|reports| reports.source.len()), Some(0));
}
