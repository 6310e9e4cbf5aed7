//! Datagrams of clients: each finds its flow, or begins one.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use api::resource::service::Transport;
use foldhash::fast::RandomState;
use tokio::net::UdpSocket;

use super::socket;
use crate::{
    balance::{choose::Client, flow::FlowHash},
    forward::{
        socket::Source,
        source::Way,
        udp::{FlowKey, batch::Batch, flow::Flow},
    },
    hop::introduction::Introduction,
    local::Local,
    report::{
        outcome::Outcome,
        record::{Attempt, ClientSource, Downstream, OpenConnection},
        trace::SpanContext,
        via::{Bypass, Via},
    },
    table::{Backend, Candidates, FrontendKind, Target},
};

/// Pause after an error that a listening socket should not have, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Which socket answers from the address that a client dialled.
trait Answer {
    /// The socket for `destination`; it may be there already.
    fn socket(&self, destination: SocketAddr) -> io::Result<Rc<UdpSocket>>;
}

/// The listener itself.
struct Listener(Rc<UdpSocket>);

/// One socket for each address, for as long as a flow needs it: there may be thousands of addresses, of which few are in
/// use.
#[derive(Default)]
struct Answering {
    sockets: RefCell<HashMap<SocketAddr, Weak<UdpSocket>, RandomState>>,
}

/// Serves the datagrams that arrive at `destination`, to which `socket` is bound, until `closed`. Its flows end with it.
pub async fn serve(local: Rc<Local>, socket: UdpSocket, destination: SocketAddr, closed: impl Future<Output = ()>) {
    let answer = Listener(Rc::new(socket));
    let receive = |batch: &mut Batch| {
        batch.receive(&answer.0, destination.is_ipv6(), |client, datagram| {
            forward(&local, &answer, FlowKey { client, destination }, datagram);
        })
    };
    tokio::select! {
        biased;
        () = closed => {}
        () = receive_all(&local, &answer.0, receive) => {}
    }
    local.flows.close(|flow| flow.destination == destination);
}

/// Serves the datagrams that packet rules lead to `socket`, whatever their destination is, until `closed`. All flows end
/// with it.
pub async fn serve_redirected(local: Rc<Local>, socket: UdpSocket, ipv6: bool, closed: impl Future<Output = ()>) {
    let answer = Answering::default();
    let receive = |batch: &mut Batch| {
        batch.receive_redirected(&socket, ipv6, |client, destination, datagram| {
            forward(&local, &answer, FlowKey { client, destination }, datagram);
        })
    };
    tokio::select! {
        biased;
        () = closed => {}
        () = receive_all(&local, &socket, receive) => {}
    }
    local.flows.close(|flow| flow.destination.is_ipv6() == ipv6);
}

