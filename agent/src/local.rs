//! What one worker owns. It is not `Send`, so crossing threads is a compile error.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use ipnet::IpNet;
use tokio::sync::Notify;

use crate::{
    alarm::Alarms,
    balance::{
        choose::{Chooser, Client},
        pick::{Load, LoadBound},
        pin::Pins,
    },
    buffers::Buffers,
    forward::{
        pool::Pool,
        socket::Source,
        source::{self, Way},
        tcp::Scratch,
        udp::Flows,
    },
    report::record::Reporter,
    table::{Backend, Candidates, FrontendKind, Table, Target},
};

/// How long an endpoint that refused or timed out is left out, at first and at most. Each failure in a row doubles it.
const EJECTION: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long after an endpoint began to refuse the table that names the next one may come. A Pod of a rollout stops to
/// listen as soon as it is told to; that, and who replaces it, passes the kubelet, the API server, the controller of
/// EndpointSlices and the gateway before it is known here.
const REPLACED: Duration = Duration::from_secs(2);

/// How often idle connections to endpoints are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Limits and trust of the data plane, the same for all workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for the head of a request, and for a TLS handshake.
    pub header_timeout: Duration,
    /// Time between requests of a kept-alive connection.
    pub idle_timeout: Duration,
    /// Time for one connection attempt.
    pub connect_timeout: Duration,
    /// Time that bytes of a request may be unacknowledged by an endpoint (`TCP_USER_TIMEOUT`).
    pub upstream_user_timeout: Duration,
    /// Time to the head of an endpoint's answer.
    pub response_timeout: Duration,
    /// Time without a byte in either direction on opaque connections (S16.5).
    pub tcp_idle_timeout: Duration,
    /// Time without a datagram of a UDP flow that was never answered, and of one that was (S16.5).
    pub udp_idle_timeout: (Duration, Duration),
    /// Attempts for one connection or request.
    pub attempts: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Number of a request's headers.
    pub headers: usize,
    /// Connections of one worker.
    pub connections: u32,
    /// UDP flows of one worker.
    pub flows: usize,
    /// Peers whose forwarding headers and trace context are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Clients of Services with session affinity that a node remembers.
    pub affinity_clients: usize,
    /// How full an endpoint may be for clients that are new to a Service with session affinity.
    pub load_bound: LoadBound,
    /// How long draining may take.
    pub drain_timeout: Duration,
}

/// What holds for a single worker when no option says otherwise.
impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(2),
            upstream_user_timeout: Duration::from_secs(20),
            response_timeout: Duration::from_secs(300),
            tcp_idle_timeout: Duration::from_secs(24 * 3600),
            // As conntrack has them.
            udp_idle_timeout: (Duration::from_secs(30), Duration::from_secs(120)),
            attempts: 3,
            header_bytes: 64 << 10,
            headers: 100,
            connections: 65_536,
            flows: 16_384,
            trusted_proxies: Vec::new(),
            affinity_clients: 65_536,
            load_bound: LoadBound { percent: NonZeroU32::new(125) },
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// One worker's own state.
pub struct Local {
    /// Limits and trust.
    pub limits: Arc<Limits>,
    /// Where records go.
    pub reporter: Rc<Reporter>,
    /// Whether this worker is draining.
    pub drain: LocalDrain,
    /// Round-robin turn.
    pub turn: Cell<u32>,
    /// Deadlines of connections and requests.
    pub alarms: Rc<Alarms>,
    /// Memory to read into.
    pub buffers: Buffers,
    /// What copying needs.
    pub scratch: Scratch,
    /// UDP flows.
    pub flows: Flows,
    /// Where clients went before; the same for all workers of a node.
    pins: Arc<Pins>,
    /// Packet rules lead traffic here, so that our own has to be marked.
    pub intercepting: Cell<bool>,
    table: RefCell<Rc<Pinned>>,
    swapped: Notify,
    upstreams: RefCell<HashMap<SocketAddr, Rc<Upstream>, RandomState>>,
    connections: Rc<Cell<u32>>,
    idle: Rc<Notify>,
    now: Cell<Instant>,
    sweep: Cell<Instant>,
}

