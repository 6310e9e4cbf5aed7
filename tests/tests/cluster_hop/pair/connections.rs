use std::net::{IpAddr, SocketAddr};

use agent::{
    hop::answer::Answer,
    report::{
        outcome::Outcome,
        record::ClientSource,
        via::{Bypass, Via},
    },
    table::FrontendKind,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::{Agent, CLIENT, EXIT, POD, ip, keys, run};

/// An endpoint.
async fn pod() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((POD, 0)).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// An address where nobody listens, for as long as the socket lives.
fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("descriptors");
    socket.bind(SocketAddr::new(ip(POD), 0)).expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// A client says something, the endpoint answers, both end. Gives the address that the endpoint saw.
async fn exchange(entry: &Agent, listener: &TcpListener) -> IpAddr {
    let mut client = entry.dial().await;
    client.write_all(b"ping").await.expect("open");
    client.shutdown().await.expect("open");
    let (mut endpoint, peer) = listener.accept().await.expect("descriptors");
    let mut heard = Vec::new();
    endpoint.read_to_end(&mut heard).await.expect("ends in order");
    assert_eq!(heard, b"ping");
    endpoint.write_all(b"pong").await.expect("half-closed only");
    drop(endpoint);
    heard.clear();
    client.read_to_end(&mut heard).await.expect("ends in order");
    assert_eq!(heard, b"pong");
    peer.ip()
}

#[test]
fn the_endpoint_sees_the_client_and_both_agents_tell() {
    run(async {
        let (entry, exit, (listener, address)) = (Agent::entry().await, Agent::exit().await, pod().await);
        exit.leave(&[address], keys(1));
        entry.enter(&[address], keys(1), exit.address.port());
        assert_eq!(exchange(&entry, &listener).await, ip(CLIENT));

        let (entered, left) = (entry.record().await, exit.record().await);
        assert_eq!((entered.outcome, entered.received, entered.sent), (Outcome::Complete, 4, 4));
        assert_eq!((left.outcome, left.received, left.sent), (Outcome::Complete, 4, 4));
        assert_eq!((entered.attempts.len(), entered.attempts[0].via), (1, Via::Hop));
        assert_eq!((&*entered.entry_node, &*left.entry_node), ("", "entry"));
        assert_eq!(
            (left.downstream.frontend, left.downstream.client_source),
            (FrontendKind::Hop, ClientSource::ProxyV2)
        );
        assert_eq!(left.downstream.client, entered.downstream.peer);
        assert_eq!(left.downstream.local, entry.address, "what the client dialled");
        assert_eq!((left.trace.trace, left.trace.parent), (entered.trace.trace, entered.attempts[0].span));
    });
}

#[test]
fn an_endpoint_that_refuses_is_followed_by_the_next_one() {
    run(async {
        let (entry, exit, (listener, address)) = (Agent::entry().await, Agent::exit().await, pod().await);
        let (_socket, refusing) = refusing();
        let both = [refusing, address];
        exit.leave(&both, keys(1));
        entry.enter(&both, keys(1), exit.address.port());
        // In turn, so one of two begins with the endpoint that refuses; it is left out afterwards.
        let mut refused = 0;
        for _ in 0..2 {
            assert_eq!(exchange(&entry, &listener).await, ip(CLIENT));
            let record = entry.record().await;
            assert!(record.attempts.iter().all(|attempt| attempt.via == Via::Hop));
            refused += record.attempts.iter().filter(|attempt| attempt.outcome == Outcome::ConnectRefused).count();
        }
        assert_eq!(refused, 1);
    });
}

/// What cannot be handed over is dialled from the node, and says so.
async fn bypassed(entry: &Agent, listener: &TcpListener, expected: Bypass) {
    assert_ne!(exchange(entry, listener).await, ip(CLIENT));
    let record = entry.record().await;
    assert_eq!((record.outcome, record.attempts[0].via), (Outcome::Complete, Via::Bypassed(expected)));
}

#[test]
fn what_cannot_be_handed_over_is_served_from_the_node() {
    run(async {
        let (exit, (listener, address)) = (Agent::exit().await, pod().await);
        let port = exit.address.port();

        // The other agent has not heard of the endpoint yet.
        let entry = Agent::entry().await;
        exit.leave(&[], keys(1));
        entry.enter(&[address], keys(1), port);
        bypassed(&entry, &listener, Bypass::Unknown).await;
        // That is no reason to leave it alone.
        exit.leave(&[address], keys(1));
        assert_eq!(exchange(&entry, &listener).await, ip(CLIENT));

        // It has other keys. For a while it is not asked again.
        let entry = Agent::entry().await;
        entry.enter(&[address], keys(2), port);
        bypassed(&entry, &listener, Bypass::Refused).await;
        bypassed(&entry, &listener, Bypass::NoAgent).await;

        // There is none.
        let entry = Agent::entry().await;
        let socket = TcpSocket::new_v4().expect("descriptors");
        socket.bind(SocketAddr::new(ip(EXIT), 0)).expect("loopback");
        entry.enter(&[address], keys(1), socket.local_addr().expect("bound").port());
        bypassed(&entry, &listener, Bypass::NoAgent).await;
    });
}

#[test]
fn what_is_overheard_cannot_be_said_again() {
    run(async {
        let (entry, exit, (listener, address)) = (Agent::entry().await, Agent::exit().await, pod().await);
        exit.leave(&[address], keys(1));
        // Somebody between the two agents listens.
        let between = TcpListener::bind((EXIT, 0)).await.expect("loopback");
        entry.enter(&[address], keys(1), between.local_addr().expect("bound").port());
        let _client = entry.dial().await;
        let (mut overheard, _) = between.accept().await.expect("descriptors");
        let mut header = vec![0; 1024];
        let length = overheard.read(&mut header).await.expect("the header");
        header.truncate(length);

        let say = async |bytes: &[u8]| {
            let mut stream = TcpStream::connect(exit.address).await.expect("the agent listens");
            stream.write_all(bytes).await.expect("open");
            stream.read_u8().await.ok()
        };
        assert_eq!(say(&header).await, Some(Answer::Connected.byte()));
        listener.accept().await.expect("the client is brought");
        assert_eq!(say(&header).await, None);
        let mut changed = header.clone();
        changed[20] ^= 1;
        assert_eq!(say(&changed).await, None);
    });
}
