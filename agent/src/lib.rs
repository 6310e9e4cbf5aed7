//! The data plane of one node.
//!
//! Data flows `apply -> table -> listen -> route -> balance -> forward -> report`; modules are listed in the order in
//! which they depend on each other, so what happens last to a connection comes first.

/// Which endpoint.
pub mod balance;
/// To an endpoint and back.
pub mod forward;
/// What one worker owns.
pub mod local;
/// What happened, told once.
pub mod report;
/// What a connection asks, compiled.
pub mod table;
