//! From a choice to an endpoint and back.

pub mod pool;
pub mod socket;
pub mod source;
pub mod hop;
pub mod reach;
pub mod splice;
pub mod tcp;
pub mod answer;
pub mod body;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod http;
pub mod outbox;
pub mod reply;
pub mod retry;
pub mod tunnel;
pub mod udp;
