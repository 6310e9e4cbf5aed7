//! A new connection to an endpoint, by whichever way.

use tokio::net::TcpStream;

use super::{
    hop::{self, Failed},
    socket::{Source, dial},
    source::Way,
};
use crate::{
    local::Local,
    report::{outcome::Outcome, record::Downstream, trace::SpanContext, via::Via},
    table::{Backend, Target},
};

/// Who is to be connected to what.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The connection of the client.
    pub downstream: &'a Downstream,
    /// The Service port.
    pub target: &'a Target,
    /// The endpoint chosen.
    pub backend: &'a Backend,
    /// The attempt, as its span will be.
    pub attempt: SpanContext,
}

/// Connects, waiting for at most the limit of connecting; where another agent is asked, for as long once more for each way.
/// Says also how the endpoint was reached, for better or worse.
///
/// # Errors
/// As of [`dial`]: after each of them nothing of a request has left.
pub async fn reach(local: &Local, way: Way, call: Call<'_>) -> (Result<TcpStream, Outcome>, Via) {
    let (address, limit) = (call.backend.address, local.limits.connect_timeout);
    let (source, via) = match way {
        Way::Direct(source) => (source, Via::Direct),
        // Boxed as below, because what waits for it is in the memory of every connection and request.
        Way::Hop { client, agent } => match Box::pin(hop::dial(local, agent, client, call)).await {
            Ok(stream) => return (Ok(stream), Via::Hop),
            Err(Failed::Endpoint(outcome)) => return (Err(outcome), Via::Hop),
            Err(Failed::Hop(bypass)) => (Source::Node, Via::Bypassed(bypass)),
        },
    };
    (Box::pin(dial(address, source, limit)).await, via)
}
