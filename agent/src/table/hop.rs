//! What a table says about the hop between agents.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use api::resource::{name::NamespacedName, service::Transport};

use super::{Backend, Map, Set, Target};
use crate::hop::{State, seal::Keys};

/// All of it; there only where traffic is intercepted and the gateway has sent keys.
#[derive(Debug)]
pub struct Hop {
    /// Where the agents of all nodes listen.
    pub port: NonZeroU16,
    /// By which they know each other.
    pub keys: Arc<Keys>,
    /// The address of each other node, by its name.
    pub nodes: Map<Box<str>, IpAddr>,
    /// Every address of every node.
    pub node_addresses: Set<IpAddr>,
    /// The endpoints of this node that other nodes may ask for.
    pub exits: Map<ExitKey, Exit>,
    /// Those of them that serve UDP: flows to these live on (S16.2).
    pub serving: Set<SocketAddr>,
    /// What outlives the table.
    pub state: Arc<State>,
}

/// What other nodes ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExitKey {
    /// The Service.
    pub service: NamespacedName,
    /// Where its endpoint listens.
    pub endpoint: SocketAddr,
    /// For what.
    pub transport: Transport,
}

/// An endpoint of this node.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The Service port.
    pub target: Arc<Target>,
    /// The endpoint.
    pub backend: Arc<Backend>,
}

// === impl Hop ===

impl Hop {
    /// Where the agent is that can dial an endpoint as its client; `None` if there can be none. A Pod that shares the
    /// addresses of its node answers its clients directly, past every agent.
    pub fn agent_of(&self, backend: &Backend) -> Option<SocketAddr> {
        let node = *self.nodes.get(&backend.node)?;
        let shared = self.node_addresses.contains(&backend.address.ip());
        (!shared).then_some(SocketAddr::new(node, self.port.get()))
    }

    /// Where the agents of other nodes are.
    pub fn agents(&self) -> impl Iterator<Item = SocketAddr> {
        self.nodes.values().map(|node| SocketAddr::new(*node, self.port.get()))
    }
}
