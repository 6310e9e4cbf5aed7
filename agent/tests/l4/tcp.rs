//! Opaque connections: ends, resets, failover, policies, idle time.

use std::{io, sync::Arc, time::Duration};

use agent::{
    forward::socket::reset_on_close,
    local::Limits,
    report::outcome::Outcome,
    table::{Balance, Candidates, HashKey, Table, Target},
};
use api::resource::service::Transport;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
    task::spawn_local,
};

use crate::harness::{Worker, candidates, endpoint, full, limits, refusing, run, run_paused, target};

/// A connection through a worker, with both ends in hand.
struct Path {
    worker: Worker,
    client: TcpStream,
    server: TcpStream,
}

async fn path() -> Path {
    let (listener, address) = endpoint().await;
    let worker = Worker::start(limits(), target(Transport::Tcp, &[address])).await;
    let client = worker.dial().await;
    let (server, _) = listener.accept().await.expect("the worker dials");
    Path { worker, client, server }
}

async fn says(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).await.expect("more bytes");
    assert_eq!(bytes, expected);
}

async fn ends(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0; 16]).await.expect("no reset"), 0);
}

async fn is_reset(stream: &mut TcpStream) {
    let error = stream.read_to_end(&mut Vec::new()).await.expect_err("the end came without a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Waits for a reset at a socket whose reading end has ended before, where reading shows nothing any more.
async fn is_broken(stream: &TcpStream) {
    stream.ready(Interest::ERROR).await.expect("open");
    let error = stream.take_error().expect("open").expect("an error");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_client_that_ends_first_gets_its_answer() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        client.write_all(b"question").await.expect("open");
        client.shutdown().await.expect("open");
        says(&mut server, b"question").await;
        ends(&mut server).await;
        server.write_all(b"a long answer").await.expect("open");
        drop(server);
        says(&mut client, b"a long answer").await;
        ends(&mut client).await;
        let record = worker.record().await;
        assert_eq!((record.outcome, record.received, record.sent), (Outcome::Complete, 8, 13));
        assert_eq!((record.protocol, record.attempts.len()), ("tcp", 1));
        assert_eq!(record.downstream.client, client.local_addr().expect("open"));
        assert_eq!(worker.local.upstream(record.attempts[0].backend.address).active.get(), 0);
    });
}

#[test]
fn an_endpoint_that_ends_first_hears_the_rest() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        server.write_all(b"hello, and that is all").await.expect("open");
        server.shutdown().await.expect("open");
        says(&mut client, b"hello, and that is all").await;
        ends(&mut client).await;
        client.write_all(b"but I have something to say").await.expect("open");
        client.shutdown().await.expect("open");
        says(&mut server, b"but I have something to say").await;
        ends(&mut server).await;
        assert_eq!(worker.record().await.outcome, Outcome::Complete);
    });
}

#[test]
fn the_reset_of_a_client_reaches_the_endpoint() {
    run(async {
        let Path { worker, client, mut server } = path().await;
        reset_on_close(&client);
        drop(client);
        is_reset(&mut server).await;
        assert_eq!(worker.record().await.outcome, Outcome::ClientClosed);
    });
}

#[test]
fn the_reset_of_an_endpoint_reaches_the_client() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        client.write_all(b"question").await.expect("open");
        says(&mut server, b"question").await;
        reset_on_close(&server);
        drop(server);
        is_reset(&mut client).await;
        assert_eq!(worker.record().await.outcome, Outcome::UpstreamClosed);
    });
}

#[test]
fn a_reset_after_the_end_is_seen_as_well() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        client.shutdown().await.expect("open");
        ends(&mut server).await;
        reset_on_close(&client);
        drop(client);
        // The endpoint says nothing, so nothing but the watch can notice.
        is_broken(&server).await;
        assert_eq!(worker.record().await.outcome, Outcome::ClientClosed);

        let Path { worker, mut client, mut server } = path().await;
        server.shutdown().await.expect("open");
        ends(&mut client).await;
        reset_on_close(&server);
        drop(server);
        is_broken(&client).await;
        assert_eq!(worker.record().await.outcome, Outcome::UpstreamClosed);
    });
}

