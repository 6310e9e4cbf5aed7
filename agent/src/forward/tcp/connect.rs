//! Choosing and reaching an endpoint for a connection that has no requests to choose for.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use api::resource::service::Transport;
use tokio::net::TcpStream;

use crate::{
    balance::{choose::Client, flow::FlowHash},
    forward::reach::{Call, reach},
    local::{Busy, Local},
    report::{
        outcome::Outcome,
        record::{Attempt, Downstream, OpenConnection},
        trace::SpanContext,
    },
    table::{Candidates, Target},
};

/// Connects to an endpoint of `target` for the client of `downstream`: the one that the balance chooses, and if it cannot
/// be reached the next one (S16.6), up to the limit of attempts. Where all have refused, as the Pods of a rollout do that
/// ends, it waits a moment for those that replace them. Each attempt is noted in `record`.
///
/// # Errors
/// What policy says, or how the last attempt failed.
pub async fn connect(
    local: &Local,
    target: &Arc<Target>,
    downstream: &Downstream,
    record: &mut OpenConnection,
) -> Result<(TcpStream, Busy), Outcome> {
    let client = downstream.client.ip();
    let client = Client { address: client, hash: FlowHash::of_client(client) };
    let mut target = target.clone();
    let mut tried = Vec::new();
    let mut failure = None;
    let mut limit = local.limits.attempts;
    loop {
        let backend = match candidates(local, &target, downstream) {
            Ok(candidates) => local.choose(&target, candidates, client, &tried),
            Err(outcome) if failure.is_none() => return Err(outcome),
            Err(_) => None,
        };
        let Some(backend) = backend else {
            let Some(next) = local.replaced(&tried, || untried(local, &target, downstream, &tried)).await else {
                break;
            };
            (target, limit) = (next, tried.len() + local.limits.attempts);
            continue;
        };
        if tried.len() >= limit {
            break;
        }
        let upstream = local.upstream(backend.address);
        let busy = upstream.busy();
        let started = Instant::now();
        let way = local.way(&target, downstream.frontend, downstream.peer, backend);
        let attempt = SpanContext { span: local.reporter.traces.span(), ..record.trace() };
        let (dialed, via) = reach(local, way, Call { downstream, target: &target, backend, attempt }).await;
        let took = started.elapsed();
        record.note(|record| {
            record.attempts.push(Attempt {
                backend: backend.clone(),
                started,
                connected: dialed.is_ok().then_some(took),
                reused: false,
                via,
                took,
                status: None,
                outcome: dialed.as_ref().err().copied().unwrap_or(Outcome::Complete),
                span: attempt.span,
            });
        });
        match dialed {
            Ok(stream) => {
                upstream.succeeded();
                return Ok((stream, busy));
            }
            Err(outcome) => {
                upstream.failed(local.now());
                failure = Some(outcome);
                tried.push(backend.address);
            }
        }
        // The attempt may have taken seconds, in which the endpoints of a rollout are replaced.
        target = newer(local, &target, downstream).unwrap_or(target);
    }
    Err(failure.unwrap_or(Outcome::NoEndpoints))
}

/// What the client of `downstream` may be sent to.
///
/// # Errors
/// The outcome of a connection that policy refuses.
pub fn candidates<'a>(local: &Local, target: &'a Target, downstream: &Downstream) -> Result<&'a Candidates, Outcome> {
    let client = downstream.client.ip();
    target.verdict(downstream.frontend, client, || local.table().0.client_kind(client)).candidates()
}

/// The same port of the same Service, by the table of this moment; `None` if the address that was dialled is not its any
/// more.
fn newer(local: &Local, target: &Target, downstream: &Downstream) -> Option<Arc<Target>> {
    let table = local.table();
    let newer = table.0.frontend(downstream.local, Transport::Tcp)?.target.as_ref()?;
    ((&newer.service, newer.port) == (&target.service, target.port)).then(|| newer.clone())
}

/// As [`newer`], if it has an endpoint that was not tried.
fn untried(local: &Local, target: &Target, downstream: &Downstream, tried: &[SocketAddr]) -> Option<Arc<Target>> {
    let newer = newer(local, target, downstream)?;
    let has = candidates(local, &newer, downstream).is_ok_and(|candidates| candidates.has_other(tried));
    has.then_some(newer)
}
