//! Workers: one OS thread each, with a current-thread runtime and everything it needs of its own. Commands arrive in
//! order, so a worker has the table of a listener before it has the listener.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use api::resource::service::Transport;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot, watch,
    },
    task::LocalSet,
    time::{Interval, MissedTickBehavior},
};

use crate::{
    balance::pin::Pins,
    dns::serve::{Opened, Server},
    listen::{self, open::Step, socket::Listening},
    local::{Limits, Local},
    report::export::WorkerReporting,
    table::{Destination, FrontendKind, Table},
};

/// How often a worker reads the clock, hands over records and looks for what timed out.
const TICK: Duration = Duration::from_millis(100);

/// How long accepting pauses when the process has no descriptors left: long enough not to spin, short enough not to
/// be felt once one is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All workers of an agent.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    commands: UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

/// What a worker is told.
#[derive(Debug)]
enum Command {
    Swap(Arc<Table>, Arc<HashSet<SocketAddr>>),
    Open(Destination, Listening),
    Close(Destination),
    Dns(Box<Opened>),
    Intercept(Vec<Listening>),
    Drain,
}

/// Hands the workers what they need for DNS.
#[derive(Debug)]
pub struct Mailboxes(Vec<UnboundedSender<Command>>);

/// What the clients of a listener dialled.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    /// The address of the listener.
    At(SocketAddr),
    /// Any; each connection and datagram knows.
    Original,
}

/// How long before the deadline of draining nothing new is accepted from packet rules, so that short requests can end.
const LAST_CALL: Duration = Duration::from_secs(5);

/// A listener of one worker. Dropping it ends its loop.
struct Open(#[allow(dead_code, reason = "dropping the sender is the message")] watch::Sender<()>);

// === impl Workers ===

impl Workers {
    /// Starts one worker for each reporter.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be started.
    pub fn start(limits: Limits, reporting: Vec<WorkerReporting>, node: &str) -> io::Result<Self> {
        let limits = Arc::new(limits);
        let pins = Arc::new(Pins::new(limits.affinity_clients, Instant::now()));
        let start = |(index, reporting): (usize, WorkerReporting)| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (commands, inbox) = unbounded_channel();
            let (done, ended) = oneshot::channel();
            let (limits, pins) = (limits.clone(), pins.clone());
            let thread = thread::Builder::new().name(format!("worker-{index} {node}")).spawn(move || {
                let local = Rc::new(Local::new(limits, pins, Rc::new(reporting.into_reporter()), Arc::default()));
                LocalSet::new().block_on(&runtime, run(local, inbox));
                // Nobody listens when the agent was dropped instead of drained.
                let _ = done.send(());
            })?;
            Ok(Worker { commands, thread, ended })
        };
        let workers = reporting.into_iter().enumerate().map(start).collect::<io::Result<_>>()?;
        Ok(Self { workers })
    }

    /// Number of workers.
    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// For what is handed to single workers.
    pub fn mailboxes(&self) -> Mailboxes {
        Mailboxes(self.workers.iter().map(|worker| worker.commands.clone()).collect())
    }

    /// Gives every worker the new table, then the changes of listeners.
    pub fn publish(&self, table: &Arc<Table>, steps: Vec<Step>) {
        let known: Arc<HashSet<SocketAddr>> = Arc::new(known(table));
        self.each(|| Command::Swap(table.clone(), known.clone()));
        for step in steps {
            match step {
                Step::Close(destination) => self.each(|| Command::Close(destination)),
                Step::Open(destination, sockets) => {
                    for (worker, socket) in self.workers.iter().zip(sockets) {
                        // A worker that ended is noticed where its end is awaited.
                        let _ = worker.commands.send(Command::Open(destination, socket));
                    }
                }
            }
        }
    }

    /// Gives every worker transparent listeners, one of each of `sockets`. From now on what workers send is marked as ours.
    pub fn intercept(&self, sockets: Vec<Vec<Listening>>) {
        let mut sockets: Vec<_> = sockets.into_iter().map(Vec::into_iter).collect();
        for worker in &self.workers {
            let own = sockets.iter_mut().filter_map(Iterator::next).collect();
            let _ = worker.commands.send(Command::Intercept(own));
        }
    }

    /// Stops accepting, lets connections finish until the deadline of the limits, and waits for the workers to end.
    pub async fn drain(self) {
        self.each(|| Command::Drain);
        for worker in self.workers {
            drop(worker.commands);
            // An error means that the worker ended without a word, which joining reports below.
            let _ = worker.ended.await;
            if worker.thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }

    /// Waits until a worker ends, which none does before it is drained.
    pub async fn failed(&mut self) {
        let ends = self.workers.iter_mut().map(|worker| &mut worker.ended);
        // How it ended is in the log; that it did is what matters here.
        let _ended = futures::future::select_all(ends).await;
    }

    fn each(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.commands.send(command());
        }
    }
}

