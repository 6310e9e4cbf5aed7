//! From the discovery stream to a table: the control loop of an agent.

pub mod resources;
pub mod zone;
pub mod compile;
pub mod control;
