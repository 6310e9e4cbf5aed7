//! Records of connections and requests: filled while they run, closed exactly once, by `close` or by drop.
//!
//! Workers only fill plain values and put them into a buffer of their own; another thread turns them into spans, metrics
//! and log lines.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Uri};

use super::{
    method::{self, METHODS},
    outcome::Outcome,
    trace::{SpanContext, TraceState},
    via::Via,
};
use crate::table::{Backend, FrontendKind, Target};

/// Records are handed over in batches of this size, or at the next tick.
const BATCH: usize = 128;

/// Facts of a downstream connection that all its requests share.
#[derive(Debug, Clone)]
pub struct Downstream {
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// The address that the client dialled.
    pub local: SocketAddr,
    /// The client, as far as it is known: the peer, unless a trusted one named somebody else.
    pub client: SocketAddr,
    /// How the client became known.
    pub client_source: ClientSource,
    /// Kind of the address that was dialled.
    pub frontend: FrontendKind,
    /// Server name of the TLS handshake, if one was seen.
    pub server_name: Option<Box<str>>,
    /// TLS was terminated here.
    pub tls: bool,
}

/// `portico.client.address_source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ClientSource {
    Peer,
    ProxyV1,
    ProxyV2,
    Forwarded,
    XForwardedFor,
}

/// One attempt to reach an endpoint.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The endpoint.
    pub backend: Arc<Backend>,
    /// When it was chosen.
    pub started: Instant,
    /// Time to a usable connection; `None` if there never was one.
    pub connected: Option<Duration>,
    /// The connection had served before.
    pub reused: bool,
    /// How the endpoint was reached, or was to be.
    pub via: Via,
    /// Time to the end of the attempt.
    pub took: Duration,
    /// Status of the endpoint's answer.
    pub status: Option<u16>,
    /// How it ended.
    pub outcome: Outcome,
    /// Span of the attempt, injected into the request.
    pub span: u64,
}

/// A connection (TCP or TLS passed through, or an HTTP connection that failed before a request) or a UDP flow.
#[derive(Debug, Clone)]
pub struct ConnectionRecord {
    /// The connection.
    pub downstream: Arc<Downstream>,
    /// What was spoken: `tcp`, `tls`, `http` or `udp`.
    pub protocol: &'static str,
    /// The node that handed it over; empty if it came from its client.
    pub entry_node: Box<str>,
    /// Where it went.
    pub target: Option<Arc<Target>>,
    /// When it was accepted.
    pub started: Instant,
    /// How long it lived.
    pub took: Duration,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// Attempts to reach an endpoint, in order.
    pub attempts: Vec<Attempt>,
    /// How it ended.
    pub outcome: Outcome,
    /// Its trace.
    pub trace: SpanContext,
}

/// A request.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// The connection it came on.
    pub downstream: Arc<Downstream>,
    /// The client of this request, which a trusted proxy may have named in a header.
    pub client: SocketAddr,
    /// How the client became known.
    pub client_source: ClientSource,
    /// A forwarding header was there but not believed.
    pub untrusted_chain: bool,
    /// Where it went.
    pub target: Option<Arc<Target>>,
    /// When its head was complete.
    pub started: Instant,
    /// Time to the end of the answer.
    pub took: Duration,
    /// Time to the head of the answer.
    pub first_byte: Option<Duration>,
    /// Method.
    pub method: Method,
    /// URI as received; `/` if nobody will read it (see [`Reporter::with_detail`]).
    pub uri: Uri,
    /// Host header; with HTTP/2 the authority is in the URI. `None` if nobody will read it.
    pub authority: Option<HeaderValue>,
    /// User-Agent; `None` if nobody will read it.
    pub user_agent: Option<HeaderValue>,
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
    /// It is a gRPC call.
    pub grpc: bool,
    /// Status sent to the client; 0 if none was sent.
    pub status: u16,
    /// grpc-status of the answer, from header or trailer.
    pub grpc_status: Option<u8>,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// Attempts to reach an endpoint, in order.
    pub attempts: Vec<Attempt>,
    /// How it ended.
    pub outcome: Outcome,
    /// Its trace.
    pub trace: SpanContext,
    /// A context that came with it but was not believed.
    pub link: Option<SpanContext>,
}

/// A record on its way to the reporting thread.
#[derive(Debug, Clone)]
pub enum Record {
    /// A connection or flow ended.
    Connection(Box<ConnectionRecord>),
    /// A request ended.
    Request(Box<RequestRecord>),
}