// === impl Mailboxes ===

impl Mailboxes {
    /// Has one worker answer DNS questions there, until it has drained.
    pub fn dns(&self, worker: usize, opened: Opened) {
        if let Some(commands) = self.0.get(worker) {
            // A worker that ended is noticed where its end is awaited.
            let _ = commands.send(Command::Dns(Box::new(opened)));
        }
    }
}

/// Every address that a table may have dialled.
fn known(table: &Table) -> HashSet<SocketAddr> {
    let targets = table.frontends.values().filter_map(|frontend| frontend.target.as_ref()).chain(table.names.targets());
    let candidates = targets.flat_map(|target| [&target.cluster, &target.local]);
    let endpoints = candidates.flat_map(|candidates| &candidates.backends).map(|backend| backend.address);
    // What is known of the agents of other nodes is kept in the same place.
    let hop = table.hop.iter().flat_map(|hop| hop.exits.keys().map(|exit| exit.endpoint).chain(hop.agents()));
    endpoints.chain(hop).collect()
}

async fn run(local: Rc<Local>, mut inbox: UnboundedReceiver<Command>) {
    let mut listeners: HashMap<Destination, Open> = HashMap::new();
    let mut dns: Option<Rc<Server>> = None;
    let mut transparent = Vec::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::Swap(table, known)) => local.swap(table, |address| known.contains(address)),
                Some(Command::Intercept(sockets)) => {
                    local.intercepting.set(true);
                    for socket in sockets {
                        match open(&local, Dialled::Original, socket) {
                            Ok(listener) => transparent.push(listener),
                            Err(error) => tracing::error!("cannot register a transparent socket: {error}"),
                        }
                    }
                }
                Some(Command::Open(destination, socket)) => match open(&local, Dialled::At(destination.address), socket) {
                    Ok(listener) => {
                        listeners.insert(destination, listener);
                    }
                    Err(error) => tracing::error!(address = %destination.address, "cannot register a socket: {error}"),
                },
                Some(Command::Close(destination)) => {
                    listeners.remove(&destination);
                }
                Some(Command::Dns(opened)) => {
                    let Opened { settings, address, sockets } = *opened;
                    let server = dns.get_or_insert_with(|| Rc::new(Server::new(local.clone(), settings)));
                    if let Err(error) = answer(server, address, sockets) {
                        tracing::error!(%address, "cannot register a socket: {error}");
                    }
                }
                Some(Command::Drain) | None => break,
            },
            now = tick.tick() => local.tick(now.into_std()),
        }
    }
    drop(listeners);
    finish(&local, transparent, tick).await;
}

