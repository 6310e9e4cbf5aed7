//! The exit of the hop: another agent brings a client for an endpoint of this node, which is dialled as that client.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

use api::resource::service::Transport;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

pub mod datagrams;

use crate::{
    forward::{
        socket::{Source, dial, reset_on_close},
        tcp::copy,
    },
    hop::{
        answer::Answer,
        introduction::{self, Introduction},
        proxy::{self, PREFIX},
        seal::Refusal,
    },
    local::{Busy, Local},
    report::{
        outcome::Outcome,
        record::{Attempt, ClientSource, Downstream, OpenConnection},
        via::Via,
    },
    table::{
        FrontendKind,
        hop::{Exit, ExitKey, Hop},
    },
};

/// Serves a connection to the port for other agents, until it is over. Who has no right to it is told nothing.
pub async fn serve(local: Rc<Local>, mut stream: TcpStream, peer: SocketAddr) {
    let table = local.table();
    let Some(hop) = &table.0.hop else { return reset_on_close(&stream) };
    let said = match hear(&local, hop, &mut stream).await {
        Ok(said) => said,
        Err(refusal) => {
            reset_on_close(&stream);
            return refuse(hop, peer, refusal);
        }
    };
    let exit = find(hop, &said, Transport::Tcp);
    drop(table);
    let Some(exit) = exit else {
        // Whether it arrives is for the other agent to see.
        let _ = stream.write_all(&[Answer::Unknown.byte()]).await;
        return;
    };
    pass(&local, stream, peer, &said, exit).await;
}

/// Counts and tells who was not believed.
fn refuse(hop: &Hop, peer: SocketAddr, refusal: Refusal) {
    if hop.state.counters.refused(refusal, SystemTime::now()) {
        let reason = refusal.label();
        tracing::warn!(%peer, reason, "refused at the port for other agents: {refusal}");
    }
}

/// The endpoint that is asked for over this transport.
fn find(hop: &Hop, said: &Introduction, transport: Transport) -> Option<Exit> {
    let key = ExitKey { service: said.service.clone(), endpoint: said.endpoint, transport: said.transport };
    let exit = hop.exits.get(&key).filter(|_| said.transport == transport).cloned();
    if exit.is_none() {
        tracing::debug!(endpoint = %said.endpoint, service = %said.service, "not an endpoint of this node");
    }
    exit
}

/// The header, if it may be believed. Not a byte after it is read.
async fn hear(local: &Local, hop: &Hop, stream: &mut TcpStream) -> Result<Introduction, Refusal> {
    let header = timeout(local.limits.header_timeout, read(stream)).await.unwrap_or(Err(Refusal::Late))?;
    hop.state.open(&hop.keys, &header, SystemTime::now())
}

async fn read(stream: &mut TcpStream) -> Result<Vec<u8>, Refusal> {
    let truncated = |_| malformed(proxy::Error::Truncated);
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix).await.map_err(truncated)?;
    let mut header = vec![0; proxy::length(&prefix).map_err(malformed)?];
    header[..PREFIX].copy_from_slice(&prefix);
    stream.read_exact(&mut header[PREFIX..]).await.map_err(truncated)?;
    Ok(header)
}

fn malformed(error: proxy::Error) -> Refusal {
    Refusal::Malformed(introduction::Error::Header(error))
}

/// Dials the endpoint as the client, says how that went, and carries bytes.
async fn pass(local: &Rc<Local>, mut stream: TcpStream, peer: SocketAddr, said: &Introduction, exit: Exit) {
    let mut record = open(local, peer, said, &exit, "tcp");
    let dialled = connect(local, said, &exit, &mut record).await;
    let answer = dialled.as_ref().err().map_or(Answer::Connected, |outcome| Answer::Failed(*outcome));
    drop(exit);
    let told = stream.write_all(&[answer.byte()]).await;
    match dialled {
        Ok((upstream, busy)) if told.is_ok() => {
            let copied = copy::sockets(local, &stream, &upstream, Vec::new(), local.limits.tcp_idle_timeout).await;
            drop(busy);
            record.note(|record| (record.received, record.sent) = (copied.received, copied.sent));
            record.close(copied.outcome);
        }
        Ok((upstream, _)) => {
            reset_on_close(&upstream);
            record.close(Outcome::ClientClosed);
        }
        Err(outcome) => record.close(outcome),
    }
}

/// The record, within the trace of the other agent.
fn open(
    local: &Rc<Local>,
    peer: SocketAddr,
    said: &Introduction,
    exit: &Exit,
    protocol: &'static str,
) -> OpenConnection {
    let downstream = Downstream {
        peer,
        local: said.destination,
        client: said.client,
        client_source: ClientSource::ProxyV2,
        frontend: FrontendKind::Hop,
        server_name: None,
        tls: false,
    };
    let mut record = local.reporter.connection(Arc::new(downstream), protocol);
    let trace = local.reporter.traces.request(Some(said.trace));
    record.note(|record| {
        record.target = Some(exit.target.for_long());
        record.entry_node = said.entry.clone();
        record.trace = trace;
    });
    record
}

async fn connect(
    local: &Local,
    said: &Introduction,
    exit: &Exit,
    record: &mut OpenConnection,
) -> Result<(TcpStream, Busy), Outcome> {
    let upstream = local.upstream(said.endpoint);
    let busy = upstream.busy();
    let started = Instant::now();
    let dialled = dial(said.endpoint, Source::Client(said.client), local.limits.connect_timeout).await;
    let took = started.elapsed();
    let span = local.reporter.traces.span();
    record.note(|record| {
        record.attempts.push(Attempt {
            backend: exit.backend.clone(),
            started,
            connected: dialled.is_ok().then_some(took),
            reused: false,
            via: Via::Direct,
            took,
            status: None,
            outcome: dialled.as_ref().err().copied().unwrap_or(Outcome::Complete),
            span,
        });
    });
    match dialled {
        Ok(_) => upstream.succeeded(),
        Err(_) => upstream.failed(local.now()),
    }
    dialled.map(|stream| (stream, busy))
}
