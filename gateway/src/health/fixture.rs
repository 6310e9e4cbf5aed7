//! What tests put in: objects as resources, reports, and points in time.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc, time::Duration};

use api::{
    proto::node::{NodeServingState, NodeStatus, ReportNodeStatusRequest, ServiceFault},
    resource::{
        Resource,
        endpoint::{Endpoint, EndpointPort},
        name::NamespacedName,
        node::Node,
        service::{AppProtocol, Service, ServicePort, ServiceType, TrafficPolicy, Transport},
    },
};

use super::moment::Moment;
use crate::snapshot::store::{Change, Store};

/// The lease in tests.
pub const TERM: Duration = Duration::from_secs(15);

impl Moment {
    /// So much later.
    pub fn after(self, time: Duration) -> Self {
        Self { instant: self.instant + time, wall: self.wall + time }
    }
}

pub fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        internal_addresses: vec![IpAddr::from([10, 0, 0, 1])],
        external_addresses: vec![],
        region: "r1".to_owned(),
        zone: "z1".to_owned(),
        pod_cidrs: vec![],
        leaving: false,
        excluded_from_load_balancers: false,
    }
}

pub fn set(node: Node) -> Change {
    Change::Set(Resource::Node(node))
}

/// A NodePort Service `default/NAME`.
pub fn service(name: &str, external_policy: TrafficPolicy) -> Service {
    Service {
        ports: vec![ServicePort {
            name: String::new(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(80).unwrap(),
            node_port: NonZeroU16::new(30080),
            protocol: AppProtocol::Http,
            terminate_tls: false,
        }],
        external_policy,
        ..Service::new(NamespacedName::new("default", name), ServiceType::NodePort)
    }
}

pub fn serve(service: Service) -> Change {
    Change::Set(Resource::Service(Box::new(service)))
}

/// An endpoint of `default/SERVICE` at 10.1.0.LAST that is ready.
pub fn endpoint(service: &str, last: u8, node: &str) -> Endpoint {
    let address = IpAddr::from([10, 1, 0, last]);
    Endpoint {
        ports: vec![EndpointPort {
            name: String::new(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(8080).unwrap(),
        }],
        node: node.to_owned(),
        ..Endpoint::new(NamespacedName::new("default", service), address)
    }
}

pub fn place(endpoint: Endpoint) -> Change {
    Change::Set(Resource::Endpoint(Box::new(endpoint)))
}

/// A store that holds these nodes.
pub fn store(nodes: &[&str]) -> Arc<Store> {
    let store = Arc::new(Store::new());
    store.commit(nodes.iter().map(|name| set(node(name))));
    store
}

pub fn status(node: &str, instance: &str, state: NodeServingState) -> NodeStatus {
    NodeStatus {
        node_name: node.to_owned(),
        instance_id: instance.to_owned(),
        state: state as i32,
        ..Default::default()
    }
}

/// What a Service `default/NAME` suffers from.
pub fn fault(service: &str, reason: &str) -> ServiceFault {
    ServiceFault {
        service: format!("default/{service}"),
        node_port: 30080,
        reason: reason.to_owned(),
        ..Default::default()
    }
}

pub fn request(status: NodeStatus) -> ReportNodeStatusRequest {
    ReportNodeStatusRequest { sequence: 1, status: Some(status) }
}

pub fn renewal() -> ReportNodeStatusRequest {
    ReportNodeStatusRequest { sequence: 2, status: None }
}
