//! Facts about the whole cluster.

use ipnet::IpNet;

use super::invalid::{self, Invalid};
use crate::proto::discovery as wire;

/// Settings of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// DNS domain, without dots at its ends.
    pub cluster_domain: String,
    /// ClusterIP ranges; empty when unknown (S1.4).
    pub service_cidrs: Vec<IpNet>,
    /// First and last port of the node-port range.
    pub node_ports: (u16, u16),
}

// === impl Settings ===

impl TryFrom<wire::Settings> for Settings {
    type Error = Invalid;

    fn try_from(settings: wire::Settings) -> Result<Self, Invalid> {
        let number = |field: &str, value: u32| Ok(invalid::optional_port(field, value)?.map_or(0, |port| port.get()));
        Ok(Settings {
            cluster_domain: invalid::required("cluster_domain", settings.cluster_domain)?,
            service_cidrs: invalid::networks("service_cidrs", &settings.service_cidrs)?,
            node_ports: (
                number("node_port_first", settings.node_port_first)?,
                number("node_port_last", settings.node_port_last)?,
            ),
        })
    }
}

impl From<&Settings> for wire::Settings {
    fn from(settings: &Settings) -> Self {
        wire::Settings {
            cluster_domain: settings.cluster_domain.clone(),
            service_cidrs: settings.service_cidrs.iter().map(IpNet::to_string).collect(),
            node_port_first: settings.node_ports.0.into(),
            node_port_last: settings.node_ports.1.into(),
        }
    }
}
