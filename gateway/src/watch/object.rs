//! The inputs of the gateway as typed objects, whatever source they come from.
//!
//! What no later stage reads is dropped at the door, because a cluster has many objects and each of them stays in memory.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Endpoints, Namespace, Node, Pod, PodSpec, Secret, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::address_pool::AddressPool;

/// Prefix of the annotations that are ours.
pub const ANNOTATION_PREFIX: &str = "portico.dev/";

/// Finalizer of Services of type LoadBalancer, until what belongs to their address is cleaned up (S11.2).
pub const LOAD_BALANCER_CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Where the slice controller says when the change of a Pod or Service began that it writes down (S20).
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A kind of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Service,
    EndpointSlice,
    Endpoints,
    Pod,
    Node,
    Secret,
    Namespace,
    AddressPool,
    ServiceCIDR,
}

/// Names one input object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// One input object. Cloning shares it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Object {
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Endpoints(Arc<Endpoints>),
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    Secret(Arc<Secret>),
    Namespace(Arc<Namespace>),
    AddressPool(Arc<AddressPool>),
    ServiceCIDR(Arc<ServiceCIDR>),
}

/// A change of the inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// These are all objects of the kind; others that were known are gone.
    Reset(Kind, Vec<Object>),
    /// A new or changed object.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
}

// === impl Kind ===

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 9] = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Endpoints,
        Kind::Pod,
        Kind::Node,
        Kind::Secret,
        Kind::Namespace,
        Kind::AddressPool,
        Kind::ServiceCIDR,
    ];

    /// The name as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Endpoints => "Endpoints",
            Kind::Pod => "Pod",
            Kind::Node => "Node",
            Kind::Secret => "Secret",
            Kind::Namespace => "Namespace",
            Kind::AddressPool => "AddressPool",
            Kind::ServiceCIDR => "ServiceCIDR",
        }
    }

    /// The name in paths of the API.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Endpoints => "endpoints",
            Kind::Pod => "pods",
            Kind::Node => "nodes",
            Kind::Secret => "secrets",
            Kind::Namespace => "namespaces",
            Kind::AddressPool => "addresspools",
            Kind::ServiceCIDR => "servicecidrs",
        }
    }

    /// The group and version that are read.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::AddressPool => "portico.dev/v1alpha1",
            Kind::ServiceCIDR => "networking.k8s.io/v1",
            _ => "v1",
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Kind::Node | Kind::Namespace | Kind::AddressPool | Kind::ServiceCIDR)
    }

    /// Whether clusters may not know the kind: ours need not be installed, and ServiceCIDR came with Kubernetes 1.33.
    pub fn may_be_unknown(self) -> bool {
        matches!(self, Kind::AddressPool | Kind::ServiceCIDR)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

// === impl ObjectKey ===

impl ObjectKey {
    /// The key of a namespaced object.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(out, "{} {}", self.kind, self.name),
            namespace => write!(out, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

// === impl Object ===

impl Object {
    /// What this is.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Endpoints(_) => Kind::Endpoints,
            Object::Pod(_) => Kind::Pod,
            Object::Node(_) => Kind::Node,
            Object::Secret(_) => Kind::Secret,
            Object::Namespace(_) => Kind::Namespace,
            Object::AddressPool(_) => Kind::AddressPool,
            Object::ServiceCIDR(_) => Kind::ServiceCIDR,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Service(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::Endpoints(object) => &object.metadata,
            Object::Pod(object) => &object.metadata,
            Object::Node(object) => &object.metadata,
            Object::Secret(object) => &object.metadata,
            Object::Namespace(object) => &object.metadata,
            Object::AddressPool(object) => &object.metadata,
            Object::ServiceCIDR(object) => &object.metadata,
        }
    }

    /// Its metadata, to be changed. Copies the object if it is shared.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Object::Service(object) => &mut Arc::make_mut(object).metadata,
            Object::EndpointSlice(object) => &mut Arc::make_mut(object).metadata,
            Object::Endpoints(object) => &mut Arc::make_mut(object).metadata,
            Object::Pod(object) => &mut Arc::make_mut(object).metadata,
            Object::Node(object) => &mut Arc::make_mut(object).metadata,
            Object::Secret(object) => &mut Arc::make_mut(object).metadata,
            Object::Namespace(object) => &mut Arc::make_mut(object).metadata,
            Object::AddressPool(object) => &mut Arc::make_mut(object).metadata,
            Object::ServiceCIDR(object) => &mut Arc::make_mut(object).metadata,
        }
    }

    /// Whether two objects are equal; at once if they are shared.
    pub fn is_same(&self, other: &Object) -> bool {
        let shared = match (self, other) {
            (Object::Service(one), Object::Service(other)) => Arc::ptr_eq(one, other),
            (Object::EndpointSlice(one), Object::EndpointSlice(other)) => Arc::ptr_eq(one, other),
            (Object::Pod(one), Object::Pod(other)) => Arc::ptr_eq(one, other),
            (Object::Node(one), Object::Node(other)) => Arc::ptr_eq(one, other),
            (Object::Secret(one), Object::Secret(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        shared || self == other
    }

    /// Names it. A namespaced object without a namespace is in `default`.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        let kind = self.kind();
        let namespace = match metadata.namespace.as_deref() {
            _ if !kind.is_namespaced() => "",
            None | Some("") => "default",
            Some(namespace) => namespace,
        };
        ObjectKey::new(kind, namespace, metadata.name.as_deref().unwrap_or_default())
    }

    /// When it was created, if that is known.
    pub fn created(&self) -> Option<&Time> {
        self.metadata().creation_timestamp.as_ref()
    }

    /// Drops what no later stage reads: bookkeeping of the API server, foreign annotations, and most of Pods and Nodes.
    pub fn trimmed(mut self) -> Self {
        let is_service = self.kind() == Kind::Service;
        let metadata = self.metadata_mut();
        let kept = |finalizer: &String| is_service && finalizer == LOAD_BALANCER_CLEANUP;
        let finalizers: Vec<_> = metadata.finalizers.take().into_iter().flatten().filter(kept).collect();
        trim_metadata(metadata);
        metadata.finalizers = (!finalizers.is_empty()).then_some(finalizers);
        match &mut self {
            Object::Pod(pod) => trim_pod(Arc::make_mut(pod)),
            Object::Node(node) => {
                let status = Arc::make_mut(node).status.take().unwrap_or_default();
                Arc::make_mut(node).status =
                    Some(k8s_openapi::api::core::v1::NodeStatus { addresses: status.addresses, ..Default::default() });
            }
            Object::Service(service) => {
                if let Some(status) = &mut Arc::make_mut(service).status {
                    status.conditions = None;
                }
            }
            Object::Namespace(namespace) => {
                let namespace = Arc::make_mut(namespace);
                namespace.spec = None;
                namespace.status = None;
            }
            Object::ServiceCIDR(range) => Arc::make_mut(range).status = None,
            Object::EndpointSlice(_) | Object::Endpoints(_) | Object::Secret(_) | Object::AddressPool(_) => {}
        }
        self
    }
}

macro_rules! from {
    ($($kind:ident),*) => {
        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Object::$kind(Arc::new(object))
            }
        })*
    };
}