/// A table that this worker holds. Cloning the `Rc` is not atomic.
pub struct Pinned(pub Arc<Table>);

/// What a worker knows of, and holds to, one endpoint address.
#[derive(Default)]
pub struct Upstream {
    /// Requests or connections in flight.
    pub active: Cell<u32>,
    /// HTTP connections kept for reuse.
    pub pool: Pool,
    failures: Cell<u32>,
    /// When the first of these failures was.
    failing_since: Cell<Option<Instant>>,
    ejected_until: Cell<Option<Instant>>,
}

/// Counts an upstream as busy until dropped.
pub struct Busy(Rc<Upstream>);

/// Draining, as the connections of one worker see it.
#[derive(Default)]
pub struct LocalDrain {
    alarms: Rc<Alarms>,
    draining: Cell<bool>,
    over: Cell<bool>,
    notify: Notify,
}

/// Counts a connection until dropped.
pub struct ConnectionGuard {
    connections: Rc<Cell<u32>>,
    idle: Rc<Notify>,
}

// === impl Local ===

impl Local {
    /// The state of a worker that serves nothing yet.
    pub fn new(limits: Arc<Limits>, pins: Arc<Pins>, reporter: Rc<Reporter>, table: Arc<Table>) -> Self {
        let alarms = Rc::<Alarms>::default();
        Self {
            limits,
            reporter,
            drain: LocalDrain { alarms: alarms.clone(), ..LocalDrain::default() },
            alarms,
            buffers: Buffers::default(),
            turn: Cell::new(fastrand::u32(..)),
            scratch: Scratch::default(),
            flows: Flows::default(),
            pins,
            intercepting: Cell::default(),
            table: RefCell::new(Rc::new(Pinned(table))),
            swapped: Notify::new(),
            upstreams: RefCell::default(),
            connections: Rc::default(),
            idle: Rc::default(),
            now: Cell::new(Instant::now()),
            sweep: Cell::new(Instant::now()),
        }
    }

    /// The current table. A TCP connection keeps the one it began with; each HTTP request takes the current one.
    pub fn table(&self) -> Rc<Pinned> {
        self.table.borrow().clone()
    }

    /// Swaps the table, cuts UDP flows whose endpoint left it, and forgets endpoints that left it and carry nothing.
    /// Their idle connections close with them.
    pub fn swap(&self, table: Arc<Table>, known: impl Fn(&SocketAddr) -> bool) {
        self.flows.follow(&table);
        *self.table.borrow_mut() = Rc::new(Pinned(table));
        self.upstreams.borrow_mut().retain(|address, upstream| {
            let known = known(address);
            if !known {
                upstream.pool.clear();
            }
            known || upstream.active.get() > 0
        });
        self.swapped.notify_waiters();
    }

    /// What `find` finds in the table of this moment or a later one, for whoever was refused by all of `tried`. It is waited
    /// for only while one of them may be the last Pod of a rollout, so that a Service that is down says so at once.
    pub async fn replaced<T>(&self, tried: &[SocketAddr], find: impl Fn() -> Option<T>) -> Option<T> {
        let since = {
            let upstreams = self.upstreams.borrow();
            tried.iter().filter_map(|address| upstreams.get(address)?.failing_since.get()).max()?
        };
        let found = async {
            loop {
                let swapped = self.swapped.notified();
                if let Some(found) = find() {
                    return found;
                }
                swapped.await;
            }
        };
        tokio::time::timeout_at((since + REPLACED).into(), found).await.ok()
    }

    /// What is known of an endpoint address.
    pub fn upstream(&self, address: SocketAddr) -> Rc<Upstream> {
        if let Some(upstream) = self.upstreams.borrow().get(&address) {
            return upstream.clone();
        }
        self.upstreams.borrow_mut().entry(address).or_default().clone()
    }

    /// Every upstream, for sweeping pools at a tick.
    pub fn each_upstream(&self, mut visit: impl FnMut(&SocketAddr, &Upstream)) {
        self.upstreams.borrow().iter().for_each(|(address, upstream)| visit(address, upstream));
    }

