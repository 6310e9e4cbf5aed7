//! As much of an API server as a gateway asks: lists, watches, objects with versions, and reviews of tokens.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

/// The server; clones are the same one.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// Version, resource and line of each change, for watches.
    changes: Vec<(u64, String, String)>,
    /// What is said of tokens.
    tokens: HashMap<String, Value>,
    reviews: usize,
    reviews_fail: bool,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl ApiServer {
    /// Starts one, and writes a kubeconfig for it into `directory`.
    pub async fn start(directory: &std::path::Path) -> (Self, PathBuf) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("is bound");
        let server = Self(Arc::new(Inner { state: Mutex::default(), version: watch::Sender::new(1) }));
        server.put("namespaces", json!({"metadata": {"name": "kube-system", "uid": "cluster"}}));
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = directory.join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).expect("writes");
        (server, path)
    }

    /// Says `status` of a token from now on.
    pub fn vouch(&self, token: &str, status: Value) {
        self.state().tokens.insert(token.to_owned(), status);
    }

    /// How many tokens were asked about.
    pub fn reviews(&self) -> usize {
        self.state().reviews
    }

    /// Whether questions about tokens get no answer.
    pub fn fail_reviews(&self, fail: bool) {
        self.state().reviews_fail = fail;
    }

    /// Makes or changes an object.
    pub fn put(&self, resource: &str, object: Value) -> Value {
        let mut state = self.state();
        self.put_locked(&mut state, resource, object)
    }

    /// Deletes an object.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let object = state.objects.remove(&key).expect("is there");
        self.change(&mut state, resource, "DELETED", object);
    }

    /// Waits until an object is as wanted.
    pub async fn until(&self, resource: &str, namespace: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut version = self.0.version.subscribe();
        loop {
            version.borrow_and_update();
            let found = self.state().objects.get(&key).filter(|object| wanted(object)).cloned();
            if let Some(object) = found {
                return object;
            }
            tokio::time::timeout(super::common::LIMIT, version.changed()).await.expect("changes").expect("runs");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic")
    }

    fn put_locked(&self, state: &mut State, resource: &str, object: Value) -> Value {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text("namespace"), text("name"));
        let verb = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        let object = self.change(state, resource, verb, object);
        state.objects.insert(key, object.clone());
        object
    }

    fn change(&self, state: &mut State, resource: &str, verb: &str, mut object: Value) -> Value {
        let version = *self.0.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let (kind, api_version) = kind(resource);
        object["kind"] = json!(kind);
        object["apiVersion"] = json!(api_version);
        state.changes.push((version, resource.to_owned(), json!({"type": verb, "object": object}).to_string() + "\n"));
        self.0.version.send_replace(version);
        object
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
        // Without group and version.
        let path = if path[0] == "apis" { &path[3..] } else { &path[2..] };
        let object = || serde_json::from_slice::<Value>(&body).expect("an object");
        match (&parts.method, path) {
            (&Method::POST, ["tokenreviews"]) => self.review(object()),
            (&Method::GET, ["namespaces", name]) => self.get("namespaces", "", name),
            (&Method::GET, ["namespaces", _, resource] | [resource]) if query.contains("watch=true") => {
                self.watch(resource, &query)
            }
            (&Method::GET, ["namespaces", _, resource] | [resource]) => self.list(resource),
            (&Method::GET, ["namespaces", namespace, resource, name]) => self.get(resource, namespace, name),
            (&Method::POST, ["namespaces", namespace, resource]) => self.write(resource, namespace, object(), true),
            (&Method::PUT, ["namespaces", namespace, resource, _]) => self.write(resource, namespace, object(), false),
            (method, path) => panic!("unexpected {method} {path:?}"),
        }
    }

    fn review(&self, review: Value) -> Answer {
        assert_eq!(review["spec"]["audiences"], json!(["portico-discovery"]));
        let mut state = self.state();
        if state.reviews_fail {
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
        state.reviews += 1;
        let token = review["spec"]["token"].as_str().expect("a token");
        let said = state.tokens.get(token).cloned().unwrap_or(json!({"authenticated": false, "error": "unknown"}));
        whole(
            StatusCode::CREATED,
            &json!({
                "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                "spec": {"token": ""}, "status": said,
            }),
        )
    }

    fn get(&self, resource: &str, namespace: &str, name: &str) -> Answer {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        match self.state().objects.get(&key) {
            Some(object) => whole(StatusCode::OK, object),
            None => status(StatusCode::NOT_FOUND),
        }
    }

    fn list(&self, resource: &str) -> Answer {
        let state = self.state();
        let items: Vec<_> =
            state.objects.iter().filter(|((of, ..), _)| of == resource).map(|(_, object)| object).collect();
        let (kind, version) = kind(resource);
        let metadata = json!({"resourceVersion": self.0.version.borrow().to_string()});
        let list = json!({"kind": format!("{kind}List"), "apiVersion": version, "metadata": metadata, "items": items});
        whole(StatusCode::OK, &list)
    }

    fn watch(&self, resource: &str, query: &str) -> Answer {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).expect("a version");
        let from: u64 = from.parse().expect("a number");
        let position = (self.clone(), self.0.version.subscribe(), resource.to_owned(), from);
        let frames = futures::stream::unfold(position, |(server, mut version, resource, mut from)| async move {
            loop {
                version.borrow_and_update();
                let next = {
                    let state = server.state();
                    let mut later = state.changes.iter().filter(|(at, of, _)| *at > from && *of == resource);
                    later.next().map(|(at, _, line)| (*at, line.clone()))
                };
                if let Some((at, line)) = next {
                    from = at;
                    return Some((Ok(Frame::data(Bytes::from(line))), (server, version, resource, from)));
                }
                version.changed().await.ok()?;
            }
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    /// Writes an object as the API server does: made only if it is not there, changed only from the version it is at.
    fn write(&self, resource: &str, namespace: &str, mut object: Value, is_new: bool) -> Answer {
        let mut state = self.state();
        object["metadata"]["namespace"] = json!(namespace);
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let found = state.objects.get(&(resource.to_owned(), namespace.to_owned(), name));
        match (found, is_new) {
            (Some(_), true) => return status(StatusCode::CONFLICT),
            (None, false) => return status(StatusCode::NOT_FOUND),
            (Some(found), false) if found["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] => {
                return status(StatusCode::CONFLICT);
            }
            (Some(_), false) | (None, true) => {}
        }
        let object = self.put_locked(&mut state, resource, object);
        whole(if is_new { StatusCode::CREATED } else { StatusCode::OK }, &object)
    }
}

fn kind(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "services" => ("Service", "v1"),
        "endpointslices" => ("EndpointSlice", "discovery.k8s.io/v1"),
        "pods" => ("Pod", "v1"),
        "nodes" => ("Node", "v1"),
        "secrets" => ("Secret", "v1"),
        "configmaps" => ("ConfigMap", "v1"),
        "namespaces" => ("Namespace", "v1"),
        "leases" => ("Lease", "coordination.k8s.io/v1"),
        "events" => ("Event", "events.k8s.io/v1"),
        "servicecidrs" => ("ServiceCIDR", "networking.k8s.io/v1"),
        "addresspools" => ("AddressPool", "portico.dev/v1alpha1"),
        other => panic!("unexpected resource {other}"),
    }
}

fn status(code: StatusCode) -> Answer {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    whole(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": reason, "reason": reason, "code": code.as_u16(),
        }),
    )
}

fn whole(code: StatusCode, body: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
