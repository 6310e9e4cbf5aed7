//! Questions over UDP and TCP. What the zone answers is answered at once; what others have to be asked waits by itself.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use futures::{SinkExt as _, StreamExt as _, stream::FuturesUnordered};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, Record, RecordType},
};
use opentelemetry::metrics::Histogram;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    time::timeout,
};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{
    answer::{Answer, Answered, Known, PodNames, answer},
    cache::{Learned, Question},
    message::{Carrier, Heard, Request},
    metrics::{Counters, Source},
    reply::wire_name,
    servers::Servers,
    upstream::{Failure, Upstream},
};
use crate::{listen::socket::Listening, local::Local};

/// Questions of clients of one worker that wait for other servers. More are refused at once.
const WAITING: usize = 4_096;

/// Questions of one TCP connection that are answered at a time.
const PIPELINED: usize = 32;

/// TCP connections of one worker. More are closed at once.
const CONNECTIONS: usize = 512;

/// Time without a question on a TCP connection, and for taking an answer.
const IDLE: Duration = Duration::from_secs(10);

/// Pause after an error that a listening socket should not have, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// What one worker needs to answer.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses of this server.
    pub addresses: Arc<[IpAddr]>,
    /// Whether Pods have names.
    pub pods: PodNames,
    /// Whom to ask what is not ours.
    pub servers: watch::Receiver<Servers>,
    /// What this worker counts.
    pub counters: Arc<Counters>,
    /// How long asking took.
    pub forward: Histogram<f64>,
}

/// What a worker is given: what it needs to answer, and its sockets of one address.
#[derive(Debug)]
pub struct Opened {
    /// What it needs.
    pub settings: Settings,
    /// Where the sockets are bound to.
    pub address: SocketAddr,
    /// For datagrams and for connections.
    pub sockets: [Listening; 2],
}

/// The DNS server of one worker.
pub struct Server {
    local: Rc<Local>,
    settings: Settings,
    upstream: Rc<Upstream>,
    random: RefCell<Rng>,
    waiting: Cell<usize>,
    connections: Cell<usize>,
}

/// What becomes of a message.
enum Begun {
    /// It is answered with this.
    Done(Vec<u8>),
    /// Others have to be asked.
    Waits(Box<Pending>),
    /// It gets no answer.
    Nothing,
}

/// A question that waits for other servers.
struct Pending {
    request: Request,
    /// Aliases of ours that lead to the question.
    found: Vec<Record>,
    question: Question,
    /// Before the first commit nobody knows which names are ours, so that none may be said not to exist (S19.7).
    unsure: bool,
}

// === impl Server ===

impl Server {
    /// A server that answers from the table of its worker.
    pub fn new(local: Rc<Local>, settings: Settings) -> Self {
        let upstream = Rc::new(Upstream::new(settings.servers.clone(), settings.forward.clone()));
        let (waiting, connections) = (Cell::new(0), Cell::new(0));
        Self { local, settings, upstream, random: RefCell::new(Rng::new()), waiting, connections }
    }

