//! Asking other servers what is not ours: with unpredictable ids and ports, over the servers in turn, over TCP what does
//! not fit a datagram; once for all who ask the same at the same time, and not again while the answer may be kept.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _,
    future::{LocalBoxFuture, Shared},
};
use hickory_proto::op::{Edns, Message, ResponseCode};
use opentelemetry::{KeyValue, metrics::Histogram};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::watch,
    time::timeout,
};

use super::{
    cache::{Cache, Learned, Outcome, Question},
    message::DATAGRAM,
    reply::{Mismatch, Reply},
    servers::Servers,
};

/// Patience with one server in each round. Clients ask again after five seconds, and should be told before that.
const ROUNDS: [Duration; 2] = [Duration::from_millis(1_000), Duration::from_millis(1_500)];

/// Patience with all servers.
const PATIENCE: Duration = Duration::from_millis(4_500);

/// Different questions that one worker asks at a time.
const ASKED_AT_ONCE: usize = 1_024;

/// How long a failure is kept, so that a server in trouble is not asked by every client (RFC 9520).
const FAILURE_AGE: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No server is known.
    #[error("no name server to ask")]
    NoServers,
    /// Too many questions are open.
    #[error("too many questions are open")]
    Busy,
    /// None of the servers answered in time.
    #[error("no name server answered")]
    Unanswered,
}

/// Why one server did not answer.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("did not answer in time")]
    Late,
    #[error(transparent)]
    Reply(#[from] Mismatch),
    #[error("the question cannot be written")]
    Encode,
}

/// What one worker knows of other servers.
pub struct Upstream {
    servers: watch::Receiver<Servers>,
    cache: RefCell<Cache>,
    /// Questions that are being asked. Keys come from strangers, so they are hashed with a secret.
    asked: RefCell<HashMap<Question, Shared<LocalBoxFuture<'static, Learned>>>>,
    /// The server that answered last, which is asked first.
    preferred: Cell<usize>,
    took: Histogram<f64>,
}

// === impl Upstream ===

impl Upstream {
    /// Asks these servers.
    pub fn new(servers: watch::Receiver<Servers>, took: Histogram<f64>) -> Self {
        let (cache, asked) = (RefCell::default(), RefCell::default());
        Self { servers, cache, asked, preferred: Cell::new(0), took }
    }

    /// What is known without asking.
    pub fn cached(&self, question: &Question) -> Option<Learned> {
        self.cache.borrow().get(question, Instant::now())
    }

    /// Asks, or waits for the answer to the same question of somebody else. `Busy` at once if too many are open.
    pub async fn ask(self: &Rc<Self>, question: Question) -> Learned {
        let known = self.asked.borrow().get(&question).cloned();
        let learned = match known {
            Some(learned) => learned,
            None if self.asked.borrow().len() >= ASKED_AT_ONCE => {
                return Learned { outcome: Err(Failure::Busy), at: Instant::now() };
            }
            None => self.begin(question),
        };
        learned.await
    }

