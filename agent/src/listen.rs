//! From a client to a decision.

pub mod open;
pub mod socket;
