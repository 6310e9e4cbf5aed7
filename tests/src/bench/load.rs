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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::backend;
    use tokio::{
        net::{TcpListener, UdpSocket},
        task::LocalSet,
    };

    const LIMIT: Duration = Duration::from_secs(10);

    /// Probes a backend without a proxy in between.
    async fn probe_backend(scenario: Scenario) -> Result<()> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let probed = async {
            let address = if scenario == Scenario::Udp {
                let socket = UdpSocket::bind(any).await?;
                let address = socket.local_addr()?;
                tokio::task::spawn_local(backend::serve_udp(socket));
                address
            } else {
                let listener = TcpListener::bind(any).await?;
                let address = listener.local_addr()?;
                tokio::task::spawn_local(backend::serve_tcp(scenario, listener));
                address
            };
            probe(scenario, address, LIMIT).await
        };
        LocalSet::new().run_until(probed).await
    }

    #[tokio::test]
    async fn clients_and_backends_agree() {
        for scenario in [Scenario::Tcp, Scenario::Download, Scenario::Udp] {
            probe_backend(scenario).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_proxy_that_hides_the_client_is_found_out() {
        let http = probe_backend(Scenario::Http).await.unwrap_err();
        assert!(format!("{http:#}").contains("500 No X-Forwarded-For"), "{http:#}");
        let grpc = probe_backend(Scenario::Grpc).await.unwrap_err();
        assert!(format!("{grpc:#}").contains("grpc-status 0, got Some(\"3\")"), "{grpc:#}");
    }

    #[tokio::test]
    async fn a_wrong_answer_ends_the_round() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // To a backend of downloads a message is a request, and the answer something else than the message.
        let probed = async {
            tokio::task::spawn_local(backend::serve_tcp(Scenario::Download, listener));
            probe(Scenario::Tcp, address, LIMIT).await
        };
        let error = LocalSet::new().run_until(probed).await.unwrap_err();
        assert!(format!("{error:#}").contains("the answer is not what was sent"), "{error:#}");
    }

    #[test]
    fn only_what_is_answered_while_counting_counts() {
        let tally = Tally::default();
        assert!(tally.answered(Instant::now()));
        tally.start();
        assert!(tally.answered(Instant::now()));
        assert_eq!(tally.stop().len(), 1);
        assert!(!tally.answered(Instant::now()));
        assert!(tally.stop().is_empty());
    }
}