/// Drains: connections may finish until the deadline of the limits.
async fn finish(local: &Local, mut transparent: Vec<Open>, mut tick: Interval) {
    local.drain.begin();
    let limit = local.limits.drain_timeout;
    let (deadline, last_call) = (tokio::time::sleep(limit), tokio::time::sleep(limit - LAST_CALL.min(limit / 2)));
    tokio::pin!(deadline, last_call);
    loop {
        tokio::select! {
            () = local.emptied() => {
                if transparent.is_empty() {
                    break;
                }
                transparent.clear();
                // They accept what waits in their backlogs.
                tokio::task::yield_now().await;
            }
            // Load balancers have left by now. Clients in the cluster could not: nobody else on the node serves them.
            () = &mut last_call, if !transparent.is_empty() => transparent.clear(),
            () = &mut deadline => {
                tracing::warn!(connections = local.connections(), "drain deadline passed; closing what is left");
                // What can say how it ended gets one tick for it.
                local.drain.end();
                let _ = tokio::time::timeout(TICK, local.emptied()).await;
                break;
            }
            now = tick.tick() => local.tick(now.into_std()),
        }
    }
    local.tick(Instant::now());
}

fn open(local: &Rc<Local>, dialled: Dialled, socket: Listening) -> io::Result<Open> {
    let (open, closed) = watch::channel(());
    match socket {
        Listening::Tcp(listener) => {
            let listener = tcp(listener)?;
            tokio::task::spawn_local(accept(local.clone(), listener, dialled, closed));
        }
        Listening::Udp(socket) => {
            let socket = udp(socket)?;
            let closed = async move {
                let mut closed = closed;
                // An error is the message: the sender was dropped.
                let _ = closed.changed().await;
            };
            match dialled {
                Dialled::At(destination) if is_hop(local, destination) => {
                    tokio::task::spawn_local(listen::hop::datagrams::serve(local.clone(), socket, destination, closed));
                }
                Dialled::At(destination) => {
                    tokio::task::spawn_local(listen::udp::serve(local.clone(), socket, destination, closed));
                }
                Dialled::Original => {
                    let ipv6 = socket.local_addr()?.is_ipv6();
                    tokio::task::spawn_local(listen::udp::serve_redirected(local.clone(), socket, ipv6, closed));
                }
            }
        }
    }
    Ok(Open(open))
}

/// Whether a destination is the port for other agents.
fn is_hop(local: &Local, destination: SocketAddr) -> bool {
    let table = local.table();
    table.0.frontend(destination, Transport::Udp).is_some_and(|frontend| frontend.kind == FrontendKind::Hop)
}

/// Answers DNS questions until the worker ends: Pods of this node have nobody else to ask while it drains.
fn answer(server: &Rc<Server>, address: SocketAddr, sockets: [Listening; 2]) -> io::Result<()> {
    for socket in sockets {
        match socket {
            Listening::Tcp(listener) => {
                tokio::task::spawn_local(server.clone().tcp(tcp(listener)?, address));
            }
            Listening::Udp(socket) => {
                tokio::task::spawn_local(server.clone().udp(udp(socket)?, address));
            }
        }
    }
    Ok(())
}

fn tcp(listener: StdTcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn udp(socket: StdUdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Accepts until the listener is closed, then empties its backlog: those clients are connected as far as they know.
async fn accept(local: Rc<Local>, listener: TcpListener, dialled: Dialled, mut closed: watch::Receiver<()>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => serve(&local, stream, peer, dialled),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(address = ?listener.local_addr().ok(), "cannot accept: {error}; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = closed.changed() => break,
        }
    }
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            serve(&local, stream, peer, dialled);
        }
    }
}

fn serve(local: &Rc<Local>, stream: TcpStream, peer: SocketAddr, dialled: Dialled) {
    let destination = match dialled {
        Dialled::At(destination) => destination,
        // A connection that packet rules have led here has the address that its client dialled; without one it is over.
        Dialled::Original => match stream.local_addr() {
            Ok(destination) => destination,
            Err(_) => return,
        },
    };
    // Over the limit the connection is closed at once: the client learns, and the listener does not fill up.
    let Some(guard) = local.admit() else { return };
    tokio::task::spawn_local(listen::tcp::serve(local.clone(), stream, peer, destination, guard));
}

/// Errors of accept(2) that belong to the connection that came, not to the listener.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
