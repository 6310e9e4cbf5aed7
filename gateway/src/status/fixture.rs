//! An API server for tests: objects by path, with versions, merge patches and conflicts.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

/// The server. Cloning shares it.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    /// While false, no request is answered, though writes are carried out.
    answers: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Method and path of every request that was to write.
    writes: Vec<String>,
    /// How many writes to come are refused because somebody else was first.
    conflicts: usize,
}

// === impl ApiServer ===

impl ApiServer {
    pub fn new() -> Self {
        Self { state: Arc::default(), answers: Arc::new(watch::channel(true).0) }
    }

    pub fn client(&self) -> Client {
        Client::new(self.clone(), "default")
    }

    /// Stores an object as somebody else would.
    pub fn set(&self, path: &str, mut object: Value) {
        let mut state = self.state.lock().expect("no panic");
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.objects.insert(path.to_owned(), object);
    }

    pub fn get(&self, path: &str) -> Value {
        self.state.lock().expect("no panic").objects.get(path).cloned().unwrap_or_default()
    }

    pub fn list(&self, folder: &str) -> Vec<Value> {
        let state = self.state.lock().expect("no panic");
        state.objects.iter().filter(|(path, _)| path.starts_with(folder)).map(|(_, object)| object.clone()).collect()
    }

    pub fn answer(&self, answers: bool) {
        self.answers.send_replace(answers);
    }

    /// Refuses that many writes.
    pub fn refuse(&self, conflicts: usize) {
        self.state.lock().expect("no panic").conflicts = conflicts;
    }

    pub fn writes(&self) -> Vec<String> {
        self.state.lock().expect("no panic").writes.clone()
    }
}

impl State {
    fn handle(&mut self, method: &Method, path: &str, body: Value) -> Result<Value, (StatusCode, &'static str)> {
        let (object, subresource) = match path.strip_suffix("/status") {
            Some(object) => (object, true),
            None => (path, false),
        };
        if *method == Method::GET {
            return self.objects.get(object).cloned().ok_or((StatusCode::NOT_FOUND, "NotFound"));
        }
        self.writes.push(format!("{method} {path}"));
        if self.conflicts > 0 {
            self.conflicts -= 1;
            return Err((StatusCode::CONFLICT, "Conflict"));
        }
        let (path, mut stored) = if *method == Method::POST {
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
            if self.objects.contains_key(&path) {
                return Err((StatusCode::CONFLICT, "AlreadyExists"));
            }
            (path, body)
        } else {
            let before = self.objects.get(object).cloned().ok_or((StatusCode::NOT_FOUND, "NotFound"))?;
            let version = &body["metadata"]["resourceVersion"];
            if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
                return Err((StatusCode::CONFLICT, "Conflict"));
            }
            let mut after = if *method == Method::PUT { body } else { merged(before.clone(), body) };
            if subresource {
                let status = after["status"].take();
                after = before;
                after["status"] = status;
            }
            (object.to_owned(), after)
        };
        self.version += 1;
        stored["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path, stored.clone());
        Ok(stored)
    }
}

/// RFC 7396.
fn merged(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let mut target = target.as_object().cloned().unwrap_or_default();
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            let before = target.remove(&name).unwrap_or_default();
            target.insert(name, merged(before, value));
        }
    }
    Value::Object(target)
}

impl tower::Service<Request<Body>> for ApiServer {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("the client sends all of it").to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let result = this.state.lock().expect("no panic").handle(&parts.method, parts.uri.path(), body);
            let mut answers = this.answers.subscribe();
            let _ = answers.wait_for(|answers| *answers).await;
            let (status, body) = result.map_or_else(
                |(status, reason)| {
                    let body = json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": reason, "reason": reason, "code": status.as_u16(),
                    });
                    (status, body)
                },
                |object| (StatusCode::OK, object),
            );
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = status;
            Ok(response)
        })
    }
}
