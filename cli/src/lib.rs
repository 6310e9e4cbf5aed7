//! The subcommands of `portico`, as a library, so that tests and other subcommands can run them in process.

/// The sample backend.
pub mod echo;
/// The state of a running gateway, for people and scripts.
pub mod get;
/// Where an agent finds gateways.
pub mod gateways;
/// The gateway and the agent as processes.
pub mod serve;
/// Everything in one process.
pub mod standalone;
