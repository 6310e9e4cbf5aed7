//! The exit of the hop for UDP: each flow of another agent comes from a socket of its own, and begins with its header.

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    time::{Instant, SystemTime},
};

use api::resource::service::Transport;
use socket2::{SockAddr, SockRef};
use tokio::net::UdpSocket;

use super::{find, open, refuse};
use crate::{
    forward::{
        socket::Source,
        udp::{FlowKey, batch::Batch, flow::Flow},
    },
    hop::{
        answer::Answer,
        datagram::{Word, is_header},
        introduction::Introduction,
    },
    listen::udp::receive_all,
    local::Local,
    report::{outcome::Outcome, record::Attempt, via::Via},
    table::hop::Exit,
};

/// Serves the datagrams of other agents that arrive at `address`, to which `socket` is bound, until `closed`. Its flows end
/// with it.
pub async fn serve(local: Rc<Local>, socket: UdpSocket, address: SocketAddr, closed: impl Future<Output = ()>) {
    let socket = Rc::new(socket);
    let receive = |batch: &mut Batch| {
        batch.receive(&socket, address.is_ipv6(), |entry, datagram| {
            take(&local, &socket, FlowKey { client: entry, destination: address }, datagram);
        })
    };
    tokio::select! {
        biased;
        () = closed => {}
        () = receive_all(&local, &socket, receive) => {}
    }
    local.flows.close(|flow| flow.destination == address);
}

/// A datagram: a header, or one of a flow that is known by its header. A client may send what begins as a header does; only
/// one that is believed is not for the endpoint.
fn take(local: &Rc<Local>, socket: &Rc<UdpSocket>, key: FlowKey, datagram: &[u8]) {
    let flow = local.flows.get(&key);
    if is_header(datagram) {
        let table = local.table();
        let Some(hop) = &table.0.hop else { return };
        match (hop.state.open(&hop.keys, datagram, SystemTime::now()), &flow) {
            (Ok(said), _) => {
                let exit = find(hop, &said, Transport::Udp);
                return say(socket, key, introduce(local, socket, key, flow, &said, exit));
            }
            (Err(refusal), None) => return refuse(hop, key.client, refusal),
            (Err(_), Some(_)) => {}
        }
    }
    match flow {
        Some(flow) => {
            if !flow.send(local, datagram) {
                local.flows.remove(&flow);
            }
        }
        None => say(socket, key, Word::Who),
    }
}

/// Begins the flow that a header asks for, unless it is there.
fn introduce(
    local: &Rc<Local>,
    socket: &Rc<UdpSocket>,
    key: FlowKey,
    flow: Option<Rc<Flow>>,
    said: &Introduction,
    exit: Option<Exit>,
) -> Word {
    let Some(exit) = exit else { return Word::Answer(Answer::Unknown) };
    if let Some(flow) = flow {
        if flow.is_for(said.client, said.endpoint) {
            return Word::Answer(Answer::Connected);
        }
        // The socket of the other agent has gone to another flow.
        flow.cut();
        local.flows.remove(&flow);
    }
    if !local.flows.make_room(local.limits.flows) {
        return Word::Answer(Answer::Unknown);
    }
    let mut record = open(local, key.client, said, &exit, "udp");
    let started = Instant::now();
    let flow = Flow::open(local, key, &exit.backend, Source::Client(said.client));
    let span = local.reporter.traces.span();
    record.note(|record| {
        record.attempts.push(Attempt {
            backend: exit.backend.clone(),
            started,
            connected: None,
            reused: false,
            via: Via::Direct,
            took: started.elapsed(),
            status: None,
            outcome: if flow.is_ok() { Outcome::Complete } else { Outcome::ConnectFailed },
            span,
        });
    });
    let Ok(flow) = flow else {
        record.close(Outcome::ConnectFailed);
        return Word::Answer(Answer::Failed(Outcome::ConnectFailed));
    };
    let flow = Rc::new(flow);
    local.flows.insert(&flow);
    let (local, socket) = (local.clone(), socket.clone());
    tokio::task::spawn_local(async move {
        flow.clone().run(local, socket.clone(), Some(record)).await;
        // The other agent is to choose another endpoint.
        if let Some(outcome) = flow.outcome().filter(|outcome| outcome.is_before_send()) {
            say(&socket, key, Word::Answer(Answer::Failed(outcome)));
        }
    });
    Word::Answer(Answer::Connected)
}

/// A word that is lost is said again when the other agent asks again.
fn say(socket: &UdpSocket, key: FlowKey, word: Word) {
    let _ = SockRef::from(socket).send_to(&word.bytes(), &SockAddr::from(key.client));
}
