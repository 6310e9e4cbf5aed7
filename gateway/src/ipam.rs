//! Addresses and node ports for those who ask: pure, and stable under every change that does not force a move.

pub mod allocate;
pub mod pool;
pub mod load_balancer;
