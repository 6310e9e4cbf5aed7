//! One UDP flow: datagrams of a client to its endpoint, and replies back from the address that the client dialled.

use std::{
    cell::Cell,
    future::{pending, poll_fn},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::Notify};

use super::{
    FlowKey,
    entry::{Entry, Step},
};
use crate::{
    forward::socket::{Source, leave},
    hop::{datagram::Word, introduction::Introduction},
    local::{Busy, Local, Upstream},
    report::{outcome::Outcome, record::OpenConnection},
    table::Backend,
};

/// A flow. One that policy refuses has no endpoint: it takes its datagrams to nowhere until it expires or the table
/// changes, so that a client which keeps sending is decided on, and reported, once.
pub struct Flow {
    /// Who sends to whom.
    pub key: FlowKey,
    way: Option<Way>,
    last: Cell<Instant>,
    replied: Cell<bool>,
    received: Cell<u64>,
    sent: Cell<u64>,
    end: Cell<Option<Outcome>>,
    ended: Notify,
}

/// To the endpoint.
struct Way {
    backend: Arc<Backend>,
    /// Connected, so that it receives from the endpoint or agent only, and is told when nobody listens there.
    socket: UdpSocket,
    /// As whom the endpoint is dialled from here.
    source: Source,
    /// The socket is connected to the agent of the endpoint's node.
    entry: Option<Entry>,
    ipv6: bool,
    upstream: Rc<Upstream>,
    _busy: Busy,
}

// === impl Flow ===

impl Flow {
    /// A flow to `backend`.
    ///
    /// # Errors
    /// When there is no way to the address, or no descriptor left.
    pub fn open(local: &Local, key: FlowKey, backend: &Arc<Backend>, source: Source) -> io::Result<Self> {
        let socket = connect(backend.address, source)?;
        Ok(Self::new(local, key, Some(Way::new(local, backend, socket, source, None))))
    }

    /// A flow to `backend` through the agent of its node.
    ///
    /// # Errors
    /// As of [`Flow::open`].
    pub fn hand_over(
        local: &Local,
        key: FlowKey,
        backend: &Arc<Backend>,
        agent: SocketAddr,
        said: Introduction,
    ) -> io::Result<Self> {
        let socket = connect(agent, Source::Node)?;
        let entry = Entry::new(said, local.upstream(agent), local.now());
        Ok(Self::new(local, key, Some(Way::new(local, backend, socket, Source::Node, Some(entry)))))
    }

    /// A flow to nowhere.
    pub fn refused(local: &Local, key: FlowKey) -> Self {
        Self::new(local, key, None)
    }

    fn new(local: &Local, key: FlowKey, way: Option<Way>) -> Self {
        Self {
            key,
            way,
            last: Cell::new(local.now()),
            replied: Cell::default(),
            received: Cell::default(),
            sent: Cell::default(),
            end: Cell::default(),
            ended: Notify::new(),
        }
    }

    /// Whether it may make room for another flow.
    pub fn is_unreplied(&self) -> bool {
        !self.replied.get() && self.end.get().is_none()
    }

