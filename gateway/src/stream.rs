//! The discovery service: one task per agent around a `delta::server::Server`, which knows the protocol. The task only
//! moves frames, and ends with its stream.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use api::{
    delta::{
        frame::View as _,
        server::{Frame, Heard, Server},
    },
    proto::discovery::{
        Goodbye, GoodbyeReason, ListResourcesRequest, ListResourcesResponse, WatchRequest, WatchResponse, Welcome,
        watch_response,
    },
    resource::Kind,
};
use runtime::drain;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    identity::peer::{Ending, Peer},
    snapshot::store::Store,
};

pub mod codec;
pub mod list;
pub mod nodes;

use nodes::{Entry, Nodes};

/// An agent hears at least this often that it is up to date.
const VERIFY_INTERVAL: Duration = Duration::from_secs(20);

/// An update that is not acknowledged for this long ends its stream.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream on which nothing is said at first is not kept for longer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages between a stream's task and its connection. The window of the protocol is four updates.
const OUTBOX: usize = 4;

/// The discovery service of one gateway process.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// What is published.
    pub store: Arc<Store>,
    /// Who listens.
    pub nodes: Arc<Nodes>,
    /// Whose state it is; an agent that holds another cluster's state is sent everything.
    pub cluster_uid: Arc<str>,
    /// This process.
    pub replica_id: Arc<str>,
    /// When it began to end.
    pub drain: drain::Watch,
}

/// A stream from Hello on.
struct Stream {
    discovery: Discovery,
    server: Server,
    requests: Streaming<WatchRequest>,
    outbox: mpsc::Sender<Result<Frame, Status>>,
    peer: Peer,
    /// When the oldest open update was sent.
    waiting_since: Option<Instant>,
}

/// Why a stream's task ended.
enum End {
    /// The agent, or the connection, closed it.
    Closed,
    /// We close it, saying this.
    Goodbye(GoodbyeReason),
    /// We close it with an error.
    Status(Status),
}

// === impl Discovery ===

impl Discovery {
    /// Serves one stream; the frames go out through the returned stream.
    ///
    /// # Errors
    /// `INTERNAL` if nobody has asked who the peer is.
    pub fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<ReceiverStream<Result<Frame, Status>>>, Status> {
        let peer = Peer::of(request.extensions())?;
        let (outbox, frames) = mpsc::channel(OUTBOX);
        let stream = Stream {
            discovery: self.clone(),
            server: Server::new(),
            requests: request.into_inner(),
            outbox,
            peer,
            waiting_since: None,
        };
        tokio::spawn(stream.run());
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    /// Lists a page of resources.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an unknown type or token, `UNAVAILABLE` before the first commit.
    pub fn list(&self, request: &ListResourcesRequest) -> Result<ListResourcesResponse, Status> {
        list::page(&self.store.read(), request)
    }
}

// === impl Stream ===

impl Stream {
    async fn run(mut self) {
        let end = match self.open().await {
            Ok(entry) => {
                let end = self.serve(&entry).await;
                tracing::info!(node = entry.node(), reason = end.reason(), "agent disconnected");
                end
            }
            Err(end) => end,
        };
        // The connection may be gone already; then nobody is left to be told.
        match end {
            End::Closed => {}
            End::Goodbye(reason) => {
                let goodbye = Goodbye { reason: reason as i32, retry_after: None };
                let kind = Some(watch_response::Kind::Goodbye(goodbye));
                let _ = self.outbox.send(Ok(Frame::message(&WatchResponse { nonce: String::new(), kind }))).await;
            }
            End::Status(status) => {
                let _ = self.outbox.send(Err(status)).await;
            }
        }
    }