    /// Begins to ask, as a task of its own: whoever waits may go, and the answer is still kept.
    fn begin(self: &Rc<Self>, question: Question) -> Shared<LocalBoxFuture<'static, Learned>> {
        let (this, asked) = (self.clone(), question.clone());
        let task = tokio::task::spawn_local(async move {
            let outcome = timeout(PATIENCE, this.ask_all(&asked)).await.unwrap_or(Err(Failure::Unanswered));
            let outcome = outcome.map(Rc::new);
            let learned = Learned { at: Instant::now(), outcome };
            this.cache.borrow_mut().insert(asked.clone(), learned.clone(), lifetime(&learned.outcome));
            this.asked.borrow_mut().remove(&asked);
            learned
        });
        let lost = || Learned { outcome: Err(Failure::Unanswered), at: Instant::now() };
        let learned = task.map(move |learned| learned.unwrap_or_else(|_| lost())).boxed_local().shared();
        self.asked.borrow_mut().insert(question, learned.clone());
        learned
    }

    /// Asks one server after the other, each twice at most.
    async fn ask_all(&self, question: &Question) -> Result<Reply, Failure> {
        let servers = self.servers.borrow().clone();
        if servers.is_empty() {
            return Err(Failure::NoServers);
        }
        let first = self.preferred.get();
        let mut refused = None;
        for patience in ROUNDS {
            for offset in 0..servers.len() {
                let index = (first + offset) % servers.len();
                let server = servers[index];
                let began = Instant::now();
                let reply = timeout(patience, ask_one(server, question)).await.unwrap_or(Err(Error::Late));
                let error = match &reply {
                    Ok(reply) if is_refusal(reply.code) => "refused",
                    Ok(_) => "",
                    Err(Error::Late) => "timeout",
                    Err(_) => "failed",
                };
                let mut attributes = vec![KeyValue::new("server.address", server.ip().to_string())];
                attributes.extend((!error.is_empty()).then(|| KeyValue::new("error.type", error)));
                self.took.record(began.elapsed().as_secs_f64(), &attributes);
                match reply {
                    Ok(reply) if is_refusal(reply.code) => refused = Some(reply),
                    Ok(reply) => {
                        self.preferred.set(index);
                        return Ok(reply);
                    }
                    Err(error) => tracing::debug!(%server, query = %question.query, "{error}"),
                }
            }
            // All that could say something did; asking again would not change it.
            if let Some(refused) = refused {
                return Ok(refused);
            }
        }
        Err(Failure::Unanswered)
    }
}

/// Whether another server may know better.
fn is_refusal(code: ResponseCode) -> bool {
    !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

fn lifetime(outcome: &Outcome) -> Duration {
    match outcome {
        Ok(reply) if is_refusal(reply.code) => FAILURE_AGE,
        Ok(reply) => reply.lifetime,
        Err(Failure::Unanswered) => FAILURE_AGE,
        // Nobody was asked.
        Err(Failure::NoServers | Failure::Busy) => Duration::ZERO,
    }
}

/// Asks one server: in a datagram, without EDNS if it does not know that, over TCP if the reply did not fit.
async fn ask_one(server: SocketAddr, question: &Question) -> Result<Reply, Error> {
    let mut with_edns = true;
    let mut reply = over_udp(server, question, with_edns).await?;
    if reply.code == ResponseCode::FormErr || reply.code == ResponseCode::NotImp {
        with_edns = false;
        reply = over_udp(server, question, with_edns).await?;
    }
    if reply.truncated { over_tcp(server, question, with_edns).await } else { Ok(reply) }
}

/// The question as a message. Its id comes from a generator that cannot be predicted.
fn encode(question: &Question, with_edns: bool) -> Result<(u16, Vec<u8>), Error> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.queries.push(question.query.clone());
    message.edns = with_edns.then(|| {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM).set_dnssec_ok(question.dnssec_ok);
        edns
    });
    let bytes = message.to_vec().map_err(|_| Error::Encode)?;
    Ok((message.metadata.id, bytes))
}

/// Every question has a socket of its own: the kernel picks its port at random, and delivers from this server only.
async fn over_udp(server: SocketAddr, question: &Question, with_edns: bool) -> Result<Reply, Error> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    let (id, bytes) = encode(question, with_edns)?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4_096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Reply::parse(buffer[..length].to_vec(), id, &question.query) {
            // A late reply to somebody else, or a forgery: the right one may still come.
            Err(Mismatch::Stranger) => {}
            reply => return Ok(reply?),
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question, with_edns: bool) -> Result<Reply, Error> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (id, bytes) = encode(question, with_edns)?;
    let length = u16::try_from(bytes.len()).map_err(|_| Error::Encode)?;
    stream.write_all(&[&length.to_be_bytes(), &*bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    Ok(Reply::parse(buffer, id, &question.query)?)
}

#[cfg(test)]
mod tests;
