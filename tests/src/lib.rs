//! Harness shared by the end-to-end tests, and the comparison with other proxies.

/// What Portico, HAProxy and nginx spend on the same work.
pub mod bench;
