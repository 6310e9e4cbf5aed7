//! Asking a gateway.

use super::GetError;
use super::kind::Kind;
use super::show::{Item, Key, health, plain, warning};
use super::state::Change;
use api::proto::health::node_health_service_client::NodeHealthServiceClient;
use api::proto::health::watch_node_health_response::Event as HealthEvent;
use api::proto::health::{Freshness, GetNodeHealthRequest, ListNodeHealthRequest, WatchNodeHealthRequest};
use api::proto::inspect::inspect_service_client::InspectServiceClient;
use api::proto::inspect::watch_objects_response::Event as ObjectEvent;
use api::proto::inspect::{ListObjectsRequest, ObjectKind, WatchObjectsRequest};
use futures::stream::{BoxStream, StreamExt};
use std::error::Error;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// How long a gateway may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a gateway may take to answer anything but a watch.
const ANSWER: Duration = Duration::from_secs(30);

/// How often a silent watch is checked for a gateway that vanished without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Items in one page of node health.
const PAGE: i32 = 500;

/// The most bytes of one answer: a large cluster's Services come in one message.
const MESSAGE: usize = 256 << 20;

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The kind of things.
    pub kind: Kind,
    /// The namespace; empty for all.
    pub namespace: String,
    /// The name of one thing; empty for all.
    pub name: String,
}

/// The answer to a list.
#[derive(Debug, Default)]
pub struct Listing {
    /// What was asked for.
    pub items: Vec<Item>,
    /// Problems that belong to no item.
    pub warnings: Vec<String>,
}

/// A gateway that answered.
#[derive(Debug)]
pub struct Source {
    channel: Channel,
    url: String,
}

// === impl Query ===

impl Query {
    /// Whether this is part of what was asked for. Gateways narrow by themselves where they can.
    fn covers(&self, item: &Item) -> bool {
        let Key { namespace, name } = item.group();
        (self.namespace.is_empty() || !self.kind.is_namespaced() || self.namespace == namespace)
            && (self.name.is_empty() || self.name == name)
    }

    fn object_kind(&self) -> ObjectKind {
        match self.kind {
            Kind::Services => ObjectKind::Service,
            Kind::Endpoints => ObjectKind::Endpoint,
            Kind::Nodes => ObjectKind::Node,
            Kind::Agents => ObjectKind::Agent,
            Kind::Health => ObjectKind::Unspecified,
        }
    }

    /// The namespace as the gateway is asked for it: things outside of namespaces have none.
    fn asked_namespace(&self) -> String {
        if self.kind.is_namespaced() { self.namespace.clone() } else { String::new() }
    }

    /// The name as the gateway is asked for it. Endpoints have names of their own; a user names their Service.
    fn asked_name(&self) -> String {
        if self.kind == Kind::Endpoints { String::new() } else { self.name.clone() }
    }
}

// === impl Source ===

impl Source {
    /// Connects to the first of these gateways that can be reached.
    ///
    /// # Errors
    /// [`GetError::Unreachable`] with what went wrong with each.
    pub async fn connect(gateways: &[String]) -> Result<Source, GetError> {
        let mut failures = Vec::new();
        for url in gateways {
            match connect(url).await {
                Ok(channel) => return Ok(Source { channel, url: url.clone() }),
                Err(error) => failures.push(format!("{url}: {}", cause(&error))),
            }
        }
        Err(GetError::Unreachable(failures.join(", ")))
    }

    /// Everything that the query covers.
    ///
    /// # Errors
    /// [`GetError::Answer`] if the gateway refuses or takes too long.
    pub async fn list(&self, query: &Query) -> Result<Listing, GetError> {
        let listing = async {
            match query.kind {
                Kind::Health if query.name.is_empty() => self.list_health().await,
                Kind::Health => self.get_health(&query.name).await,
                _ => self.list_objects(query).await,
            }
        };
        let mut listing = match tokio::time::timeout(ANSWER, listing).await {
            Ok(listing) => listing.map_err(|status| self.refused(&status))?,
            Err(_) => {
                let status = Status::deadline_exceeded(format!("no answer within {} s", ANSWER.as_secs()));
                return Err(self.refused(&status));
            }
        };
        listing.items.retain(|item| query.covers(item));
        Ok(listing)
    }

