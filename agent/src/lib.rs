//! The data plane of one node.
//!
//! Data flows `apply -> table -> listen -> route -> balance -> forward -> report`; modules are listed in the order in
//! which they depend on each other, so what happens last to a connection comes first.

/// What happened, told once.
pub mod report;
/// How one agent hands a client to another, as bytes.
pub mod hop;
/// Which endpoint.
pub mod balance;
/// What a connection asks, compiled.
pub mod table;
/// Deadlines at a coarse clock.
pub mod alarm;
/// Memory to read into.
pub mod buffers;
/// HTTP/1.1 as bytes.
pub mod http1;
/// HTTP/2 around its codec.
pub mod http2;
/// To an endpoint and back.
pub mod forward;
/// What one worker owns.
pub mod local;
/// From a client to a decision.
pub mod listen;
/// Names of the cluster.
pub mod dns;
/// Threads that serve.
pub mod worker;
/// How often work that grows with the cluster is done.
pub mod duty;
/// Where gateways are, and how they are reached.
pub mod gateways;
/// From the discovery stream to a table.
pub mod apply;
/// What load balancers and probes are told.
pub mod health;
/// Packets of Services, led to the listeners.
pub mod intercept;
/// What the agent says of itself.
pub mod status;
/// Options, as typed and as used.
pub mod config;
/// All parts put together.
pub mod run;