#[test]
fn what_an_endpoint_said_before_its_reset_is_delivered() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        client.write_all(b"a request that is never read").await.expect("open");
        server.peek(&mut [0; 1]).await.expect("open");
        server.write_all(b"go away").await.expect("open");
        // Closing on unread bytes sends RST.
        drop(server);
        says(&mut client, b"go away").await;
        is_reset(&mut client).await;
        assert_eq!(worker.record().await.outcome, Outcome::UpstreamClosed);
    });
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    run(async {
        let (_socket, refused) = refusing();
        let (listener, address) = endpoint().await;
        // In turn, so that one of the two connections tries the refusing one first.
        let worker = Worker::start(limits(), target(Transport::Tcp, &[refused, address])).await;
        let mut attempts = Vec::new();
        for _ in 0..2 {
            let client = worker.dial().await;
            let (server, _) = listener.accept().await.expect("the worker dials");
            drop((client, server));
            let record = worker.record().await;
            assert_eq!(record.outcome, Outcome::Complete);
            attempts.extend(record.attempts.into_iter().map(|attempt| (attempt.backend.address, attempt.outcome)));
        }
        assert_eq!(attempts.iter().filter(|attempt| **attempt == (refused, Outcome::ConnectRefused)).count(), 1);
        assert_eq!(attempts.iter().filter(|attempt| **attempt == (address, Outcome::Complete)).count(), 2);
    });
}

#[test]
fn an_endpoint_that_comes_while_another_does_not_answer_is_tried() {
    run(async {
        let (_full, silent) = full();
        let (listener, address) = endpoint().await;
        let limits = Limits { connect_timeout: Duration::from_millis(500), ..limits() };
        let worker = Worker::start(limits, target(Transport::Tcp, &[silent])).await;
        let client = worker.dial().await;
        // The endpoints are replaced once the attempt is under way, which it is when it counts as load.
        while worker.local.upstream(silent).active.get() == 0 {
            tokio::task::yield_now().await;
        }
        worker.swap(target(Transport::Tcp, &[address]));
        let (server, _) = listener.accept().await.expect("the worker dials");
        drop((client, server));
        let record = worker.record().await;
        let attempts: Vec<_> = record.attempts.iter().map(|attempt| attempt.backend.address).collect();
        assert_eq!((record.outcome, attempts), (Outcome::Complete, vec![silent, address]));
    });
}

#[test]
fn when_all_refuse_so_do_we() {
    run(async {
        let sockets: Vec<_> = (0..5).map(|_| refusing()).collect();
        let addresses: Vec<_> = sockets.iter().map(|(_, address)| *address).collect();
        let worker = Worker::start(limits(), target(Transport::Tcp, &addresses)).await;
        is_reset(&mut worker.dial().await).await;
        let record = worker.record().await;
        assert_eq!((record.outcome, record.attempts.len()), (Outcome::ConnectRefused, 3));
        let tried: std::collections::HashSet<_> =
            record.attempts.iter().map(|attempt| attempt.backend.address).collect();
        assert_eq!(tried.len(), 3);
    });
}

#[test]
fn a_connection_that_all_refuse_waits_for_who_replaces_them() {
    run(async {
        let (_socket, refused) = refusing();
        let (listener, address) = endpoint().await;
        let worker = Worker::start(limits(), target(Transport::Tcp, &[refused])).await;
        let client = worker.dial().await;
        while worker.local.upstream(refused).is_well() {
            tokio::task::yield_now().await;
        }
        worker.swap(target(Transport::Tcp, &[]));
        tokio::task::yield_now().await;
        worker.swap(target(Transport::Tcp, &[address]));
        let (server, _) = listener.accept().await.expect("the worker dials");
        drop((client, server));
        let record = worker.record().await;
        assert_eq!((record.outcome, record.attempts.len()), (Outcome::Complete, 2));
    });
}

