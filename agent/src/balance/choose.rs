//! The endpoint of a connection or request: the one that its client has, if the port has session affinity, else the one
//! that the balance picks.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use super::{
    flow::FlowHash,
    pick::{Load, LoadBound, pick, within},
    pin::{Pins, Tag},
};
use crate::table::{Backend, Candidates, Target};

/// What choices of one worker depend on, beside the connection.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'a> {
    /// Where clients went before.
    pub pins: &'a Pins,
    /// Round-robin turn.
    pub turn: &'a Cell<u32>,
    /// How full an endpoint may be for clients that are new to it.
    pub bound: LoadBound,
    /// The time.
    pub now: Instant,
}

/// Whom a choice is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Address on the packet: what session affinity goes by, whatever headers say (S8.6).
    pub address: IpAddr,
    /// What the ring goes by.
    pub hash: FlowHash,
}

// === impl Chooser ===

impl Chooser<'_> {
    /// Chooses the endpoint for the next attempt, leaving out those in `tried`.
    pub fn choose<'c>(
        &self,
        target: &Target,
        candidates: &'c Candidates,
        client: Client,
        load: impl Fn(&Backend) -> Load,
        tried: &[SocketAddr],
    ) -> Option<&'c Arc<Backend>> {
        let Some(affinity) = &target.affinity else {
            return pick(candidates, &target.balance, client.hash, self.turn, load, tried);
        };
        let key = self.pins.key(affinity, client.address);
        // An endpoint that failed lately is given up like one that is gone: its client is better served elsewhere.
        let usable = |backend: &&Arc<Backend>| !tried.contains(&backend.address) && !load(backend).ejected;
        let kept = self.pins.get(key, affinity, self.now).and_then(|tag| candidates.tagged(tag)).filter(usable);
        let bounded = || within(candidates, client.hash, self.bound, &load, tried);
        let chosen = kept.or_else(bounded);
        let chosen = chosen.or_else(|| pick(candidates, &target.balance, client.hash, self.turn, &load, tried))?;
        self.pins.set_to(key, Tag::of(chosen.address), self.now);
        Some(chosen)
    }
}
