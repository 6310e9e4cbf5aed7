//! The control loop: one stream to a gateway, one table after the other. While no gateway answers, the last table stays
//! in force without limit (S1.6).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use api::{
    delta::{
        Changes, Violation,
        client::{Client, Received},
    },
    proto::discovery::{GoodbyeReason, WatchRequest, WatchResponse, discovery_service_client::DiscoveryServiceClient},
    resource::Kind,
};
use runtime::{backoff::Backoff, drain, ready::Latch};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    compile::Compiler,
    programming::{Changes as Counted, Programming, Triggers},
    resources::{Dirty, Resources},
};
use crate::{
    duty::DutyCycle,
    gateways::{self, Gateways, Link},
    listen::open::{Fault, Listeners},
    table::{Destination, Table},
    worker::Workers,
};

/// A gateway that says nothing for this long after Hello is left for another one.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Without a verify interval from the gateway, a stream is silent for too long after this.
const SILENCE: Duration = Duration::from_secs(60);

/// Addresses that could not be opened are tried again this often.
const RETRY_LISTENERS: Duration = Duration::from_secs(2);

/// Acknowledgements under way. The gateway keeps at most four updates open.
const OUTBOX: usize = 16;

/// What the loop lets others see.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The node's table, for the admin port.
    pub table: Arc<Table>,
    /// Commits applied since the start.
    pub commits: u64,
    /// When the newest one was applied.
    pub applied: Option<SystemTime>,
    /// Whether a stream is open.
    pub connected: bool,
    /// Addresses that are open.
    pub listeners: usize,
    /// Addresses that cannot be opened.
    pub faults: BTreeMap<Destination, Fault>,
    /// What is held, as the gateway counts it.
    pub digests: api::delta::version::Digests,
}

/// Counters of the loop, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Resources received, by whole or delta.
    pub received: AtomicU64,
    /// Resources refused.
    pub rejected: AtomicU64,
    /// Streams opened.
    pub streams: AtomicU64,
}

/// The loop's own state.
pub struct Control {
    gateways: Gateways,
    node: String,
    client: Client,
    resources: Resources,
    compiler: Compiler,
    listeners: Listeners,
    workers: Workers,
    programming: Programming,
    /// Told of each round of programming.
    rounds: Rounds,
    progress: watch::Sender<Progress>,
    counters: Arc<Counters>,
    first_commit: Option<Latch>,
    /// What the resources have changed that the table does not say; `None` if the table is that of the resources.
    pending: Option<Dirty>,
    /// When the next table may be compiled.
    duty: DutyCycle,
    /// Commits applied since the start.
    commits: u64,
    /// Changes that began before are not ours to be late for (S20).
    started: SystemTime,
}

/// Hears of rounds of programming, when the workers have the table.
pub type Rounds = Box<dyn Fn(Round) + Send>;

