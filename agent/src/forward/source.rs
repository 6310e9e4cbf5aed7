//! From which address an endpoint is dialled, and by whom (S6).

use std::net::{IpAddr, SocketAddr};

use api::resource::service::ClientAddress;

use super::socket::Source;
use crate::table::{Backend, FrontendKind, Locality, Table, Target};

/// The way to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is dialled from here.
    Direct(Source),
    /// The agent of its node dials it as the client.
    Hop {
        /// The client.
        client: SocketAddr,
        /// Where that agent is.
        agent: SocketAddr,
    },
}

/// The way of a connection or flow to `backend` for `client`, who dialled an address of this kind.
///
/// The client's address can be used only where the answers of the endpoint come through this node: endpoints on this node,
/// and clients that are Pods of this node. For all others there is the hop.
pub fn choose(table: &Table, target: &Target, kind: FrontendKind, client: SocketAddr, backend: &Backend) -> Way {
    let ip = client.ip();
    let same_family = ip.is_ipv4() == backend.address.is_ipv4();
    if !same_family || !keeps(table, target, kind, ip, backend) {
        return Way::Direct(Source::Node);
    }
    if backend.locality == Locality::Node || lives_here(table, ip) {
        return Way::Direct(Source::Client(client));
    }
    let agent = table.hop.as_ref().and_then(|hop| hop.agent_of(backend));
    agent.map_or(Way::Direct(Source::Node), |agent| Way::Hop { client, agent })
}

// === impl Way ===

impl Way {
    /// The client whose address the endpoint sees.
    pub fn client(self) -> Option<IpAddr> {
        match self {
            Way::Direct(source) => source.client(),
            Way::Hop { client, .. } => Some(client.ip()),
        }
    }
}

/// Whether the endpoint is to see the client's address.
fn keeps(table: &Table, target: &Target, kind: FrontendKind, client: IpAddr, backend: &Backend) -> bool {
    let (from, endpoint) = (table.client_kind(client), backend.address.ip());
    match target.client_address {
        ClientAddress::Pool => false,
        // Connections that clients could share are kept apart only where policies for Pods rely on it (S6.1); of the
        // others X-Forwarded-For tells.
        ClientAddress::Auto if target.protocol.is_http() => target.keeps_client(kind, client, from, endpoint),
        ClientAddress::Auto | ClientAddress::Keep => target.can_keep_client(client, from, endpoint),
    }
}

/// Whether a Pod of this node has the address.
fn lives_here(table: &Table, address: IpAddr) -> bool {
    let here = &table.location.node;
    table.workloads.get(&address).is_some_and(|workload| !here.is_empty() && workload.node == *here)
}

#[cfg(test)]
mod tests;
