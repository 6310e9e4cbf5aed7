//! From the discovery stream to a table: the control loop of an agent.

pub mod programming;
pub mod resources;
pub mod zone;
pub mod hop;
pub mod compile;
pub mod control;
