//! UDP flows: who answers from where, how long flows live, what cuts them, how many there may be.

use std::{net::SocketAddr, time::Duration};

use agent::{
    local::Limits,
    report::outcome::Outcome,
    table::{Candidates, Target},
};
use api::resource::service::Transport;
use tokio::{net::UdpSocket, task::spawn_local};

use crate::harness::{Worker, candidates, limits, run, run_paused, target};

async fn socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// An endpoint that answers each datagram with its own name and what it got.
async fn echo(name: &'static str) -> SocketAddr {
    let (socket, address) = socket().await;
    spawn_local(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), &buffer[..length]].concat();
            socket.send_to(&answer, client).await.expect("loopback takes it");
        }
    });
    address
}

/// Sends to the worker and waits for the answer, which must come from where the question went.
async fn ask(client: &UdpSocket, worker: &Worker, question: &str) -> String {
    client.send_to(question.as_bytes(), worker.destination).await.expect("loopback takes it");
    let mut buffer = vec![0; 64 << 10];
    let (length, sender) = client.recv_from(&mut buffer).await.expect("no ICMP on unconnected sockets");
    assert_eq!(sender, worker.destination);
    String::from_utf8(buffer[..length].to_vec()).expect("we sent text")
}

#[test]
fn each_client_has_a_flow_and_its_answers() {
    run(async {
        let mut worker = Worker::start(limits(), target(Transport::Udp, &[echo("a:").await, echo("b:").await])).await;
        let ((first, address), (second, _)) = (socket().await, socket().await);
        let (one, two) = (ask(&first, &worker, "1").await, ask(&second, &worker, "2").await);
        assert_ne!(one[..2], two[..2], "endpoints take turns");
        for _ in 0..10 {
            assert_eq!(ask(&first, &worker, "1").await, one, "a flow keeps its endpoint");
            assert_eq!(ask(&second, &worker, "2").await, two, "a flow keeps its endpoint");
        }
        assert_eq!(worker.local.flows.count(), 2);
        worker.listener.take();
        (&mut worker.serving).await.expect("no panic");
        assert_eq!(worker.local.flows.count(), 0);
        let mut records = Vec::new();
        while records.len() < 2 {
            records.extend(worker.closed());
            tokio::task::yield_now().await;
        }
        let record = records.iter().find(|record| record.downstream.client == address).expect("one for each client");
        assert_eq!((record.received, record.sent), (11, 33));
    });
}

#[test]
fn datagrams_of_every_size_pass() {
    run(async {
        let worker = Worker::start(limits(), target(Transport::Udp, &[echo("").await])).await;
        let (client, _) = socket().await;
        for size in [0, 1, 512, 1_472, 9_000, 65_507] {
            assert_eq!(ask(&client, &worker, &"x".repeat(size)).await.len(), size);
        }
        assert_eq!(worker.local.flows.count(), 1);
    });
}

