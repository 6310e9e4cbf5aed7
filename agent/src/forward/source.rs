//! From which address an endpoint is dialled (S6).

use std::net::{IpAddr, SocketAddr};

use api::resource::service::ClientAddress;

use super::socket::Source;
use crate::table::{Backend, FrontendKind, Locality, Table, Target, verdict::ClientKind};

/// The source of a connection or flow to `backend` for `client`, who dialled an address of this kind.
///
/// The client's address is used only where the answers of the endpoint come through this node: endpoints on this node, and
/// clients that are Pods of this node.
pub fn choose(table: &Table, target: &Target, kind: FrontendKind, client: SocketAddr, backend: &Backend) -> Source {
    let ip = client.ip();
    let returns = backend.locality == Locality::Node || lives_here(table, ip);
    let same_family = ip.is_ipv4() == backend.address.is_ipv4();
    if returns && same_family && keeps(table, target, kind, ip, backend) {
        Source::Client(client)
    } else {
        Source::Node
    }
}

/// Whether the endpoint is to see the client's address.
fn keeps(table: &Table, target: &Target, kind: FrontendKind, client: IpAddr, backend: &Backend) -> bool {
    let (from, endpoint) = (table.client_kind(client), backend.address.ip());
    match target.client_address {
        ClientAddress::Keep => from != ClientKind::Node && client != endpoint,
        ClientAddress::Pool => false,
        // Requests of many clients share connections, so that there is no one client to show.
        ClientAddress::Auto if target.protocol.is_http() => false,
        ClientAddress::Auto => target.keeps_client(kind, client, from, endpoint),
    }
}

/// Whether a Pod of this node has the address.
fn lives_here(table: &Table, address: IpAddr) -> bool {
    let here = &table.location.node;
    table.workloads.get(&address).is_some_and(|workload| !here.is_empty() && workload.node == *here)
}

#[cfg(test)]
mod tests;