    /// Everything that the query covers, and then every change. The stream ends with an error.
    ///
    /// # Errors
    /// [`GetError::Answer`] if the gateway refuses.
    pub async fn watch(&self, query: Query) -> Result<BoxStream<'static, Result<Change, GetError>>, GetError> {
        let changes = match query.kind {
            Kind::Health => self.watch_health().await,
            _ => self.watch_objects(&query).await,
        };
        let changes = changes.map_err(|status| self.refused(&status))?;
        let url = self.url.clone();
        let lost = GetError::Ended { url: url.clone() };
        let covered = changes.filter_map(move |change| {
            let change = match change {
                Ok(Change::Updated(item)) if !query.covers(&item) => None,
                Ok(change) => Some(Ok(change)),
                Err(status) => Some(Err(refused(&url, &status))),
            };
            std::future::ready(change)
        });
        Ok(covered.chain(futures::stream::once(std::future::ready(Err(lost)))).boxed())
    }

    async fn list_objects(&self, query: &Query) -> Result<Listing, Status> {
        let request = ListObjectsRequest {
            kind: query.object_kind().into(),
            namespace: query.asked_namespace(),
            name: query.asked_name(),
        };
        let answer = self.inspect().list_objects(request).await?.into_inner();
        Ok(Listing {
            items: answer.objects.into_iter().map(|object| Item::Object(Box::new(object))).collect(),
            warnings: answer.problems.iter().map(|problem| warning(None, problem)).collect(),
        })
    }

    async fn list_health(&self) -> Result<Listing, Status> {
        let (mut listing, mut page_token) = (Listing::default(), String::new());
        loop {
            let request = ListNodeHealthRequest { page_size: PAGE, page_token, ..Default::default() };
            let answer = self.health().list_node_health(request).await?.into_inner();
            listing.items.extend(answer.nodes.into_iter().map(|node| Item::Health(Box::new(node))));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                listing.warnings.extend(degraded(answer.freshness.as_ref()));
                return Ok(listing);
            }
        }
    }

    async fn get_health(&self, node: &str) -> Result<Listing, Status> {
        let request = GetNodeHealthRequest { name: health::resource_name(node) };
        match self.health().get_node_health(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let items = answer.node.into_iter().map(|node| Item::Health(Box::new(node))).collect();
                Ok(Listing { items, warnings: degraded(answer.freshness.as_ref()).into_iter().collect() })
            }
            Err(status) if status.code() == Code::NotFound => Ok(Listing::default()),
            Err(status) => Err(status),
        }
    }

    async fn watch_objects(&self, query: &Query) -> Result<BoxStream<'static, Result<Change, Status>>, Status> {
        let request = WatchObjectsRequest {
            kind: query.object_kind().into(),
            namespace: query.asked_namespace(),
            name: query.asked_name(),
        };
        let events = self.inspect().watch_objects(request).await?.into_inner();
        Ok(changes(events, |answer| match answer.event? {
            ObjectEvent::Updated(object) => Some(Change::Updated(Item::Object(Box::new(object)))),
            ObjectEvent::Removed(key) => Some(Change::Removed(Key { namespace: key.namespace, name: key.name })),
            ObjectEvent::Synced(_) => Some(Change::Synced),
        }))
    }

    async fn watch_health(&self) -> Result<BoxStream<'static, Result<Change, Status>>, Status> {
        let events = self.health().watch_node_health(WatchNodeHealthRequest::default()).await?.into_inner();
        Ok(changes(events, |answer| match answer.event? {
            HealthEvent::Updated(node) => Some(Change::Updated(Item::Health(Box::new(node)))),
            HealthEvent::Removed(name) => Some(Change::Removed(health::key(&name))),
            HealthEvent::Bookmark(bookmark) => bookmark.initial_state_complete.then_some(Change::Synced),
            HealthEvent::Reset(_) => Some(Change::Reset),
        }))
    }

    fn inspect(&self) -> InspectServiceClient<Channel> {
        InspectServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE)
    }

    fn health(&self) -> NodeHealthServiceClient<Channel> {
        NodeHealthServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE)
    }

    fn refused(&self, status: &Status) -> GetError {
        refused(&self.url, status)
    }
}

async fn connect(url: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await
}

fn changes<T: Send + 'static>(
    events: Streaming<T>,
    change: impl Fn(T) -> Option<Change> + Send + 'static,
) -> BoxStream<'static, Result<Change, Status>> {
    // An event without content comes from a newer gateway and means nothing here.
    events.filter_map(move |event| std::future::ready(event.map(&change).transpose())).boxed()
}

fn degraded(freshness: Option<&Freshness>) -> Option<String> {
    let Freshness { as_of_time, replica_id, degraded, .. } = freshness?;
    let as_of = as_of_time.map_or_else(|| "an unknown time".into(), |time| time.to_string());
    degraded.then(|| plain(&format!("gateway {replica_id:?} is degraded; what it says is as of {as_of}")))
}

fn refused(url: &str, status: &Status) -> GetError {
    let hint = match status.code() {
        Code::Unimplemented => "; check that --gateway names its --health-listen address",
        _ => "",
    };
    GetError::Answer { url: url.into(), message: format!("{}{hint}", plain(&describe(status))) }
}

fn describe(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_lowercase(),
        message => format!("{:?}: {message}", status.code()),
    }
}

/// The innermost reason: the outer ones only say that there was a transport error.
fn cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
