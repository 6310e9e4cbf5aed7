//! The hop between agents: how one node hands another a connection whose client the endpoint is to see.
//!
//! A node can dial as the client only endpoints whose answers come through it, which are its own. So the node that a client
//! entered by (the entry node) connects to the agent of the endpoint's node (the exit node), says who the client is in a
//! PROXY header, and sends the bytes as they are; that agent dials the endpoint as the client. Who may say such a thing is
//! decided by a code over the header, made with a key that only agents of the cluster are told.
//!
//! Nothing here does IO: `forward::hop` is the entry, `listen::hop` the exit.

/// PROXY protocol, version 2.
pub mod proxy;
/// Who is handed over to whom.
pub mod introduction;
/// Which headers came before.
pub mod seen;
/// Who may hand over.
pub mod seal;
/// What the exit says to it.
pub mod answer;
/// The same between datagrams.
pub mod datagram;
/// What went wrong, counted.
pub mod counters;

use std::time::SystemTime;

use self::{
    counters::Counters,
    introduction::Introduction,
    seal::{Keys, Refusal},
    seen::Seen,
};

/// Headers that are remembered at a time: eight thousand a second, in 2 MiB.
const NONCES: usize = 1 << 17;

/// What an agent keeps for the hop beside its tables.
#[derive(Debug)]
pub struct State {
    /// What went wrong.
    pub counters: Counters,
    seen: Seen,
    /// Headers from before are unknown here, so they are not believed.
    began: SystemTime,
}

// === impl State ===

impl State {
    /// Of an agent that begins.
    pub fn new(now: SystemTime) -> Self {
        Self { counters: Counters::default(), seen: Seen::new(NONCES), began: now }
    }

    /// What a header says, if it may, for this one time.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open(&self, keys: &Keys, header: &[u8], now: SystemTime) -> Result<Introduction, Refusal> {
        keys.open(header, now, self.began, &self.seen)
    }
}
