//! Datagrams of clients: each finds its flow, or begins one.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use api::resource::service::Transport;
use tokio::net::UdpSocket;

use crate::{
    balance::{choose::Client, flow::FlowHash},
    forward::udp::{FlowKey, flow::Flow},
    local::Local,
    report::{
        outcome::Outcome,
        record::{Attempt, ClientSource, Downstream, OpenConnection},
    },
    table::{Candidates, Target},
};

/// Pause after an error that a listening socket should not have, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the datagrams that arrive at `destination`, to which `socket` is bound, until `closed`. Its flows end with it.
pub async fn serve(local: Rc<Local>, socket: UdpSocket, destination: SocketAddr, closed: impl Future<Output = ()>) {
    let socket = Rc::new(socket);
    tokio::select! {
        biased;
        () = closed => {}
        () = receive(&local, &socket, destination) => {}
    }
    local.flows.close(destination);
}

async fn receive(local: &Rc<Local>, socket: &Rc<UdpSocket>, destination: SocketAddr) {
    loop {
        // What the socket has to say, it says when it is read.
        let _ = socket.readable().await;
        let received = local.flows.batch.borrow_mut().receive(socket, destination.is_ipv6(), |client, datagram| {
            forward(local, socket, FlowKey { client, destination }, datagram);
        });
        match received {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(address = %destination, "cannot receive: {error}; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Sends a datagram along its flow. When its endpoint turns out to be gone, another one gets it.
fn forward(local: &Rc<Local>, socket: &Rc<UdpSocket>, key: FlowKey, datagram: &[u8]) {
    for _ in 0..local.limits.attempts {
        let Some(flow) = local.flows.get(&key).or_else(|| begin(local, socket, key)) else { return };
        if flow.send(local, datagram) {
            return;
        }
        local.flows.remove(&flow);
    }
}

/// Begins a flow; `None` if its datagrams are to be dropped one by one.
fn begin(local: &Rc<Local>, socket: &Rc<UdpSocket>, key: FlowKey) -> Option<Rc<Flow>> {
    let table = local.table();
    let frontend = table.0.frontend(key.destination, Transport::Udp)?;
    let target = frontend.target.as_ref()?;
    if !local.flows.make_room(local.limits.flows) {
        return None;
    }
    let downstream = Downstream {
        peer: key.client,
        local: key.destination,
        client: key.client,
        client_source: ClientSource::Peer,
        frontend: frontend.kind,
        server_name: None,
        tls: false,
    };
    let mut record = local.reporter.connection(Arc::new(downstream), "udp");
    record.note(|record| record.target = Some(target.for_long()));
    let client = key.client.ip();
    let verdict = target.verdict(frontend.kind, client, || table.0.client_kind(client));
    let (flow, record) = match verdict.candidates() {
        Err(outcome) => {
            record.close(outcome);
            (Flow::refused(local, key), None)
        }
        Ok(candidates) => match open(local, target, candidates, key, &mut record) {
            Some(flow) => (flow, Some(record)),
            None => {
                record.close(Outcome::ConnectFailed);
                return None;
            }
        },
    };
    let flow = Rc::new(flow);
    local.flows.insert(&flow);
    tokio::task::spawn_local(flow.clone().run(local.clone(), socket.clone(), record));
    Some(flow)
}

/// A flow to the endpoint that the balance chooses, or to the next one if there is no way to it.
fn open(
    local: &Local,
    target: &Target,
    candidates: &Candidates,
    key: FlowKey,
    record: &mut OpenConnection,
) -> Option<Flow> {
    let client = Client { address: key.client.ip(), hash: FlowHash::of_client(key.client.ip()) };
    let mut tried = Vec::new();
    while tried.len() < local.limits.attempts {
        let backend = local.choose(target, candidates, client, &tried)?;
        let started = Instant::now();
        let flow = Flow::open(local, key, backend);
        record.note(|record| {
            record.attempts.push(Attempt {
                backend: backend.clone(),
                started,
                // UDP has no handshake that would show whether somebody is there.
                connected: None,
                reused: false,
                took: started.elapsed(),
                status: None,
                outcome: if flow.is_ok() { Outcome::Complete } else { Outcome::ConnectFailed },
                span: local.reporter.traces.span(),
            });
        });
        match flow {
            Ok(flow) => return Some(flow),
            Err(_) => {
                local.upstream(backend.address).failed(local.now());
                tried.push(backend.address);
            }
        }
    }
    None
}
