use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent::{
    hop::datagram::Word,
    report::{
        outcome::Outcome,
        record::ClientSource,
        via::{Bypass, Via},
    },
    table::FrontendKind,
};
use tokio::{net::UdpSocket, time::timeout};

use super::{Agent, CLIENT, EXIT, POD, ip, keys, run};

async fn socket(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((address, 0)).await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// A client of the entry node.
async fn client(entry: &Agent) -> (UdpSocket, SocketAddr) {
    let (socket, address) = socket(CLIENT).await;
    socket.connect(entry.address).await.expect("loopback");
    (socket, address)
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).await.expect("a datagram");
    buffer.truncate(length);
    (buffer, from)
}

/// The client says something and the endpoint answers. Gives the address that the endpoint saw; its port is another than the
/// client's, which has that one on this machine already.
async fn exchange(client: &UdpSocket, endpoint: &UdpSocket, said: &[u8]) -> IpAddr {
    client.send(said).await.expect("loopback");
    let (heard, peer) = receive(endpoint).await;
    assert_eq!(heard, said);
    endpoint.send_to(b"answer", peer).await.expect("loopback");
    assert_eq!(receive(client).await.0, b"answer");
    peer.ip()
}

#[test]
fn the_endpoint_sees_the_client_and_every_datagram() {
    run(async {
        let (entry, exit, (endpoint, address)) = (Agent::entry().await, Agent::exit().await, socket(POD).await);
        exit.leave(&[address], keys(1));
        entry.enter(&[address], keys(1), exit.address.port());
        let (client, own) = client(&entry).await;
        assert_eq!(exchange(&client, &endpoint, b"first").await, ip(CLIENT));
        // What looks like something between agents is the client's all the same.
        let like_a_header = [&Word::Who.bytes()[..], &[0; 100]].concat();
        for said in [&b""[..], &Word::Who.bytes(), &like_a_header, &[7; 1400]] {
            assert_eq!(exchange(&client, &endpoint, said).await, ip(CLIENT));
        }
        entry.local.flows.close(|_| true);
        exit.local.flows.close(|_| true);
        let (entered, left) = (entry.record().await, exit.record().await);
        assert_eq!((entered.attempts[0].via, &*left.entry_node), (Via::Hop, "entry"));
        assert_eq!(
            (left.downstream.frontend, left.downstream.client_source),
            (FrontendKind::Hop, ClientSource::ProxyV2)
        );
        assert_eq!((left.downstream.client, left.downstream.local), (own, entry.address));
        assert_eq!((left.received, left.sent), (entered.received, entered.sent));
        assert_eq!((left.trace.trace, left.trace.parent), (entered.trace.trace, entered.attempts[0].span));
    });
}

#[test]
fn a_flow_goes_on_when_the_other_agent_has_forgotten_it() {
    run(async {
        let (entry, exit, (endpoint, address)) = (Agent::entry().await, Agent::exit().await, socket(POD).await);
        exit.leave(&[address], keys(1));
        entry.enter(&[address], keys(1), exit.address.port());
        let (client, _) = client(&entry).await;
        assert_eq!(exchange(&client, &endpoint, b"before").await, ip(CLIENT));
        exit.local.flows.close(|_| true);
        exit.record().await;
        // This one is lost, and the other agent asks whose it was.
        client.send(b"lost").await.expect("loopback");
        while exit.local.flows.count() == 0 {
            client.send(b"after").await.expect("loopback");
            tokio::task::yield_now().await;
        }
        let (heard, peer) = receive(&endpoint).await;
        assert_eq!((heard, peer.ip()), (b"after".to_vec(), ip(CLIENT)));
    });
}

#[test]
fn a_new_table_cuts_flows_whose_endpoint_is_gone_and_no_others() {
    run(async {
        let (entry, exit, (endpoint, address)) = (Agent::entry().await, Agent::exit().await, socket(POD).await);
        exit.leave(&[address], keys(1));
        entry.enter(&[address], keys(1), exit.address.port());
        let (client, _) = client(&entry).await;
        exchange(&client, &endpoint, b"x").await;
        exit.leave(&[address], keys(1));
        assert_eq!(exit.local.flows.count(), 1);
        exit.leave(&[], keys(1));
        assert_eq!(exit.record().await.outcome, Outcome::UpstreamClosed);
        assert_eq!(exit.local.flows.count(), 0);
    });
}

#[test]
fn an_endpoint_that_refuses_is_followed_by_the_next_one() {
    run(async {
        let (entry, exit, (endpoint, address)) = (Agent::entry().await, Agent::exit().await, socket(POD).await);
        let refusing = {
            let (_closed, address) = socket(POD).await;
            address
        };
        let both = [refusing, address];
        exit.leave(&both, keys(1));
        entry.enter(&both, keys(1), exit.address.port());
        // In turn, so one of two begins with the endpoint that refuses.
        for _ in 0..2 {
            let (client, _) = client(&entry).await;
            let (heard, peer) = loop {
                client.send(b"x").await.expect("loopback");
                if let Ok(heard) = timeout(Duration::from_millis(50), receive(&endpoint)).await {
                    break heard;
                }
            };
            assert_eq!((heard, peer.ip()), (b"x".to_vec(), ip(CLIENT)));
        }
        assert_eq!(entry.record().await.outcome, Outcome::ConnectRefused);
    });
}

#[test]
fn without_an_agent_the_flow_goes_from_the_node() {
    run(async {
        let (entry, (endpoint, address)) = (Agent::entry().await, socket(POD).await);
        let port = {
            let (_closed, address) = socket(EXIT).await;
            address.port()
        };
        entry.enter(&[address], keys(1), port);
        let (client, _) = client(&entry).await;
        let peer: IpAddr = loop {
            client.send(b"x").await.expect("loopback");
            if let Ok((_, peer)) = timeout(Duration::from_millis(50), receive(&endpoint)).await {
                break peer.ip();
            }
        };
        assert_ne!(peer, ip(CLIENT));
        assert_eq!(entry.record().await.attempts[0].via, Via::Hop, "was tried first");
        entry.local.flows.close(|_| true);
        assert_eq!(entry.record().await.attempts[0].via, Via::Bypassed(Bypass::NoAgent));
    });
}

#[test]
fn who_is_not_believed_is_told_nothing() {
    run(async {
        let (entry, exit, (_endpoint, address)) = (Agent::entry().await, Agent::exit().await, socket(POD).await);
        exit.leave(&[address], keys(1));
        // Somebody between the two agents listens.
        let (between, fake) = socket(EXIT).await;
        entry.enter(&[address], keys(1), fake.port());
        let (client, _) = client(&entry).await;
        client.send(b"x").await.expect("loopback");
        let header = receive(&between).await.0;

        let (first, second) = (socket(EXIT).await.0, socket(EXIT).await.0);
        for socket in [&first, &second] {
            socket.connect(exit.address).await.expect("loopback");
            socket.send(&header).await.expect("loopback");
            // Whose flow this is the agent asks, unless it knows.
            socket.send(b"x").await.expect("loopback");
        }
        assert!(matches!(Word::parse(&receive(&first).await.0), Some(Word::Answer(_))));
        assert_eq!(Word::parse(&receive(&second).await.0), Some(Word::Who), "the header came before");
        assert_eq!(exit.local.flows.count(), 1);
    });
}