/// What a worker counted itself, whatever becomes of its records. Only that worker writes, so writing takes no locked
/// instruction; the alignment keeps the counters of two workers off one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Shard {
    /// Records closed.
    pub closed: AtomicU64,
    /// Records that found the queue full.
    pub dropped: AtomicU64,
    /// Connections and flows so far, by [`Slot`].
    pub accepted: [AtomicU64; Slot::COUNT],
    /// Connections and flows open now, by [`Slot`].
    pub open: [AtomicU64; Slot::COUNT],
    /// Requests in flight: without TLS, then with, by the index of [`METHODS`].
    pub requests: [[AtomicU64; METHODS.len()]; 2],
}

/// Where connections of one kind are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

/// Counts a connection or flow as open until dropped. HTTP connections, whose requests are what is recorded, have only
/// this.
#[derive(Debug)]
pub struct Counted {
    reporter: Rc<Reporter>,
    slot: Slot,
}

/// A worker's end of reporting.
#[derive(Debug)]
pub struct Reporter {
    buffer: RefCell<Vec<Record>>,
    queue: SyncSender<Vec<Record>>,
    shard: Arc<Shard>,
    detail: bool,
    /// Decides what is sampled, and makes ids.
    pub traces: TraceState,
}

/// An open connection. Dropping it closes it as [`Outcome::Dropped`].
#[derive(Debug)]
pub struct OpenConnection {
    reporter: Rc<Reporter>,
    /// `None` once closed; [`OpenConnection::close`] consumes, so nobody sees that.
    record: Option<Box<ConnectionRecord>>,
    /// `None` within a connection that is counted already.
    _counted: Option<Counted>,
}

/// An open request. Dropping it closes it as [`Outcome::Dropped`].
#[derive(Debug)]
pub struct OpenRequest {
    reporter: Rc<Reporter>,
    /// `None` once closed; [`OpenRequest::close`] consumes, so nobody sees that.
    record: Option<Box<RequestRecord>>,
}

// === impl Slot ===

impl Slot {
    const KINDS: [FrontendKind; 6] = [
        FrontendKind::ClusterIp,
        FrontendKind::NodePort,
        FrontendKind::LoadBalancer,
        FrontendKind::ExternalIp,
        FrontendKind::Route,
        FrontendKind::Hop,
    ];
    /// Number of slots.
    pub const COUNT: usize = 2 * Self::KINDS.len();

    /// Where connections to addresses of `kind` are counted.
    pub fn of(kind: FrontendKind, udp: bool) -> Self {
        Slot(2 * kind as usize + usize::from(udp))
    }

    /// Every slot, with what it counts: the kind and `network.transport`.
    pub fn all() -> impl Iterator<Item = (Slot, FrontendKind, &'static str)> {
        Self::KINDS
            .into_iter()
            .flat_map(|kind| [(Slot::of(kind, false), kind, "tcp"), (Slot::of(kind, true), kind, "udp")])
    }

    /// The counter of this slot.
    pub fn pick(self, counters: &[AtomicU64; Slot::COUNT]) -> &AtomicU64 {
        &counters[self.0]
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        add(self.slot.pick(&self.reporter.shard.open), u64::MAX);
    }
}

/// Adds to a counter that only this thread writes, wrapping, so that the largest number takes one off.
fn add(counter: &AtomicU64, number: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
}

// === impl Reporter ===

impl Reporter {
    /// A worker's end of `queue`.
    pub fn new(queue: SyncSender<Vec<Record>>, shard: Arc<Shard>, traces: TraceState) -> Self {
        Self { buffer: RefCell::new(Vec::with_capacity(BATCH)), queue, shard, detail: true, traces }
    }

    /// Whether all records carry what only logs show. Without it those that are not sampled spare the copies of URI and
    /// headers, and do not keep the buffers alive that these are slices of.
    pub fn with_detail(mut self, detail: bool) -> Self {
        self.detail = detail;
        self
    }

    /// Counts an HTTP connection. All others are counted by [`Reporter::connection`].
    pub fn count(self: &Rc<Self>, kind: FrontendKind) -> Counted {
        self.count_in(Slot::of(kind, false))
    }

    fn count_in(self: &Rc<Self>, slot: Slot) -> Counted {
        add(slot.pick(&self.shard.accepted), 1);
        add(slot.pick(&self.shard.open), 1);
        Counted { reporter: self.clone(), slot }
    }

    /// Opens the record of a connection or flow. It is counted, unless `protocol` is `http`: those are counted by
    /// [`Reporter::count`] when they come, and get a record only if they end before a request.
    pub fn connection(self: &Rc<Self>, downstream: Arc<Downstream>, protocol: &'static str) -> OpenConnection {
        let slot = Slot::of(downstream.frontend, protocol == "udp");
        let counted = (protocol != "http").then(|| self.count_in(slot));
        let record = ConnectionRecord {
            downstream,
            protocol,
            entry_node: Box::default(),
            target: None,
            started: Instant::now(),
            took: Duration::ZERO,
            received: 0,
            sent: 0,
            attempts: Vec::new(),
            outcome: Outcome::Dropped,
            trace: self.traces.root(true),
        };
        OpenConnection { reporter: self.clone(), record: Some(Box::new(record)), _counted: counted }
    }

