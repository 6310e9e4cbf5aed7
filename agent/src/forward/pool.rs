//! HTTP connections to one endpoint, kept by one worker.

/// Idle connections of one worker to one endpoint address.
#[derive(Default)]
pub struct Pool {}

// === impl Pool ===

impl Pool {
    /// Closes what is idle; requests in flight go on.
    pub fn clear(&self) {}
}
