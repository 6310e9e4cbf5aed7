//! Which Pod owns an address: who a client is, and in which namespace its short names resolve.

use std::net::IpAddr;

use super::{
    invalid::{self, Invalid},
    name::NamespacedName,
};
use crate::proto::discovery as wire;

/// A Pod with an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Address of the Pod.
    pub address: IpAddr,
    /// Namespace and name of the Pod.
    pub pod: NamespacedName,
    /// Node it runs on; empty when unknown.
    pub node: String,
}

// === impl Workload ===

impl TryFrom<wire::Workload> for Workload {
    type Error = Invalid;

    fn try_from(workload: wire::Workload) -> Result<Self, Invalid> {
        Ok(Workload {
            address: invalid::address("address", &workload.address)?,
            pod: NamespacedName::parse(&workload.namespace, &workload.pod)?,
            node: workload.node,
        })
    }
}

impl From<&Workload> for wire::Workload {
    fn from(workload: &Workload) -> Self {
        wire::Workload {
            address: workload.address.to_string(),
            namespace: workload.pod.namespace.to_string(),
            pod: workload.pod.name.to_string(),
            node: workload.node.clone(),
        }
    }
}
