//! Load-balancer addresses (S11): what pools have, what Services ask for, and who gets what.
//!
//! All of it is a function of the Services, the pools and what was granted before. What is granted is written into
//! the status of a Service by others, and read from there after a restart (S11.10).

pub mod assign;
pub mod memory;
pub mod pool;
pub mod request;
