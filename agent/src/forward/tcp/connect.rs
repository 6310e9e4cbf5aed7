//! Choosing and reaching an endpoint for a connection that has no requests to choose for.

use std::time::Instant;

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
/// be reached the next one (S16.6), up to the limit of attempts. Each attempt is noted in `record`.
///
/// # Errors
/// How the last attempt failed.
pub async fn connect(
    local: &Local,
    target: &Target,
    candidates: &Candidates,
    downstream: &Downstream,
    record: &mut OpenConnection,
) -> Result<(TcpStream, Busy), Outcome> {
    let client = downstream.client.ip();
    let client = Client { address: client, hash: FlowHash::of_client(client) };
    let mut tried = Vec::new();
    let mut failure = Outcome::NoEndpoints;
    while tried.len() < local.limits.attempts {
        let Some(backend) = local.choose(target, candidates, client, &tried) else { break };
        let upstream = local.upstream(backend.address);
        let busy = upstream.busy();
        let started = Instant::now();
        let way = local.way(target, downstream.frontend, downstream.peer, backend);
        let attempt = SpanContext { span: local.reporter.traces.span(), ..record.trace() };
        let (dialed, via) = reach(local, way, Call { downstream, target, backend, attempt }).await;
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
                failure = outcome;
                tried.push(backend.address);
            }
        }
    }
    Err(failure)
}