/// Reads a socket without end.
pub(super) async fn receive_all(local: &Local, socket: &UdpSocket, receive: impl Fn(&mut Batch) -> io::Result<()>) {
    loop {
        // What the socket has to say, it says when it is read.
        let _ = socket.readable().await;
        let received = receive(&mut local.flows.batch.borrow_mut());
        match received {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(address = ?socket.local_addr().ok(), "cannot receive: {error}; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Sends a datagram along its flow. When its endpoint turns out to be gone, another one gets it.
fn forward(local: &Rc<Local>, answer: &impl Answer, key: FlowKey, datagram: &[u8]) {
    for _ in 0..local.limits.attempts {
        let Some(flow) = local.flows.get(&key).or_else(|| begin(local, answer, key)) else { return };
        if flow.send(local, datagram) {
            return;
        }
        local.flows.remove(&flow);
    }
}

/// Begins a flow; `None` if its datagrams are to be dropped one by one.
fn begin(local: &Rc<Local>, answer: &impl Answer, key: FlowKey) -> Option<Rc<Flow>> {
    let table = local.table();
    let frontend = table.0.frontend(key.destination, Transport::Udp)?;
    let target = frontend.target.as_ref()?;
    if !local.flows.make_room(local.limits.flows) {
        return None;
    }
    let answering = match answer.socket(key.destination) {
        Ok(answering) => answering,
        Err(error) => {
            tracing::warn!(address = %key.destination, "cannot answer from this address: {error}; dropping a datagram");
            return None;
        }
    };
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
        Ok(candidates) => match open(local, (target, frontend.kind), candidates, key, &mut record) {
            Some(flow) => (flow, Some(record)),
            None => {
                record.close(Outcome::ConnectFailed);
                return None;
            }
        },
    };
    let flow = Rc::new(flow);
    local.flows.insert(&flow);
    tokio::task::spawn_local(flow.clone().run(local.clone(), answering, record));
    Some(flow)
}

/// A flow to the endpoint that the balance chooses, or to the next one if there is no way to it.
fn open(
    local: &Local,
    (target, kind): (&Target, FrontendKind),
    candidates: &Candidates,
    key: FlowKey,
    record: &mut OpenConnection,
) -> Option<Flow> {
    let client = Client { address: key.client.ip(), hash: FlowHash::of_client(key.client.ip()) };
    let mut tried = Vec::new();
    while tried.len() < local.limits.attempts {
        let backend = local.choose(target, candidates, client, &tried)?;
        let started = Instant::now();
        let attempt = SpanContext { span: local.reporter.traces.span(), ..record.trace() };
        let (flow, via) = begin_to(local, (target, kind), key, backend, attempt);
        record.note(|record| {
            record.attempts.push(Attempt {
                backend: backend.clone(),
                started,
                // UDP has no handshake that would show whether somebody is there.
                connected: None,
                reused: false,
                via,
                took: started.elapsed(),
                status: None,
                outcome: if flow.is_ok() { Outcome::Complete } else { Outcome::ConnectFailed },
                span: attempt.span,
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

/// A flow to `backend`, whichever way its client asks for.
fn begin_to(
    local: &Local,
    (target, kind): (&Target, FrontendKind),
    key: FlowKey,
    backend: &Arc<Backend>,
    attempt: SpanContext,
) -> (io::Result<Flow>, Via) {
    let (client, agent) = match local.way(target, kind, key.client, backend) {
        Way::Direct(source) => return (Flow::open(local, key, backend, source), Via::Direct),
        Way::Hop { client, agent } => (client, agent),
    };
    let table = local.table();
    let hop = table.0.hop.as_ref();
    if local.upstream(agent).is_ejected(local.now()) {
        hop.into_iter().for_each(|hop| hop.state.counters.bypassed(Bypass::NoAgent));
        return (Flow::open(local, key, backend, Source::Node), Via::Bypassed(Bypass::NoAgent));
    }
    let said = Introduction {
        transport: Transport::Udp,
        client,
        destination: key.destination,
        service: target.service.clone(),
        endpoint: backend.address,
        entry: table.0.location.node.as_str().into(),
        trace: attempt,
    };
    (Flow::hand_over(local, key, backend, agent, said), Via::Hop)
}

impl Answer for Listener {
    fn socket(&self, _: SocketAddr) -> io::Result<Rc<UdpSocket>> {
        Ok(self.0.clone())
    }
}

impl Answer for Answering {
    fn socket(&self, destination: SocketAddr) -> io::Result<Rc<UdpSocket>> {
        let mut sockets = self.sockets.borrow_mut();
        if let Some(socket) = sockets.get(&destination).and_then(Weak::upgrade) {
            return Ok(socket);
        }
        if sockets.len() == sockets.capacity() {
            // Before it grows: most of it may be gone.
            sockets.retain(|_, socket| socket.strong_count() > 0);
        }
        let socket = Rc::new(UdpSocket::from_std(socket::answering(destination)?)?);
        sockets.insert(destination, Rc::downgrade(&socket));
        Ok(socket)
    }
}