    /// Where its datagrams go, unless it was refused.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.way.as_ref().map(|way| way.backend.address)
    }

    /// Whether it goes to this endpoint as this client.
    pub fn is_for(&self, client: SocketAddr, endpoint: SocketAddr) -> bool {
        let same = |way: &Way| way.backend.address == endpoint && way.source == Source::Client(client);
        self.way.as_ref().is_some_and(same)
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.end.get()
    }

    /// Ends the flow, because there are too many.
    pub fn evict(&self) {
        self.finish(Outcome::Overload);
    }

    /// Ends the flow, because its endpoint does not serve it any more.
    pub fn cut(&self) {
        self.finish(Outcome::UpstreamClosed);
    }

    /// Sends a datagram of the client to the endpoint. False says that nobody listens there: the flow has ended, and the
    /// datagram may go to another endpoint.
    pub fn send(&self, local: &Local, datagram: &[u8]) -> bool {
        let Some(way) = &self.way else { return true };
        let step = way.entry.as_ref().map_or(Step::Go, |entry| entry.step(local.now()));
        if step == Step::GiveUp || (step == Step::Ask && !way.ask(local)) {
            self.fail(local, Outcome::ConnectFailed);
            return false;
        }
        // Directly: tokio knows a new socket as writable only after the next turn of its loop.
        match SockRef::from(&way.socket).send(datagram) {
            Ok(_) => {
                self.last.set(local.now());
                self.received.set(self.received.get() + datagram.len() as u64);
                true
            }
            // This is the ICMP answer to an earlier datagram; the kernel has not sent this one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.fail(local, Outcome::ConnectRefused);
                false
            }
            // A full queue, or a datagram too large for the path: UDP loses datagrams.
            Err(_) => true,
        }
    }

    /// Relays replies through `listener`, which is bound to the address the client dialled (S17.4), until the flow ends,
    /// and closes `record`.
    pub async fn run(self: Rc<Self>, local: Rc<Local>, listener: Rc<UdpSocket>, record: Option<OpenConnection>) {
        let alarm = local.alarms.alarm();
        alarm.set(Some(self.last.get() + self.limit(&local)));
        let outcome = loop {
            tokio::select! {
                biased;
                () = self.ended.notified() => break self.end.get().unwrap_or(Outcome::Complete),
                () = self.ready() => self.relay(&local, &listener),
                () = poll_fn(|cx| alarm.poll(cx)) => {
                    let expires = self.last.get() + self.limit(&local);
                    if expires <= local.now() {
                        break Outcome::IdleTimeout;
                    }
                    alarm.set(Some(expires));
                }
            }
        };
        local.flows.remove(&self);
        let Some(mut record) = record else { return };
        record.note(|record| {
            (record.received, record.sent) = (self.received.get(), self.sent.get());
            if let Some(attempt) = record.attempts.last_mut()
                && outcome.is_before_send()
            {
                attempt.outcome = outcome;
            }
        });
        let draining = outcome == Outcome::UpstreamClosed && local.drain.is_draining();
        record.close(if draining { Outcome::Drained } else { outcome });
    }

    /// Waits for a reply, or for the news that there will be none.
    async fn ready(&self) {
        match &self.way {
            // It fails only when the runtime ends, and this with it.
            Some(way) => drop(way.socket.ready(Interest::READABLE | Interest::ERROR).await),
            None => pending().await,
        }
    }

    fn relay(&self, local: &Local, listener: &UdpSocket) {
        let Some(way) = &self.way else { return };
        let client = SockAddr::from(self.key.client);
        let received = local.flows.batch.borrow_mut().receive(&way.socket, way.ipv6, |_, reply| {
            if let (Some(entry), Some(word)) = (&way.entry, Word::parse(reply)) {
                if let Err(outcome) = entry.hear(word, local.now()) {
                    way.upstream.failed(local.now());
                    self.finish(outcome);
                }
                return;
            }
            // As on the way there, what does not fit is lost.
            if SockRef::from(listener).send_to(reply, &client).is_ok() {
                self.sent.set(self.sent.get() + reply.len() as u64);
            }
            if !self.replied.replace(true) {
                way.upstream.succeeded();
            }
            self.last.set(local.now());
        });
        let error = received.err().filter(|error| error.kind() != io::ErrorKind::WouldBlock);
        if let Some(error) = error.or_else(|| way.error()) {
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            self.fail(local, if refused { Outcome::ConnectRefused } else { Outcome::ConnectFailed });
        }
    }

    fn fail(&self, local: &Local, outcome: Outcome) {
        match &self.way {
            Some(Way { entry: Some(entry), .. }) => entry.give_up(local.now()),
            Some(way) => way.upstream.failed(local.now()),
            None => {}
        }
        self.finish(outcome);
    }

    fn finish(&self, outcome: Outcome) {
        if self.end.get().is_none() {
            self.end.set(Some(outcome));
            self.ended.notify_one();
        }
    }

    fn limit(&self, local: &Local) -> Duration {
        let (unreplied, replied) = local.limits.udp_idle_timeout;
        if self.replied.get() { replied } else { unreplied }
    }
}

// === impl Way ===

impl Way {
    fn new(local: &Local, backend: &Arc<Backend>, socket: UdpSocket, source: Source, entry: Option<Entry>) -> Self {
        let upstream = local.upstream(backend.address);
        let ipv6 = socket.peer_addr().is_ok_and(|peer| peer.is_ipv6());
        Self { backend: backend.clone(), socket, source, entry, ipv6, _busy: upstream.busy(), upstream }
    }

    /// Sends the header. False says that nobody is there, or that there is no header to send.
    fn ask(&self, local: &Local) -> bool {
        let header = self.entry.as_ref().and_then(|entry| entry.header(local));
        let sent = |header: Vec<u8>| SockRef::from(&self.socket).send(&header);
        header.is_some_and(
            |header| !matches!(sent(header), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused),
        )
    }

    /// What ICMP said since the last call.
    fn error(&self) -> Option<io::Error> {
        let error = || self.socket.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into());
        self.socket.try_io(Interest::ERROR, error).ok()
    }
}

fn connect(address: SocketAddr, source: Source) -> io::Result<UdpSocket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    // The port is part of what endpoints know a client by, so it is kept as well, unless another flow has it.
    let port = if let Source::Client(client) = source { client.port() } else { 0 };
    leave(&socket, source, port)?;
    socket.connect(&address.into())?;
    UdpSocket::from_std(socket.into())
}