    /// How loaded an endpoint is, for [`crate::balance::pick::pick`].
    pub fn load(&self, backend: &Backend) -> Load {
        let upstreams = self.upstreams.borrow();
        let Some(upstream) = upstreams.get(&backend.address) else { return Load::default() };
        Load { active: upstream.active.get(), ejected: upstream.is_ejected(self.now.get()) }
    }

    /// The endpoint for the next attempt, leaving out those in `tried`.
    pub fn choose<'a>(
        &self,
        target: &Target,
        candidates: &'a Candidates,
        client: Client,
        tried: &[SocketAddr],
    ) -> Option<&'a Arc<Backend>> {
        let chooser =
            Chooser { pins: &self.pins, turn: &self.turn, bound: self.limits.load_bound, now: self.now.get() };
        chooser.choose(target, candidates, client, |backend| self.load(backend), tried)
    }

    /// The way to `backend` for `client`, who dialled an address of this kind.
    pub fn way(&self, target: &Target, kind: FrontendKind, client: SocketAddr, backend: &Backend) -> Way {
        if !self.intercepting.get() {
            return Way::Direct(Source::System);
        }
        source::choose(&self.table().0, target, kind, client, backend)
    }

    /// Time, at most one tick old. Reading it costs nothing.
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Called by the worker at every tick.
    pub fn tick(&self, now: Instant) {
        self.now.set(now);
        self.alarms.ring(now);
        if self.sweep.get() <= now {
            self.sweep.set(now + SWEEP);
            self.each_upstream(|_, upstream| upstream.pool.sweep(now));
        }
        self.reporter.flush();
    }

    /// Counts a new connection; `None` when the worker is at its limit.
    pub fn admit(&self) -> Option<ConnectionGuard> {
        let connections = self.connections.get();
        if connections >= self.limits.connections {
            return None;
        }
        self.connections.set(connections + 1);
        Some(ConnectionGuard { connections: self.connections.clone(), idle: self.idle.clone() })
    }

    /// Connections open now.
    pub fn connections(&self) -> u32 {
        self.connections.get()
    }

    /// Waits until no connection is open.
    pub async fn emptied(&self) {
        while self.connections.get() > 0 {
            self.idle.notified().await;
        }
    }

    /// Whether what `peer` says of others is believed.
    pub fn trusts(&self, peer: std::net::IpAddr) -> bool {
        self.limits.trusted_proxies.iter().any(|range| range.contains(&peer))
    }
}

// === impl Upstream ===

impl Upstream {
    /// Counts a request or connection in flight.
    pub fn busy(self: &Rc<Self>) -> Busy {
        self.active.set(self.active.get() + 1);
        Busy(self.clone())
    }

    /// The endpoint answered.
    pub fn succeeded(&self) {
        self.failures.set(0);
        self.failing_since.set(None);
        self.ejected_until.set(None);
    }

    /// Whether it is left out at present.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.get().is_some_and(|until| until > now)
    }

    /// Whether it could be reached the last time, or was never tried.
    pub fn is_well(&self) -> bool {
        self.failures.get() == 0
    }

    /// The endpoint could not be reached: leave it out for a while.
    pub fn failed(&self, now: Instant) {
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        if failures == 0 {
            self.failing_since.set(Some(now));
        }
        let time = EJECTION.0.saturating_mul(1 << failures.min(8)).min(EJECTION.1);
        self.ejected_until.set(Some(now + time));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
    }
}

// === impl LocalDrain ===

impl LocalDrain {
    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Begins draining.
    pub fn begin(&self) {
        self.draining.set(true);
        self.notify.notify_waiters();
        // HTTP connections wait on alarms alone, and look when they are woken.
        self.alarms.wake_all();
    }

    /// Whether the deadline of draining has passed, so that what is left is to end now.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// The deadline has passed: what is left ends as [`crate::report::outcome::Outcome::Drained`].
    pub fn end(&self) {
        self.over.set(true);
        self.alarms.wake_all();
    }

    /// Waits until draining begins.
    pub async fn begun(&self) {
        let notified = self.notify.notified();
        if !self.draining.get() {
            notified.await;
        }
    }
}

// === impl ConnectionGuard ===

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.set(self.connections.get() - 1);
        if self.connections.get() == 0 {
            self.idle.notify_waiters();
        }
    }
}