from!(Service, EndpointSlice, Endpoints, Pod, Node, Secret, Namespace, AddressPool, ServiceCIDR);

fn trim_metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.generate_name = None;
    metadata.self_link = None;
    metadata.generation = None;
    // Two writes that differ in nothing else are no change (S3.11), so the version must not take part in comparisons.
    metadata.resource_version = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| name.starts_with(ANNOTATION_PREFIX) || name == TRIGGER_TIME);
    }
}

fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = pod.spec.take() {
        let ports_only = |containers: Vec<k8s_openapi::api::core::v1::Container>| {
            let trim = |container: k8s_openapi::api::core::v1::Container| k8s_openapi::api::core::v1::Container {
                name: container.name,
                ports: container.ports,
                restart_policy: container.restart_policy,
                ..Default::default()
            };
            containers.into_iter().filter(|container| container.ports.is_some()).map(trim).collect::<Vec<_>>()
        };
        pod.spec = Some(PodSpec {
            containers: ports_only(spec.containers),
            init_containers: spec.init_containers.map(ports_only),
            host_network: spec.host_network,
            hostname: spec.hostname,
            subdomain: spec.subdomain,
            node_name: spec.node_name,
            service_account_name: spec.service_account_name,
            ..Default::default()
        });
    }
    if let Some(status) = pod.status.take() {
        let ready = |condition: &k8s_openapi::api::core::v1::PodCondition| condition.type_ == "Ready";
        let conditions = status.conditions.map(|conditions| {
            let keep = |condition: k8s_openapi::api::core::v1::PodCondition| k8s_openapi::api::core::v1::PodCondition {
                type_: condition.type_,
                status: condition.status,
                ..Default::default()
            };
            conditions.into_iter().filter(ready).map(keep).collect()
        });
        pod.status = Some(k8s_openapi::api::core::v1::PodStatus {
            conditions,
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..Default::default()
        });
    }
}
