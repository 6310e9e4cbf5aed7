//! Who an agent is, and how it knows the gateway: TLS on the discovery port, and tokens that are bound to a node.
//!
//! A connection passes `accept` (TLS), a request `layer` (token), a stream [`peer::Peer::admit`] (the node it is for), and
//! from then on `peer::Lease` says when it has to end. Without authentication the same path is taken with a peer that may
//! be anyone.

/// Why somebody is not let in.
pub mod refusal;
/// The token of a request.
pub mod token;
/// Which Pods are agents.
pub mod roster;
/// What the API server vouches for.
pub mod review;
/// What it said lately.
pub mod cache;
/// From a request to a peer.
pub mod gate;
/// The other end of a stream.
pub mod peer;
/// The gate before the services of a port.
pub mod layer;
/// The certificate in force.
pub mod tls;
/// Connections of the discovery port.
pub mod accept;
/// Where certificates come from.
pub mod certificate;
/// Options.
pub mod config;

/// The audience of the tokens that agents show. A token for the API server is worth nothing here, and the other way round.
pub const AUDIENCE: &str = "portico-discovery";

/// The ServiceAccount that agents run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

// === impl Account ===

impl Account {
    /// Its name as a user of the API server.
    pub fn user_name(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}
