//! A Node as the data plane needs it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::invalid::{self, Invalid};
use crate::proto::discovery as wire;

/// A node of the cluster (S1.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// `InternalIP` addresses, primary first.
    pub internal_addresses: Vec<IpAddr>,
    /// `ExternalIP` addresses.
    pub external_addresses: Vec<IpAddr>,
    /// `topology.kubernetes.io/region`, else empty.
    pub region: String,
    /// `topology.kubernetes.io/zone`, else empty.
    pub zone: String,
    /// Pod ranges of the node.
    pub pod_cidrs: Vec<IpNet>,
    /// Being deleted, or tainted `ToBeDeletedByClusterAutoscaler` (S13.2).
    pub leaving: bool,
    /// Left out by external load balancers (S14.1).
    pub excluded_from_load_balancers: bool,
}

// === impl Node ===

impl Node {
    /// Whether external load balancers may send traffic to it (S14.1). Whether it is healthy is for health checks to say.
    pub fn takes_external_traffic(&self) -> bool {
        !self.leaving && !self.excluded_from_load_balancers
    }
}

impl TryFrom<wire::Node> for Node {
    type Error = Invalid;

    fn try_from(node: wire::Node) -> Result<Self, Invalid> {
        Ok(Node {
            name: invalid::required("name", node.name)?,
            internal_addresses: invalid::addresses("internal_addresses", &node.internal_addresses)?,
            external_addresses: invalid::addresses("external_addresses", &node.external_addresses)?,
            region: node.region,
            zone: node.zone,
            pod_cidrs: invalid::networks("pod_cidrs", &node.pod_cidrs)?,
            leaving: node.leaving,
            excluded_from_load_balancers: node.excluded_from_load_balancers,
        })
    }
}

impl From<&Node> for wire::Node {
    fn from(node: &Node) -> Self {
        let strings = |addresses: &[IpAddr]| addresses.iter().map(IpAddr::to_string).collect();
        wire::Node {
            name: node.name.clone(),
            internal_addresses: strings(&node.internal_addresses),
            external_addresses: strings(&node.external_addresses),
            region: node.region.clone(),
            zone: node.zone.clone(),
            pod_cidrs: node.pod_cidrs.iter().map(IpNet::to_string).collect(),
            leaving: node.leaving,
            excluded_from_load_balancers: node.excluded_from_load_balancers,
        }
    }
}