#[test]
fn policy_resets_at_once() {
    let check = |change: fn(&mut Target), expected| {
        run(async move {
            let (listener, address) = endpoint().await;
            let mut target = target(Transport::Tcp, &[address]);
            change(&mut target);
            let worker = Worker::start(limits(), target).await;
            is_reset(&mut worker.dial().await).await;
            let record = worker.record().await;
            assert_eq!((record.outcome, record.attempts.len()), (expected, 0));
            drop(listener);
        });
    };
    check(|target| target.any_endpoint = false, Outcome::NoEndpoints);
    check(|target| target.cluster = Candidates::default(), Outcome::NoEndpoints);
    check(|target| target.external_local = true, Outcome::NoLocalEndpoints);
    check(|target| target.source_ranges = Box::new(["10.0.0.0/8".parse().expect("a network")]), Outcome::SourceRange);
}

#[test]
fn what_nobody_serves_any_more_is_reset() {
    run(async {
        let (_listener, address) = endpoint().await;
        let worker = Worker::start(limits(), target(Transport::Tcp, &[address])).await;
        worker.local.swap(Arc::new(Table::default()), |_| false);
        is_reset(&mut worker.dial().await).await;
        assert_eq!(worker.closed().len(), 0);
    });
}

#[test]
fn connections_outlive_their_endpoint_in_the_table() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        worker.local.swap(Arc::new(Table::default()), |_| false);
        client.write_all(b"still there?").await.expect("open");
        says(&mut server, b"still there?").await;
        server.write_all(b"yes").await.expect("open");
        says(&mut client, b"yes").await;
        drop(client);
        ends(&mut server).await;
        drop(server);
        assert_eq!(worker.record().await.outcome, Outcome::Complete);
    });
}

#[test]
fn a_client_keeps_its_endpoint_under_affinity() {
    run(async {
        let mut listeners = Vec::new();
        for _ in 0..4 {
            listeners.push(endpoint().await);
        }
        let addresses: Vec<_> = listeners.iter().map(|(_, address)| *address).collect();
        let hashed = Target { balance: Balance::Hash(HashKey::Client), ..target(Transport::Tcp, &addresses) };
        let worker = Worker::start(limits(), hashed).await;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..8 {
            let (mut client, mut server) = (worker.dial().await, None);
            client.shutdown().await.expect("open");
            while server.is_none() {
                server = listeners.iter().find_map(|(listener, address)| {
                    let accepted = std::future::Future::poll(
                        std::pin::pin!(listener.accept()),
                        &mut std::task::Context::from_waker(std::task::Waker::noop()),
                    );
                    accepted.is_ready().then_some(*address)
                });
                tokio::task::yield_now().await;
            }
            seen.extend(server);
            worker.record().await;
        }
        assert_eq!(seen.len(), 1);
        assert_eq!(candidates(&addresses).backends.len(), 4);
    });
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    run_paused(async {
        let (listener, address) = endpoint().await;
        let limits = agent::local::Limits { tcp_idle_timeout: Duration::from_secs(10), ..limits() };
        let worker = Worker::start(limits, target(Transport::Tcp, &[address])).await;
        worker.tick();
        let (mut quiet, mut busy) = (worker.dial().await, worker.dial().await);
        let quiet_port = quiet.local_addr().expect("open").port();
        spawn_local(async move {
            let mut servers = Vec::new();
            while let Ok((mut server, _)) = listener.accept().await {
                servers.push(spawn_local(async move {
                    let (mut from, mut to) = server.split();
                    tokio::io::copy(&mut from, &mut to).await
                }));
            }
        });
        for _ in 0..15 {
            busy.write_all(b"ping").await.expect("open");
            says(&mut busy, b"ping").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        ends(&mut quiet).await;
        let closed = worker.closed();
        assert_eq!(closed.len(), 1);
        let record = &closed[0];
        assert_eq!(record.downstream.client.port(), quiet_port);
        assert_eq!(record.outcome, Outcome::IdleTimeout);
    });
}

#[test]
fn the_end_of_draining_ends_what_is_left() {
    run(async {
        let Path { worker, mut client, mut server } = path().await;
        worker.local.drain.begin();
        client.write_all(b"last words").await.expect("open");
        says(&mut server, b"last words").await;
        worker.local.drain.end();
        is_reset(&mut client).await;
        is_reset(&mut server).await;
        assert_eq!(worker.record().await.outcome, Outcome::Drained);
    });
}
