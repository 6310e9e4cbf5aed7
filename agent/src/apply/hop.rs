//! What the resources say about the hop between agents.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use api::resource::{hop_keys::HopKeys, node::Node, service::Transport};

use super::resources::Resources;
use crate::{
    hop::{State, seal::Keys},
    table::{
        Location, Map,
        hop::{Exit, ExitKey, Hop},
    },
};

/// Compiles it, one state after the other.
#[derive(Debug, Default)]
pub struct HopCompiler {
    /// Where agents listen, and what outlives tables. `None` where nothing is intercepted, or it is turned off.
    on: Option<(NonZeroU16, Arc<State>)>,
    /// The keys, as sent and as used.
    keys: Option<(HopKeys, Arc<Keys>)>,
}

// === impl HopCompiler ===

impl HopCompiler {
    /// Of an agent that listens at this port.
    pub fn new(port: NonZeroU16, state: Arc<State>) -> Self {
        Self { on: Some((port, state)), keys: None }
    }

    /// Whether there is a hop once the gateway has sent keys.
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// The hop of a table. `exits` are all endpoints of this node.
    pub fn compile<'a>(
        &mut self,
        here: &Location,
        resources: &Resources,
        exits: impl Iterator<Item = &'a Exit>,
    ) -> Option<Arc<Hop>> {
        let (port, state) = self.on.clone()?;
        let keys = self.keys(resources.hop_keys()?);
        let others = resources.nodes().filter(|node| node.name != here.node);
        let exits = exits.filter(|exit| !here.addresses.contains(&exit.backend.address.ip()));
        let exits: Map<ExitKey, Exit> = exits.map(|exit| (key(exit), exit.clone())).collect();
        let udp = exits.keys().filter(|exit| exit.transport == Transport::Udp);
        Some(Arc::new(Hop {
            port,
            keys,
            nodes: others.filter_map(|node| Some((node.name.as_str().into(), addresses(node).next()?))).collect(),
            node_addresses: resources.nodes().flat_map(addresses).collect(),
            serving: udp.map(|exit| exit.endpoint).collect(),
            exits,
            state,
        }))
    }

    fn keys(&mut self, sent: &HopKeys) -> Arc<Keys> {
        match &self.keys {
            Some((known, keys)) if known == sent => keys.clone(),
            _ => {
                let keys = Arc::new(Keys::new(sent));
                self.keys = Some((sent.clone(), keys.clone()));
                keys
            }
        }
    }
}

fn key(exit: &Exit) -> ExitKey {
    let (service, transport) = (exit.target.service.clone(), exit.target.transport);
    ExitKey { service, endpoint: exit.backend.address, transport }
}

/// The addresses of a node. At the first one its agent listens for others.
fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    node.internal_addresses.iter().chain(&node.external_addresses).copied()
}
