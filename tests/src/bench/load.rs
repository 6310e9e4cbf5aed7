//! The clients in front of the proxies, and what they count.
//!
//! Each client sends, waits for the whole answer, checks it, and sends again: the number of requests under way is the
//! number of clients (times [`GRPC_STREAMS`](super::scenario::GRPC_STREAMS) for gRPC). All run on one thread, beside
//! the backends.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::scenario::{self, Scenario};

/// Unary calls over HTTP/2.
mod grpc;
/// Requests and answers over HTTP/1.1, by hand.
mod http;
/// Messages and downloads over TCP.
mod tcp;
/// Messages over UDP.
mod udp;

/// What clients count together, and when they stop.
#[derive(Debug, Default)]
pub struct Tally {
    counting: Cell<bool>,
    stopped: Cell<bool>,
    latencies: RefCell<Vec<Duration>>,
}

/// Runs what hyper spawns on this thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl Tally {
    /// Begins to count; what came before was warm-up.
    pub fn start(&self) {
        self.counting.set(true);
    }

    /// Stops counting and tells the clients to end after their present request.
    ///
    /// Returns how long each counted request took, in the order they ended.
    pub fn stop(&self) -> Vec<Duration> {
        self.counting.set(false);
        self.stopped.set(true);
        self.latencies.take()
    }

    /// Notes that a request begun at `begin` was answered rightly.
    ///
    /// Returns whether to send another.
    fn answered(&self, begin: Instant) -> bool {
        if self.counting.get() {
            self.latencies.borrow_mut().push(begin.elapsed());
        }
        !self.stopped.get()
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Starts the clients of one scenario against `proxy`. Each ends with an error at the first wrong answer.
///
/// # Panics
///
/// Panics outside a [`tokio::task::LocalSet`].
pub fn spawn(scenario: Scenario, proxy: SocketAddr, tally: &Rc<Tally>) -> JoinSet<Result<()>> {
    let mut clients = JoinSet::new();
    let expected: Rc<[u8]> = match scenario {
        Scenario::Http => scenario::http_body().into(),
        Scenario::Download => scenario::download().into(),
        Scenario::Grpc | Scenario::Tcp | Scenario::Udp => Rc::new([]),
    };
    for index in 0..scenario.connections() {
        let (expected, tally) = (expected.clone(), tally.clone());
        clients.spawn_local(async move {
            let driven = match scenario {
                Scenario::Http => http::drive(dial(index, proxy).await?, &expected, &tally).await,
                Scenario::Grpc => grpc::drive(dial(index, proxy).await?, tally).await,
                Scenario::Tcp => tcp::ping_pong(dial(index, proxy).await?, &tally).await,
                Scenario::Download => tcp::download(dial(index, proxy).await?, &expected, &tally).await,
                Scenario::Udp => udp::ping_pong(index, proxy, &tally).await,
            };
            driven.with_context(|| format!("client {index} of {scenario:?} at {proxy}"))
        });
    }
    clients
}

/// Sends one request per client and checks the answers.
///
/// # Errors
///
/// Fails if a client cannot connect, gets a wrong answer, or none within `limit`.
pub async fn probe(scenario: Scenario, proxy: SocketAddr, limit: Duration) -> Result<()> {
    let tally = Rc::new(Tally::default());
    tally.stop();
    finish(spawn(scenario, proxy, &tally), limit).await
}

/// Waits for clients that were told to stop.
///
/// # Errors
///
/// Fails with the first client's error, or if one is not done within `limit`.
pub async fn finish(mut clients: JoinSet<Result<()>>, limit: Duration) -> Result<()> {
    let all = async {
        while let Some(client) = clients.join_next().await {
            client.context("a client panicked")??;
        }
        Ok(())
    };
    tokio::time::timeout(limit, all).await.with_context(|| format!("a request was not answered within {limit:?}"))?
}

async fn dial(index: usize, proxy: SocketAddr) -> Result<TcpStream> {
    let source = scenario::client_address(index);
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream = socket.connect(proxy).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    };
    connect.await.with_context(|| format!("connect from {source} to {proxy}"))
}

/// Writes the number of a message into it, so that an answer to another message is not taken for the right one.
fn stamp(message: &mut [u8], number: u64) {
    message[..8].copy_from_slice(&number.to_be_bytes());
}

fn ensure_echo(sent: &[u8], answer: &[u8]) -> Result<()> {
    ensure!(sent == answer, "the answer is not what was sent: {} bytes for {}", answer.len(), sent.len());
    Ok(())
}
