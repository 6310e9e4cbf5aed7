//! Harness shared by the end-to-end tests, and the comparison with other proxies.

/// What Portico, HAProxy and nginx spend on the same work.
pub mod bench;
/// A plain client that says which address it comes from.
pub mod client;
/// The program itself, as child processes.
pub mod binary;
/// A whole Portico in one process.
pub mod stack;
