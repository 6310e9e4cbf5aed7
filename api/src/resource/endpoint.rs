//! One address behind one Service: the unit that changes when a Pod does.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use super::{
    invalid::{self, Invalid},
    name::NamespacedName,
    service::Transport,
};
use crate::proto::discovery as wire;

/// An address behind a Service, with the ports it offers there (S3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The Service it belongs to.
    pub service: NamespacedName,
    /// Where to dial.
    pub address: IpAddr,
    /// Port numbers by name and transport. One name may have several numbers (S3.5).
    pub ports: Vec<EndpointPort>,
    /// Takes new connections.
    pub ready: bool,
    /// Still answers.
    pub serving: bool,
    /// Its Pod is being deleted.
    pub terminating: bool,
    /// Node it runs on; empty is never local (S3.8).
    pub node: String,
    /// Zone it runs in; empty when unknown.
    pub zone: String,
    /// Zones it is hinted for (S4.2).
    pub hint_zones: Vec<String>,
    /// Nodes it is hinted for (S4.2).
    pub hint_nodes: Vec<String>,
    /// Its place on the ring, the same on every node.
    pub hash_key: String,
    /// Share of ring and random choice.
    pub weight: NonZeroU32,
    /// Name of its Pod, else empty.
    pub pod: String,
    /// Host name below the DNS name of the Service, else empty (S19.5).
    pub hostname: String,
    /// Tells apart endpoints of one Service that share an address but neither ports nor conditions; mostly empty.
    pub split: String,
}

/// A port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// Name of the Service port; empty for the unnamed one.
    pub name: String,
    /// Protocol below the port.
    pub transport: Transport,
    /// The number to dial.
    pub port: NonZeroU16,
}

// === impl Endpoint ===

impl Endpoint {
    /// A ready endpoint without ports, of which no more is known than where it is. Its place on the ring is that of its
    /// address.
    pub fn new(service: NamespacedName, address: IpAddr) -> Self {
        Self {
            service,
            address,
            ports: Vec::new(),
            ready: true,
            serving: true,
            terminating: false,
            node: String::new(),
            zone: String::new(),
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
            hash_key: address.to_string(),
            weight: NonZeroU32::MIN,
            pod: String::new(),
            hostname: String::new(),
            split: String::new(),
        }
    }

    /// `namespace/service/family/address`, with `/split` appended when the address stands for several endpoints.
    pub fn resource_name(&self) -> String {
        let family = if self.address.is_ipv4() { "ipv4" } else { "ipv6" };
        let base = format!("{}/{family}/{}", self.service, self.address);
        if self.split.is_empty() { base } else { format!("{base}/{}", self.split) }
    }

    /// Takes new connections (S4, "ready").
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Takes connections only when nothing is ready (S4, "draining").
    pub fn is_draining(&self) -> bool {
        !self.ready && self.serving && self.terminating
    }
}

impl TryFrom<wire::Endpoint> for Endpoint {
    type Error = Invalid;

    fn try_from(endpoint: wire::Endpoint) -> Result<Self, Invalid> {
        let parse = |(index, port): (usize, wire::EndpointPort)| {
            let field = format!("ports[{index}]");
            Ok(EndpointPort {
                transport: Transport::from_wire(&field, port.transport)?,
                port: invalid::port(&field, port.port)?,
                name: port.name,
            })
        };
        Ok(Endpoint {
            service: NamespacedName::parse(&endpoint.namespace, &endpoint.service)?,
            address: invalid::address("address", &endpoint.address)?,
            ports: endpoint.ports.into_iter().enumerate().map(parse).collect::<Result<_, Invalid>>()?,
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node: endpoint.node,
            zone: endpoint.zone,
            hint_zones: endpoint.hint_zones,
            hint_nodes: endpoint.hint_nodes,
            hash_key: invalid::required("hash_key", endpoint.hash_key)?,
            weight: NonZeroU32::new(endpoint.weight).ok_or_else(|| Invalid::new("weight", "is 0; give at least 1"))?,
            pod: endpoint.pod,
            hostname: endpoint.hostname,
            split: endpoint.split,
        })
    }
}

impl From<&Endpoint> for wire::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let sorted = |values: &[String]| {
            let mut values = values.to_vec();
            values.sort();
            values.dedup();
            values
        };
        let mut ports = endpoint.ports.clone();
        ports.sort();
        ports.dedup();
        let ports = ports.into_iter().map(|port| wire::EndpointPort {
            name: port.name,
            transport: port.transport.wire() as i32,
            port: port.port.get().into(),
        });
        wire::Endpoint {
            namespace: endpoint.service.namespace.to_string(),
            service: endpoint.service.name.to_string(),
            address: endpoint.address.to_string(),
            ports: ports.collect(),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node: endpoint.node.clone(),
            zone: endpoint.zone.clone(),
            hint_zones: sorted(&endpoint.hint_zones),
            hint_nodes: sorted(&endpoint.hint_nodes),
            hash_key: endpoint.hash_key.clone(),
            weight: endpoint.weight.get(),
            pod: endpoint.pod.clone(),
            hostname: endpoint.hostname.clone(),
            split: endpoint.split.clone(),
        }
    }
}
