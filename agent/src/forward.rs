//! From a choice to an endpoint and back.

pub mod pool;
pub mod socket;
