//! From a client to a decision.

pub mod detect;
pub mod open;
pub mod socket;
pub mod udp;
pub mod http;
pub mod tls;
pub mod hop;
pub mod tcp;