#[test]
fn a_flow_is_reported_once_when_it_is_over() {
    run_paused(async {
        let worker = Worker::start(limits(), target(Transport::Udp, &[echo("a:").await])).await;
        worker.tick();
        let (client, address) = socket().await;
        assert_eq!(ask(&client, &worker, "1234").await, "a:1234");
        assert_eq!(ask(&client, &worker, "12").await, "a:12");
        tokio::time::sleep(Duration::from_secs(119)).await;
        assert_eq!(worker.closed().len(), 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let record = worker.record().await;
        assert_eq!((record.protocol, record.outcome), ("udp", Outcome::IdleTimeout));
        assert_eq!((record.received, record.sent), (6, 10));
        assert_eq!((record.downstream.client, record.downstream.local), (address, worker.destination));
        assert_eq!(record.attempts.len(), 1);
        assert_eq!(worker.local.flows.count(), 0);
        assert_eq!(ask(&client, &worker, "again").await, "a:again");
    });
}

#[test]
fn a_flow_without_an_answer_ends_sooner() {
    run_paused(async {
        let (silent, address) = socket().await;
        let worker = Worker::start(limits(), target(Transport::Udp, &[address])).await;
        worker.tick();
        let (client, _) = socket().await;
        let mut buffer = [0; 16];
        for _ in 0..3 {
            client.send_to(b"hello", worker.destination).await.expect("loopback takes it");
            assert_eq!(silent.recv(&mut buffer).await.expect("open"), 5);
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert_eq!(worker.local.flows.count(), 1);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(worker.local.flows.count(), 0);
        let record = worker.record().await;
        assert_eq!((record.outcome, record.received, record.sent), (Outcome::IdleTimeout, 15, 0));
    });
}

#[test]
fn a_flow_is_cut_only_when_its_endpoint_stops_serving() {
    run(async {
        let (a, b) = (echo("a:").await, echo("b:").await);
        let worker = Worker::start(limits(), target(Transport::Udp, &[a])).await;
        let (client, _) = socket().await;
        assert_eq!(ask(&client, &worker, "1").await, "a:1");
        // New flows go elsewhere, but this endpoint still serves: it drains, or policy and hints prefer another one.
        worker.swap(Target { cluster: candidates(&[b]), ..target(Transport::Udp, &[a, b]) });
        assert_eq!(ask(&client, &worker, "2").await, "a:2");
        assert_eq!(worker.closed().len(), 0);
        worker.swap(target(Transport::Udp, &[b]));
        assert_eq!(ask(&client, &worker, "3").await, "b:3");
        let record = worker.record().await;
        assert_eq!((record.outcome, record.attempts[0].backend.address), (Outcome::UpstreamClosed, a));
        assert_eq!(worker.local.flows.count(), 1);
    });
}

#[test]
fn an_endpoint_that_refuses_is_left_for_the_next_one() {
    run(async {
        let (gone, refusing) = socket().await;
        drop(gone);
        let b = echo("b:").await;
        let worker = Worker::start(limits(), target(Transport::Udp, &[refusing])).await;
        let (client, _) = socket().await;
        client.send_to(b"lost", worker.destination).await.expect("loopback takes it");
        let record = worker.record().await;
        assert_eq!((record.outcome, record.attempts[0].outcome), (Outcome::ConnectRefused, Outcome::ConnectRefused));
        // Whoever's turn it is: the one that refused is left out.
        worker.swap(target(Transport::Udp, &[refusing, b]));
        for _ in 0..4 {
            let (client, _) = socket().await;
            assert_eq!(ask(&client, &worker, "1").await, "b:1");
        }
        assert_eq!(ask(&client, &worker, "2").await, "b:2");
    });
}

#[test]
fn an_endpoint_that_dies_is_replaced_under_a_running_flow() {
    run(async {
        let (a, address) = socket().await;
        let b = echo("b:").await;
        let worker = Worker::start(limits(), target(Transport::Udp, &[address])).await;
        let (client, _) = socket().await;
        client.send_to(b"1", worker.destination).await.expect("loopback takes it");
        let mut buffer = [0; 16];
        let (length, flow) = a.recv_from(&mut buffer).await.expect("open");
        a.send_to(&buffer[..length], flow).await.expect("loopback takes it");
        client.recv_from(&mut buffer).await.expect("open");
        worker.swap(target(Transport::Udp, &[address, b]));
        drop(a);
        client.send_to(b"2", worker.destination).await.expect("loopback takes it");
        assert_eq!(worker.record().await.outcome, Outcome::ConnectRefused);
        assert_eq!(ask(&client, &worker, "3").await, "b:3");
    });
}

#[test]
fn what_policy_refuses_is_reported_once_and_works_as_soon_as_it_may() {
    run(async {
        let a = echo("a:").await;
        let refused = Target { cluster: Candidates::default(), external_local: true, ..target(Transport::Udp, &[a]) };
        let worker = Worker::start(limits(), refused).await;
        let (client, _) = socket().await;
        for _ in 0..5 {
            client.send_to(b"x", worker.destination).await.expect("loopback takes it");
        }
        assert_eq!(worker.record().await.outcome, Outcome::NoLocalEndpoints);
        worker.swap(target(Transport::Udp, &[a]));
        while worker.local.flows.count() > 0 {
            tokio::task::yield_now().await;
        }
        // Leftovers of before may begin the flow; the answer to this question is among the answers.
        let mut answer = ask(&client, &worker, "now").await;
        while answer != "a:now" {
            assert_eq!(answer, "a:x");
            let mut buffer = [0; 16];
            let (length, _) = client.recv_from(&mut buffer).await.expect("open");
            answer = String::from_utf8(buffer[..length].to_vec()).expect("text");
        }
        assert_eq!(worker.closed().len(), 0);
    });
}

#[test]
fn flows_are_bounded_and_answered_ones_stay() {
    run(async {
        let limits = Limits { flows: 50, ..limits() };
        let (silent, address) = socket().await;
        let worker = Worker::start(limits, target(Transport::Udp, &[address])).await;
        let mut buffer = [0; 16];
        let mut established = Vec::new();
        for _ in 0..10 {
            let (client, _) = socket().await;
            client.send_to(b"hello", worker.destination).await.expect("loopback takes it");
            let (length, flow) = silent.recv_from(&mut buffer).await.expect("open");
            silent.send_to(&buffer[..length], flow).await.expect("loopback takes it");
            client.recv_from(&mut buffer).await.expect("open");
            established.push((client, flow));
        }
        // Kept open, so that no port comes twice.
        let mut flood = Vec::new();
        for _ in 0..400 {
            let (client, _) = socket().await;
            client.send_to(b"flood", worker.destination).await.expect("loopback takes it");
            silent.recv_from(&mut buffer).await.expect("open");
            assert!(worker.local.flows.count() <= 50);
            flood.push(client);
        }
        for (client, before) in &established {
            client.send_to(b"hello", worker.destination).await.expect("loopback takes it");
            let (_, flow) = silent.recv_from(&mut buffer).await.expect("open");
            assert_eq!(flow, *before, "the flow is the same");
        }
        let mut evicted = Vec::new();
        while evicted.len() < 400 - 40 {
            evicted.extend(worker.closed());
            tokio::task::yield_now().await;
        }
        assert_eq!(evicted.len(), 400 - 40);
        assert!(evicted.iter().all(|record| record.outcome == Outcome::Overload));
    });
}

#[test]
fn established_flows_do_not_make_room() {
    run(async {
        let limits = Limits { flows: 3, ..limits() };
        let worker = Worker::start(limits, target(Transport::Udp, &[echo("a:").await])).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let (client, _) = socket().await;
            assert_eq!(ask(&client, &worker, "1").await, "a:1");
            clients.push(client);
        }
        let (late, _) = socket().await;
        late.send_to(b"2", worker.destination).await.expect("loopback takes it");
        for client in &clients {
            assert_eq!(ask(client, &worker, "3").await, "a:3");
        }
        assert_eq!((worker.local.flows.count(), worker.closed().len()), (3, 0));
    });
}
