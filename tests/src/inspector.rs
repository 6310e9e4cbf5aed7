//! What a gateway knows, and waiting until it knows something.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use api::proto::inspect::{
    ListObjectsRequest, ListObjectsResponse, Object, ObjectKind, WatchObjectsRequest,
    inspect_service_client::InspectServiceClient, object::Kind as Content,
};
use tonic::transport::Channel;

/// Nothing that is waited for takes this long; what does is reported with what was seen last.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the health port of a gateway.
#[derive(Debug)]
pub struct Inspector {
    client: InspectServiceClient<Channel>,
}

// === impl Inspector ===

impl Inspector {
    /// Of the gateway whose health port is there. Nothing is sent before something is asked.
    pub fn new(health: SocketAddr) -> Self {
        let endpoint = Channel::from_shared(format!("http://{health}")).expect("a URL");
        Self { client: InspectServiceClient::new(endpoint.connect_lazy()) }
    }

    /// Lists the objects of a kind, with the problems of the source.
    pub async fn list(&self, kind: ObjectKind) -> ListObjectsResponse {
        let request = ListObjectsRequest { kind: kind as i32, ..ListObjectsRequest::default() };
        self.client.clone().list_objects(request).await.expect("the gateway answers").into_inner()
    }

    /// Waits until the objects of a kind are as expected; then until all agents have applied that.
    pub async fn until(&self, kind: ObjectKind, what: &str, done: impl Fn(&[Object]) -> bool) {
        self.watch(kind, what, done).await;
        self.serving().await;
    }

    /// Waits until the ready endpoints of a Service are at these addresses, on all agents.
    pub async fn until_ready(&self, service: &str, addresses: &[IpAddr]) {
        let wanted: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
        let what = format!("{service} is served by {wanted:?}");
        self.until(ObjectKind::Endpoint, &what, |objects| {
            let ready = objects.iter().filter_map(|object| match &object.kind {
                Some(Content::Endpoint(endpoint)) if endpoint.service == service && endpoint.ready => {
                    Some(endpoint.address.clone())
                }
                _ => None,
            });
            ready.collect::<BTreeSet<_>>() == wanted
        })
        .await;
    }

    /// Waits until there is an agent for each node, and all of them hold the newest state.
    pub async fn serving(&self) {
        let mut nodes = 0;
        self.watch(ObjectKind::Node, "the nodes are listed", |objects| !objects.is_empty()).await;
        for _ in self.list(ObjectKind::Node).await.objects {
            nodes += 1;
        }
        self.watch(ObjectKind::Agent, "every agent is up to date", |objects| {
            let current = objects.iter().filter(|object| match &object.kind {
                Some(Content::Agent(agent)) => agent.connected && agent.behind == 0 && agent.acknowledged_resources > 0,
                _ => false,
            });
            current.count() >= nodes
        })
        .await;
    }

    /// Follows a kind until its objects are as expected. Every step is an event of the gateway's watch.
    pub async fn watch(&self, kind: ObjectKind, what: &str, done: impl Fn(&[Object]) -> bool) {
        let mut seen = Vec::new();
        let watched = tokio::time::timeout(PATIENCE, self.follow(kind, &mut seen, done)).await;
        if watched.is_err() {
            panic!("waited in vain until {what}; last seen: {seen:#?}");
        }
    }

    async fn follow(&self, kind: ObjectKind, seen: &mut Vec<Object>, done: impl Fn(&[Object]) -> bool) {
        use api::proto::inspect::watch_objects_response::Event;
        loop {
            let request = WatchObjectsRequest { kind: kind as i32, ..WatchObjectsRequest::default() };
            // At the start the gateway may not listen yet; connecting again is the way to wait for it.
            let Ok(response) = self.client.clone().watch_objects(request).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let mut events = response.into_inner();
            seen.clear();
            let mut synced = false;
            while let Ok(Some(event)) = events.message().await {
                match event.event {
                    Some(Event::Updated(object)) => {
                        seen.retain(|known| known.key != object.key);
                        seen.push(object);
                    }
                    Some(Event::Removed(key)) => seen.retain(|known| known.key.as_ref() != Some(&key)),
                    Some(Event::Synced(_)) => synced = true,
                    None => {}
                }
                if synced && done(seen) {
                    return;
                }
            }
        }
    }
}
