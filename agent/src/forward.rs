//! From a choice to an endpoint and back.

pub mod pool;
pub mod socket;
pub mod splice;
pub mod tcp;
pub mod udp;
