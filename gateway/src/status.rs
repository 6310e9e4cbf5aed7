//! What a gateway writes into a cluster: who leads, the addresses of load balancers, and Events about problems.
//!
//! Every replica serves streams; only the one that leads writes.

pub mod lease;
pub mod election;
pub mod events;
pub mod faults;
pub mod writer;

#[cfg(test)]
pub(crate) mod fixture;
