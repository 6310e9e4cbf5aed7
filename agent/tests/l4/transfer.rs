//! Many bytes, in both directions at once, past readers that are slower than writers.

use agent::report::outcome::Outcome;
use api::resource::service::Transport;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::spawn_local,
};
use xxhash_rust::xxh3::Xxh3;

use crate::harness::{Worker, endpoint, limits, run, target};

/// Writes `length` bytes in pieces of all sizes, and ends. Returns their hash.
async fn send(mut to: impl AsyncWrite + Unpin, seed: u64, length: usize) -> u64 {
    let (mut random, mut hash, mut rest) = (fastrand::Rng::with_seed(seed), Xxh3::new(), length);
    let mut piece = vec![0; 300 << 10];
    while rest > 0 {
        let size = if random.bool() { random.usize(1..100) } else { random.usize(1..piece.len()) }.min(rest);
        random.fill(&mut piece[..size]);
        hash.update(&piece[..size]);
        to.write_all(&piece[..size]).await.expect("open");
        rest -= size;
    }
    to.shutdown().await.expect("open");
    hash.digest()
}

/// Reads to the end, at most `piece` bytes at a time, letting everybody else run in between. Returns length and hash.
async fn receive(mut from: impl AsyncRead + Unpin, piece: usize) -> (usize, u64) {
    let (mut length, mut hash, mut buffer) = (0, Xxh3::new(), vec![0; piece]);
    loop {
        let count = from.read(&mut buffer).await.expect("no reset");
        if count == 0 {
            return (length, hash.digest());
        }
        length += count;
        hash.update(&buffer[..count]);
        tokio::task::yield_now().await;
    }
}

/// Both directions at once, with these pieces and this receive buffer at the reading ends.
fn check(length: usize, client_piece: usize, server_piece: usize, receive_buffer: Option<usize>) {
    run(async move {
        let (listener, address) = endpoint().await;
        let worker = Worker::start(limits(), target(Transport::Tcp, &[address])).await;
        let client = worker.dial().await;
        let (server, _) = listener.accept().await.expect("the worker dials");
        for stream in [&client, &server] {
            if let Some(size) = receive_buffer {
                SockRef::from(stream).set_recv_buffer_size(size).expect("a size");
            }
        }
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let sent_up = spawn_local(send(to_client, 1, length));
        let sent_down = spawn_local(send(to_server, 2, length));
        let got_up = spawn_local(receive(from_server, server_piece));
        let got_down = spawn_local(receive(from_client, client_piece));
        let (sent_up, sent_down) = (sent_up.await.expect("no panic"), sent_down.await.expect("no panic"));
        assert_eq!(got_up.await.expect("no panic"), (length, sent_up));
        assert_eq!(got_down.await.expect("no panic"), (length, sent_down));
        let record = worker.record().await;
        assert_eq!(record.outcome, Outcome::Complete);
        assert_eq!((record.received, record.sent), (length as u64, length as u64));
    });
}

#[test]
fn every_byte_arrives_in_order() {
    check(64 << 20, 256 << 10, 256 << 10, None);
}

#[test]
fn a_slow_client_delays_and_loses_nothing() {
    check(8 << 20, 5_000, 256 << 10, Some(128 << 10));
}

#[test]
fn a_slow_endpoint_delays_and_loses_nothing() {
    check(8 << 20, 256 << 10, 3_000, Some(128 << 10));
}