/// A round of programming.
#[derive(Debug)]
pub struct Round {
    /// When it began.
    pub began: Instant,
    /// Whether everything was compiled.
    pub full: bool,
    /// The trigger times of the changes that came into force.
    pub triggers: Triggers,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] gateways::Error),
    #[error("the gateway ended the stream: {}: {}", .0.code(), .0.message())]
    Status(#[from] Box<tonic::Status>),
    #[error("the gateway closed the stream")]
    Closed,
    #[error("the gateway said goodbye: {}", .0.as_str_name())]
    Goodbye(GoodbyeReason),
    #[error("the gateway was silent for {0:?}")]
    Silent(Duration),
    #[error("protocol violation")]
    Violation(#[from] Violation),
}

// === impl Control ===

impl Control {
    /// A loop that has not started.
    pub fn new(
        gateways: Gateways,
        node: String,
        client: Client,
        compiler: Compiler,
        (workers, listeners): (Workers, Listeners),
        (programming, rounds): (Programming, Rounds),
        first_commit: Latch,
    ) -> (Self, watch::Receiver<Progress>, Arc<Counters>) {
        let (progress, seen) = watch::channel(Progress::default());
        let counters = Arc::<Counters>::default();
        let this = Self {
            gateways,
            node,
            client,
            resources: Resources::default(),
            compiler,
            listeners,
            workers,
            programming,
            rounds,
            progress,
            counters: counters.clone(),
            first_commit: Some(first_commit),
            pending: None,
            duty: DutyCycle::new(Instant::now()),
            commits: 0,
            started: SystemTime::now(),
        };
        (this, seen, counters)
    }

    /// Runs until draining begins, then hands back the workers. Ends early, with `None`, only if a worker failed.
    pub async fn run(mut self, mut drain: drain::Watch) -> Option<Workers> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(10));
        let mut attempt = 0;
        loop {
            let Some(gateway) = self.gateways.choose(&self.node, attempt) else {
                tracing::info!("waiting for a gateway: none is ready");
                match self.idle(self.gateways.clone().changed(), &mut drain).await {
                    Some(()) => continue,
                    None => return drain.is_draining().then_some(self.workers),
                }
            };
            let ended = tokio::select! {
                () = drain.started() => None,
                ended = self.stream(&gateway, &mut backoff) => Some(ended?),
            };
            // What was committed is served, also when there is nobody to hear more from.
            self.publish();
            let Some(ended) = ended else { break };
            let connected = self.progress.borrow().connected;
            self.progress.send_modify(|progress| progress.connected = false);
            let wait = backoff.next();
            self.log(&gateway, &ended, connected, wait);
            // With a new token we are welcome everywhere, so the replica that is best for this node comes first again.
            let renew = matches!(ended, Ended::Goodbye(GoodbyeReason::CredentialExpiring));
            attempt = if renew { 0 } else { attempt.wrapping_add(1) };
            if self.idle(tokio::time::sleep(wait), &mut drain).await.is_none() {
                return drain.is_draining().then_some(self.workers);
            }
        }
        Some(self.workers)
    }

    fn log(&self, gateway: &str, ended: &Ended, connected: bool, wait: Duration) {
        let reason = gateways::causes(ended);
        let refused = matches!(ended, Ended::Status(status) if is_refusal(status.code()));
        // The first failure after a good stream is news; the attempts that follow are not, unless somebody has to act.
        if connected {
            tracing::warn!(gateway, reason, "{ended}; serving the last state and connecting again");
        } else if refused {
            tracing::warn!(gateway, ?wait, "refused: {ended}; trying again");
        } else {
            tracing::info!(gateway, reason, ?wait, "{ended}; connecting again");
        }
    }

    /// Waits for `event`; `None` when draining begins or a worker fails. Meanwhile listeners are tried again.
    async fn idle<T>(&mut self, event: impl Future<Output = T>, drain: &mut drain::Watch) -> Option<T> {
        let mut retry = tokio::time::interval(RETRY_LISTENERS);
        retry.tick().await;
        tokio::pin!(event);
        loop {
            tokio::select! {
                () = drain.started() => return None,
                happened = &mut event => return Some(happened),
                () = self.workers.failed() => return None,
                _ = retry.tick() => self.listen_again(),
            }
        }
    }

    /// One stream, until it ends. `None` if a worker failed.
    async fn stream(&mut self, gateway: &str, backoff: &mut Backoff) -> Option<Ended> {
        let access = self.gateways.access.clone();
        tokio::select! {
            link = access.connect(gateway) => match link {
                Ok(link) => Some(match self.exchange(link, backoff).await {
                    Ok(()) => return None,
                    Err(ended) => ended,
                }),
                Err(error) => Some(error.into()),
            },
            () = self.workers.failed() => None,
        }
    }

    /// Moves frames between the stream and the protocol's state machine. `Ok` means that a worker failed.
    async fn exchange(&mut self, link: Link, backoff: &mut Backoff) -> Result<(), Ended> {
        let (outbox, requests) = mpsc::channel::<WatchRequest>(OUTBOX);
        // The queue is empty and the receiver alive, so there is room.
        let _ = outbox.try_send(self.client.hello());
        let mut discovery = DiscoveryServiceClient::new(link.channel.clone());
        let open = discovery.watch(link.request(ReceiverStream::new(requests)));
        let opened = timeout(WELCOME_TIMEOUT, open).await.map_err(|_| Ended::Silent(WELCOME_TIMEOUT))?;
        let mut inbox = opened.map_err(Box::new)?.into_inner();
        self.counters.streams.fetch_add(1, Ordering::Relaxed);
        let mut silence = WELCOME_TIMEOUT;
        let mut retry = tokio::time::interval(RETRY_LISTENERS);
        loop {
            let message = tokio::select! {
                message = timeout(silence, inbox.message()) => message.map_err(|_| Ended::Silent(silence))?,
                _ = retry.tick() => {
                    self.listen_again();
                    continue;
                }
                () = tokio::time::sleep_until(self.duty.due()), if self.pending.is_some() => {
                    self.publish();
                    continue;
                }
                () = self.workers.failed() => return Ok(()),
            };
            let response: WatchResponse = message.map_err(Box::new)?.ok_or(Ended::Closed)?;
            let answer = match self.client.receive(response)? {
                Received::Welcome(welcome) => {
                    let interval = welcome.verify_interval.and_then(|interval| Duration::try_from(interval).ok());
                    silence = interval.map_or(SILENCE, |interval| interval.saturating_mul(3).max(WELCOME_TIMEOUT));
                    self.progress.send_modify(|progress| progress.connected = true);
                    tracing::info!(replica = welcome.replica_id, "connected to the gateway");
                    continue;
                }
                Received::Staged(answer) => {
                    self.programming.queued();
                    answer
                }
                Received::Commit(changes, _) => {
                    backoff.healthy();
                    self.commit(changes)
                }
                Received::Goodbye(goodbye) => return Err(Ended::Goodbye(goodbye.reason())),
            };
            if outbox.send(answer).await.is_err() {
                return Err(Ended::Closed);
            }
        }
    }

    /// Applies a commit: resources, and the table at once or when it is due. Returns the acknowledgement.
    fn commit(&mut self, changes: Changes) -> WatchRequest {
        let empty = changes.set.is_empty() && changes.removed.is_empty();
        self.commits += u64::from(!empty);
        self.counters.received.fetch_add(changes.set.len() as u64, Ordering::Relaxed);
        let mut rejections = Vec::new();
        if !empty {
            self.programming.queued();
            self.programming.received(counted(&changes));
            let (refused, dirty) = self.resources.apply(changes);
            for rejection in &refused {
                tracing::warn!(resource = %rejection.key, "refused: {}", rejection.message);
            }
            self.counters.rejected.fetch_add(refused.len() as u64, Ordering::Relaxed);
            rejections = refused;
            self.pending.get_or_insert_default().merge(dirty);
        }
        let answer = self.client.applied(&rejections);
        if self.pending.is_none() {
            self.tell();
        } else if self.duty.due() <= Instant::now() {
            self.publish();
        }
        if let Some(latch) = self.first_commit.take() {
            latch.release();
        }
        answer
    }

    /// Gives the workers a table of what was committed, if they do not have it.
    fn publish(&mut self) {
        let Some(dirty) = self.pending.take() else { return };
        let began = Instant::now();
        let table = Arc::new(self.compiler.compile(&self.resources, &dirty));
        let steps = self.listeners.follow(&table, self.workers.count());
        self.workers.publish(&table, steps);
        self.show(table);
        let triggers = self.resources.take_triggers(self.started);
        (self.rounds)(Round { began, full: dirty.all, triggers });
        self.tell();
        self.duty.worked(began, Instant::now());
    }

    /// Lets others see what is served.
    fn tell(&self) {
        self.progress.send_modify(|progress| {
            progress.commits = self.commits;
            progress.applied = Some(SystemTime::now());
            progress.digests = *self.client.digests();
        });
    }

    /// Tries the addresses again that could not be opened.
    fn listen_again(&mut self) {
        if self.listeners.faults().is_empty() {
            return;
        }
        let table = self.progress.borrow().table.clone();
        let steps = self.listeners.follow(&table, self.workers.count());
        if !steps.is_empty() {
            self.workers.publish(&table, steps);
            self.show(table);
        }
    }

    fn show(&self, table: Arc<Table>) {
        self.progress.send_modify(|progress| {
            progress.table = table;
            progress.listeners = self.listeners.count();
            progress.faults = self.listeners.faults().clone();
        });
    }
}

/// Whether a gateway does not let us in, which somebody has to look into.
pub fn is_refusal(code: tonic::Code) -> bool {
    matches!(code, tonic::Code::Unauthenticated | tonic::Code::PermissionDenied)
}

/// How many Services and endpoints a commit changes.
fn counted(changes: &Changes) -> Counted {
    let of = |wanted: Kind| {
        let set = changes.set.iter().filter(|changed| changed.key.kind == wanted).count();
        (set + changes.removed.iter().filter(|key| key.kind == wanted).count()) as u64
    };
    Counted { services: of(Kind::Service), endpoints: of(Kind::Endpoint) }
}
