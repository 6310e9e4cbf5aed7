//! Where objects come from. Every source feeds the same events into one channel.

pub mod manifest;
pub mod object;