    /// Hears Hello, waits for the first commit, and answers Welcome.
    async fn open(&mut self) -> Result<Entry, End> {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, self.requests.message());
        let hello = hello.await.map_err(|_| End::Status(Status::deadline_exceeded("no hello within 10 s")))?;
        let hello = hello.map_err(|_| End::Closed)?.ok_or(End::Closed)?;
        let heard = self.server.request(hello, &self.discovery.cluster_uid).map_err(violation)?;
        let Heard::Hello { node, agent_version } = heard else {
            return Err(End::Status(Status::invalid_argument("a stream begins with hello")));
        };
        if node.is_empty() {
            return Err(End::Status(Status::invalid_argument("hello.node_name is empty; give the name of the Node")));
        }
        self.peer.admit(&node).map_err(End::Status)?;
        // An agent must never take "nothing was listed yet" for "nothing is there".
        let mut revisions = self.discovery.store.revisions();
        let mut drain = self.discovery.drain.clone();
        tokio::select! {
            committed = revisions.wait_for(|revision| *revision > 0) => { committed.map_err(|_| End::Closed)?; }
            () = drain.started() => return Err(End::Goodbye(GoodbyeReason::Shutdown)),
            () = self.outbox.closed() => return Err(End::Closed),
        }
        let welcome = Welcome {
            cluster_uid: self.discovery.cluster_uid.to_string(),
            replica_id: self.discovery.replica_id.to_string(),
            bucket_count: 1,
            verify_interval: prost_types::Duration::try_from(VERIFY_INTERVAL).ok(),
            max_stream_age: None,
        };
        let frame = self.server.welcome(welcome, &*self.discovery.store.read()).map_err(violation)?;
        self.send(frame).await?;
        let resync = self.server.resync();
        tracing::info!(node, peer = self.peer.address(), ?resync, "agent connected");
        let entry = self.discovery.nodes.enter(node, agent_version, &self.peer, resync);
        entry.ok_or(End::Goodbye(GoodbyeReason::Superseded))
    }

    /// Serves until the stream ends, and says why it did.
    async fn serve(&mut self, entry: &Entry) -> End {
        let mut revisions = self.discovery.store.revisions();
        let mut drain = self.discovery.drain.clone();
        let mut lease = self.peer.lease();
        let mut heartbeat = tokio::time::interval(VERIFY_INTERVAL);
        heartbeat.reset();
        loop {
            if let Err(end) = self.respond().await {
                return end;
            }
            let deadline = self.waiting_since.map(|since| since + ACK_TIMEOUT);
            tokio::select! {
                request = self.requests.message() => match request {
                    Ok(Some(request)) => if let Err(end) = self.request(request, entry) {
                        return end;
                    },
                    Ok(None) | Err(_) => return End::Closed,
                },
                changed = revisions.changed() => if changed.is_err() {
                    return End::Closed;
                },
                _ = heartbeat.tick() => {
                    let frame = self.server.heartbeat(&*self.discovery.store.read());
                    if let Some(frame) = frame && let Err(end) = self.send_update(frame).await {
                        return end;
                    }
                }
                ending = lease.ended() => return ending.into(),
                () = entry.superseded() => return End::Goodbye(GoodbyeReason::Superseded),
                () = drain.started() => return End::Goodbye(GoodbyeReason::Shutdown),
                () = self.outbox.closed() => return End::Closed,
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return End::Status(Status::deadline_exceeded("an update was not acknowledged within 30 s"));
                }
            }
        }
    }

    fn request(&mut self, request: WatchRequest, entry: &Entry) -> Result<(), End> {
        let heard = self.server.request(request, &self.discovery.cluster_uid).map_err(violation)?;
        if let Heard::Ack { revision: Some(revision), rejections } = heard {
            entry.acknowledged(revision, rejections);
        }
        self.waiting_since = self.server.is_waiting().then(Instant::now);
        Ok(())
    }

    /// Sends whatever the protocol allows to be sent now.
    async fn respond(&mut self) -> Result<(), End> {
        loop {
            let frame = self.server.respond(&*self.discovery.store.read());
            match frame {
                Some(frame) => self.send_update(frame).await?,
                None => return Ok(()),
            }
        }
    }

    async fn send_update(&mut self, frame: Frame) -> Result<(), End> {
        self.waiting_since.get_or_insert_with(Instant::now);
        self.send(frame).await
    }

    async fn send(&self, frame: Frame) -> Result<(), End> {
        self.discovery.nodes.totals.sent_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        self.outbox.send(Ok(frame)).await.map_err(|_| End::Closed)
    }
}

// === impl End ===

impl End {
    fn reason(&self) -> &str {
        match self {
            End::Closed => "closed by the agent",
            End::Goodbye(reason) => reason.as_str_name(),
            End::Status(status) => status.message(),
        }
    }
}

impl From<Ending> for End {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Expiring => End::Goodbye(GoodbyeReason::CredentialExpiring),
            Ending::PodGone | Ending::NodeGone => End::Status(ending.status()),
        }
    }
}

fn violation(violation: api::delta::Violation) -> End {
    End::Status(Status::invalid_argument(violation.to_string()))
}

/// Resources of each kind in the store, for metrics.
pub fn counts(store: &Store) -> [(Kind, u64); Kind::ALL.len()] {
    let state = store.read();
    Kind::ALL.map(|kind| (kind, state.digests().of(kind).count()))
}