    /// Opens the record of a request. `parent` is the trace context of a trusted client.
    pub fn request<B>(
        self: &Rc<Self>,
        downstream: Arc<Downstream>,
        request: &http::Request<B>,
        parent: Option<SpanContext>,
    ) -> OpenRequest {
        let headers = request.headers();
        let grpc = headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let trace = self.traces.request(parent);
        let detail = self.detail || trace.sampled;
        let shown = |name| if detail { headers.get(name).cloned() } else { None };
        add(self.in_flight(&downstream, request.method()), 1);
        let record = RequestRecord {
            client: downstream.client,
            client_source: downstream.client_source,
            untrusted_chain: false,
            downstream,
            target: None,
            started: Instant::now(),
            took: Duration::ZERO,
            first_byte: None,
            method: request.method().clone(),
            uri: if detail { request.uri().clone() } else { Uri::default() },
            authority: shown(http::header::HOST),
            user_agent: shown(http::header::USER_AGENT),
            http2: request.version() == http::Version::HTTP_2,
            grpc,
            status: 0,
            grpc_status: None,
            received: 0,
            sent: 0,
            attempts: Vec::with_capacity(1),
            outcome: Outcome::Dropped,
            trace,
            link: None,
        };
        OpenRequest { reporter: self.clone(), record: Some(Box::new(record)) }
    }

    /// Hands over what is buffered. Workers call it at every tick, so that a record waits no longer than that.
    pub fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut *buffer, Vec::with_capacity(BATCH));
        // The path of a request never waits for telemetry: what does not fit is counted and gone.
        if let Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) = self.queue.try_send(batch) {
            add(&self.shard.dropped, batch.len() as u64);
        }
    }

    fn in_flight(&self, downstream: &Downstream, method: &Method) -> &AtomicU64 {
        &self.shard.requests[usize::from(downstream.tls)][method::index(method)]
    }

    fn push(&self, record: Record) {
        let full = {
            let mut buffer = self.buffer.borrow_mut();
            buffer.push(record);
            buffer.len() >= BATCH
        };
        if full {
            self.flush();
        }
    }
}

impl Drop for Reporter {
    /// Records that close with their worker, because their tasks are dropped with it, come after its last tick.
    fn drop(&mut self) {
        self.flush();
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    /// Fills in the record.
    pub fn note(&mut self, fill: impl FnOnce(&mut ConnectionRecord)) {
        if let Some(record) = self.record.as_deref_mut() {
            fill(record);
        }
    }

    /// The trace of the connection.
    pub fn trace(&self) -> SpanContext {
        self.record.as_deref().map_or_else(SpanContext::default, |record| record.trace)
    }

    /// Closes the record.
    pub fn close(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(mut record) = self.record.take() {
            record.outcome = outcome;
            record.took = record.started.elapsed();
            add(&self.reporter.shard.closed, 1);
            self.reporter.push(Record::Connection(record));
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.finish(Outcome::Dropped);
    }
}

// === impl OpenRequest ===

impl OpenRequest {
    /// Fills in the record.
    pub fn note(&mut self, fill: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = self.record.as_deref_mut() {
            fill(record);
        }
    }

    /// The trace of the request.
    pub fn trace(&self) -> SpanContext {
        self.record.as_deref().map_or_else(SpanContext::default, |record| record.trace)
    }

    /// Closes the record.
    pub fn close(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(mut record) = self.record.take() {
            record.outcome = outcome;
            record.took = record.started.elapsed();
            add(self.reporter.in_flight(&record.downstream, &record.method), u64::MAX);
            add(&self.reporter.shard.closed, 1);
            self.reporter.push(Record::Request(record));
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.finish(Outcome::Dropped);
    }
}

// === impl Record ===

impl Record {
    /// Its trace.
    pub fn trace(&self) -> SpanContext {
        match self {
            Record::Connection(record) => record.trace,
            Record::Request(record) => record.trace,
        }
    }

    /// When it ended.
    pub fn ended(&self) -> Instant {
        match self {
            Record::Connection(record) => record.started + record.took,
            Record::Request(record) => record.started + record.took,
        }
    }
}

// === impl ClientSource ===

impl ClientSource {
    /// `portico.client.address_source`.
    pub fn label(self) -> &'static str {
        match self {
            ClientSource::Peer => "peer",
            ClientSource::ProxyV1 => "proxy_v1",
            ClientSource::ProxyV2 => "proxy_v2",
            ClientSource::Forwarded => "forwarded",
            ClientSource::XForwardedFor => "x_forwarded_for",
        }
    }
}
