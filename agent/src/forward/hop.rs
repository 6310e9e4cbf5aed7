//! The entry of the hop: asks the agent of an endpoint's node to dial it as the client.
//!
//! Which nodes have an agent is not written down anywhere: the one that answers at its hop port is there at this moment, and
//! what was not there is left alone for a while, as endpoints are.

use std::{net::SocketAddr, time::SystemTime};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    reach::Call,
    socket::{self, Source},
};
use crate::{
    hop::{answer::Answer, introduction::Introduction},
    local::Local,
    report::{outcome::Outcome, via::Bypass},
    table::hop::Hop,
};

/// Why there is no connection by this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The endpoint could not be connected to, from its own node.
    Endpoint(Outcome),
    /// The hop could not be taken; the endpoint may be well.
    Hop(Bypass),
}

/// A connection to the endpoint of `call` that the agent there has made as `client`.
///
/// # Errors
/// [`Failed`]. Nothing of what the client sends has left then.
pub async fn dial(local: &Local, agent: SocketAddr, client: SocketAddr, call: Call<'_>) -> Result<TcpStream, Failed> {
    let table = local.table();
    let Some(hop) = &table.0.hop else { return Err(Failed::Hop(Bypass::NoAgent)) };
    let bypassed = |bypass| {
        hop.state.counters.bypassed(bypass);
        Err(Failed::Hop(bypass))
    };
    let neighbour = local.upstream(agent);
    if neighbour.is_ejected(local.now()) {
        return bypassed(Bypass::NoAgent);
    }
    let asked = async { ask(hop, agent, client, call, local).await };
    // The other agent needs as long to connect as this one would, beside the way to it.
    let answer = timeout(local.limits.connect_timeout * 2, asked).await.unwrap_or(Err(Bypass::Refused));
    match answer {
        Ok((stream, Answer::Connected)) => {
            neighbour.succeeded();
            Ok(stream)
        }
        Ok((_, Answer::Failed(outcome))) => {
            neighbour.succeeded();
            Err(Failed::Endpoint(outcome))
        }
        // Tables differ for a moment whenever endpoints change; that is no fault of the agent.
        Ok((_, Answer::Unknown)) => bypassed(Bypass::Unknown),
        Err(bypass) => {
            if neighbour.is_well() {
                let node = &call.backend.node;
                tracing::warn!(%node, %agent, "cannot hand connections to this node: {bypass}; its endpoints see this node");
            }
            neighbour.failed(local.now());
            bypassed(bypass)
        }
    }
}

/// Sends the header, and waits for what is said to it.
async fn ask(
    hop: &Hop,
    agent: SocketAddr,
    client: SocketAddr,
    call: Call<'_>,
    local: &Local,
) -> Result<(TcpStream, Answer), Bypass> {
    let table = local.table();
    let introduction = Introduction {
        transport: call.target.transport,
        client,
        destination: call.downstream.local,
        service: call.target.service.clone(),
        endpoint: call.backend.address,
        entry: table.0.location.node.as_str().into(),
        trace: call.attempt,
    };
    let mut stream =
        socket::dial(agent, Source::Node, local.limits.connect_timeout).await.map_err(|_: Outcome| Bypass::NoAgent)?;
    // It is made as late as can be: it is good for a while only.
    let header = hop.keys.seal(&introduction, SystemTime::now()).map_err(|error| {
        tracing::warn!(%client, "cannot make a hop header: {error}");
        Bypass::Refused
    })?;
    stream.write_all(&header).await.map_err(|_| Bypass::Refused)?;
    let answer = stream.read_u8().await.map_err(|_| Bypass::Refused)?;
    let answer = Answer::from_byte(answer).ok_or(Bypass::Refused)?;
    Ok((stream, answer))
}