    /// Answers datagrams until the worker ends.
    pub async fn udp(self: Rc<Self>, socket: UdpSocket, address: SocketAddr) {
        let socket = Rc::new(socket);
        loop {
            // What the socket has to say, it says when it is read.
            let _ = socket.readable().await;
            let received =
                self.local.flows.batch.borrow_mut().receive(&socket, address.is_ipv6(), |client, datagram| {
                    self.datagram(&socket, client, datagram);
                });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%address, "cannot receive DNS questions: {error}; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn datagram(self: &Rc<Self>, socket: &Rc<UdpSocket>, client: SocketAddr, datagram: &[u8]) {
        // An answer that the socket cannot take is lost as any datagram may be; the client asks again.
        let send = move |socket: &UdpSocket, answer: &[u8]| drop(socket.try_send_to(answer, client));
        match self.begin(datagram, Carrier::Udp) {
            Begun::Done(answer) => send(socket, &answer),
            Begun::Waits(pending) => {
                let (this, socket) = (self.clone(), socket.clone());
                tokio::task::spawn_local(async move { send(&socket, &this.finish(*pending).await) });
            }
            Begun::Nothing => {}
        }
    }

    /// Accepts connections until the worker ends.
    pub async fn tcp(self: Rc<Self>, listener: TcpListener, address: SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if self.connections.get() < CONNECTIONS => {
                    self.connections.set(self.connections.get() + 1);
                    let this = self.clone();
                    tokio::task::spawn_local(async move {
                        // However it ends, the client knows as much as we do.
                        let _ = this.connection(stream).await;
                        this.connections.set(this.connections.get() - 1);
                    });
                }
                Ok(_) => self.settings.counters.dropped(),
                Err(error) => {
                    tracing::warn!(%address, "cannot accept DNS connections: {error}; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One connection: questions may come before the last one is answered, and are answered as that is possible (RFC 7766).
    async fn connection(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let codec =
            LengthDelimitedCodec::builder().length_field_length(2).max_frame_length(u16::MAX.into()).new_codec();
        let mut messages = Framed::new(stream, codec);
        let mut answers = FuturesUnordered::new();
        let mut open = true;
        while open || !answers.is_empty() {
            tokio::select! {
                message = timeout(IDLE, messages.next()), if open && answers.len() < PIPELINED => match message {
                    Ok(Some(message)) => answers.push(self.message(message?.freeze())),
                    // The client has asked all it wanted, or wants nothing any more; what it asked is still answered.
                    Ok(None) | Err(_) => open = false,
                },
                Some(answer) = answers.next() => if let Some(answer) = answer {
                    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
                    timeout(IDLE, messages.send(Bytes::from(answer))).await.map_err(late)??;
                },
            }
        }
        Ok(())
    }

    async fn message(&self, message: Bytes) -> Option<Vec<u8>> {
        match self.begin(&message, Carrier::Tcp) {
            Begun::Done(answer) => Some(answer),
            Begun::Waits(pending) => Some(self.finish(*pending).await),
            Begun::Nothing => None,
        }
    }

    /// Answers what can be answered at once.
    fn begin(&self, message: &[u8], carrier: Carrier) -> Begun {
        let counters = &self.settings.counters;
        let request = match Heard::parse(message, carrier) {
            Heard::Request(request) => request,
            Heard::Wrong(reply, code) => {
                counters.responded(None, code);
                return Begun::Done(reply);
            }
            Heard::Noise => return Begun::Nothing,
        };
        let table = self.local.table();
        let answered = table.0.zone.as_ref().map(|zone| {
            let known = Known {
                zone,
                workloads: &table.0.workloads,
                pods: self.settings.pods,
                servers: &self.settings.addresses,
            };
            answer(&request.query, &known, &mut self.random.borrow_mut())
        });
        let unsure = answered.is_none();
        match answered {
            Some(Answered::Here(answer)) => {
                counters.answered(Source::Zone);
                counters.responded(Some(request.query.query_type()), answer.code);
                Begun::Done(request.reply(answer))
            }
            Some(Answered::Elsewhere(found, name)) => self.forward(request, found, Some(name), unsure),
            Some(Answered::NotOurs) | None => self.forward(request, vec![], None, unsure),
        }
    }

    fn forward(&self, request: Request, found: Vec<Record>, name: Option<Name>, unsure: bool) -> Begun {
        let fail = |code| {
            self.settings.counters.responded(Some(request.query.query_type()), code);
            Begun::Done(request.fail(code))
        };
        if !request.recursion_desired() && found.is_empty() {
            return fail(ResponseCode::Refused);
        }
        let mut query = request.query.clone();
        if let Some(name) = name {
            query.set_name(name);
        }
        let question =
            Question { query, dnssec_ok: request.dnssec_ok(), checking_disabled: request.checking_disabled() };
        let pending = Pending { request, found, question, unsure };
        if let Some(learned) = self.upstream.cached(&pending.question) {
            self.settings.counters.answered(Source::Cache);
            return Begun::Done(self.pass_on(pending, &learned));
        }
        if self.waiting.get() >= WAITING {
            self.settings.counters.dropped();
            self.settings.counters.responded(Some(pending.question.query.query_type()), ResponseCode::ServFail);
            return Begun::Done(pending.request.fail(ResponseCode::ServFail));
        }
        Begun::Waits(Box::new(pending))
    }

    /// Asks others.
    async fn finish(&self, pending: Pending) -> Vec<u8> {
        let _waits = Waits::new(&self.waiting);
        let learned = self.upstream.ask(pending.question.clone()).await;
        self.settings.counters.answered(Source::Upstream);
        self.pass_on(pending, &learned)
    }

    /// The answer to a client from what others replied.
    fn pass_on(&self, pending: Pending, learned: &Learned) -> Vec<u8> {
        let Pending { request, found, question, unsure } = pending;
        let kind = question.query.query_type();
        let responded = |code| self.settings.counters.responded(Some(kind), code);
        let reply = match &learned.outcome {
            Ok(reply) if !unsure || reply.is_positive => reply,
            outcome => {
                let code = match outcome {
                    Err(Failure::NoServers) if !unsure => ResponseCode::Refused,
                    Ok(_) | Err(_) => ResponseCode::ServFail,
                };
                responded(code);
                return request.fail(code);
            }
        };
        let age = learned.at.elapsed();
        if found.is_empty() {
            responded(reply.code);
            return reply.to(&request, &wire_name(request.query.name()), age);
        }
        let answer = match Message::from_vec(&reply.spelled(&wire_name(question.query.name()))) {
            Ok(message) => continued(found, message, age),
            Err(_) => {
                responded(ResponseCode::ServFail);
                return request.fail(ResponseCode::ServFail);
            }
        };
        responded(answer.code);
        request.reply(answer)
    }
}

/// An answer that begins with our aliases and goes on with what others say of their target.
fn continued(mut found: Vec<Record>, message: Message, age: Duration) -> Answer {
    let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
    let older = |mut record: Record| {
        record.ttl = record.ttl.saturating_sub(age);
        record
    };
    found.extend(message.answers.into_iter().map(older));
    let authorities =
        message.authorities.into_iter().map(older).filter(|record| record.record_type() == RecordType::SOA);
    Answer {
        code: message.metadata.response_code,
        answers: found,
        authorities: authorities.collect(),
        additionals: vec![],
    }
}

/// Counts a question that waits, for as long as it does.
struct Waits<'a>(&'a Cell<usize>);

// === impl Waits ===

impl<'a> Waits<'a> {
    fn new(waiting: &'a Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
