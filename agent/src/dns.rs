//! DNS on the node: authoritative for the cluster domain, everything else is forwarded (S19).

/// A question to what the zone says of it.
pub mod answer;
/// Messages of clients, and answers that fit them.
pub mod message;
/// What other servers replied.
pub mod reply;
/// Replies kept for a while.
pub mod cache;
/// What was asked and how it ended, counted.
pub mod metrics;
/// Whom to ask.
pub mod servers;
/// Asking them.
pub mod upstream;
/// UDP and TCP.
pub mod serve;
/// The link-local address.
pub mod address;
/// Sockets, and when to open them.
pub mod open;
