//! Typed resources: parsed once at the edge into values that cannot be wrong, encoded canonically for the wire.

use std::fmt;

use bytes::Bytes;
use prost::Message as _;

use crate::proto::discovery as wire;

pub mod certificate;
pub mod endpoint;
pub mod hop_keys;
pub mod invalid;
pub mod name;
pub mod namespace;
pub mod node;
pub mod service;
pub mod settings;
pub mod slice;
pub mod workload;

use certificate::Certificate;
use endpoint::Endpoint;
use hop_keys::HopKeys;
use invalid::Invalid;
use namespace::Namespace;
use node::Node;
use service::Service;
use settings::Settings;
use slice::Slice;
use workload::Workload;

/// What a resource is. The order is the order in which types are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Settings`], always named `default`.
    Settings,
    /// [`Node`], named by the Node object.
    Node,
    /// [`Service`], named `namespace/name`.
    Service,
    /// [`Endpoint`], named `namespace/service/family/address`.
    Endpoint,
    /// [`Certificate`], named `namespace/secret`.
    Certificate,
    /// [`Workload`], named by its address.
    Workload,
    /// [`Namespace`], named by the Namespace object.
    Namespace,
    /// [`Service`] that another proxy serves, named `namespace/name`.
    ForeignService,
    /// [`Slice`], named `namespace/service/slice`.
    Slice,
    /// [`HopKeys`], always named `default`.
    HopKeys,
}

/// Names one resource in the whole state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Type of the resource.
    pub kind: Kind,
    /// Name within its type.
    pub name: Box<str>,
}

/// One resource of any type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Facts about the whole cluster.
    Settings(Settings),
    /// A node.
    Node(Node),
    /// A Service without its endpoints.
    Service(Box<Service>),
    /// One address behind one Service.
    Endpoint(Box<Endpoint>),
    /// A certificate with its key.
    Certificate(Certificate),
    /// The Pod that owns an address.
    Workload(Workload),
    /// A namespace.
    Namespace(Namespace),
    /// A Service that another proxy serves: only its DNS names are of interest.
    ForeignService(Box<Service>),
    /// When an EndpointSlice changed.
    Slice(Slice),
    /// The keys by which agents know each other.
    HopKeys(HopKeys),
}

// === impl Kind ===

impl Kind {
    /// Every kind, in the order in which they are sent.
    pub const ALL: [Kind; 10] = [
        Kind::Settings,
        Kind::Node,
        Kind::Service,
        Kind::Endpoint,
        Kind::Certificate,
        Kind::Workload,
        Kind::Namespace,
        Kind::ForeignService,
        Kind::Slice,
        Kind::HopKeys,
    ];

    /// The type on the wire.
    pub fn wire(self) -> wire::ResourceType {
        match self {
            Kind::Settings => wire::ResourceType::Settings,
            Kind::Node => wire::ResourceType::Node,
            Kind::Service => wire::ResourceType::Service,
            Kind::Endpoint => wire::ResourceType::Endpoint,
            Kind::Certificate => wire::ResourceType::Certificate,
            Kind::Workload => wire::ResourceType::Workload,
            Kind::Namespace => wire::ResourceType::Namespace,
            Kind::ForeignService => wire::ResourceType::ForeignService,
            Kind::Slice => wire::ResourceType::Slice,
            Kind::HopKeys => wire::ResourceType::HopKeys,
        }
    }

    /// Whether bodies of this kind hold keys, which none but agents are shown.
    pub fn is_secret(self) -> bool {
        matches!(self, Kind::Certificate | Kind::HopKeys)
    }

    /// The kind of a wire value; `None` for types that this release does not know.
    pub fn from_wire(value: i32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.wire() as i32 == value)
    }

    /// Lower-case label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Settings => "settings",
            Kind::Node => "node",
            Kind::Service => "service",
            Kind::Endpoint => "endpoint",
            Kind::Certificate => "certificate",
            Kind::Workload => "workload",
            Kind::Namespace => "namespace",
            Kind::ForeignService => "foreign_service",
            Kind::Slice => "slice",
            Kind::HopKeys => "hop_keys",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.label())
    }
}

// === impl Key ===

impl Key {
    /// The key of the resource `name` of type `kind`.
    pub fn new(kind: Kind, name: impl Into<Box<str>>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.kind, self.name)
    }
}

// === impl Resource ===

impl Resource {
    /// The name under which this resource travels.
    pub fn key(&self) -> Key {
        match self {
            Resource::Settings(_) => Key::new(Kind::Settings, "default"),
            Resource::Node(node) => Key::new(Kind::Node, node.name.as_str()),
            Resource::Service(service) => Key::new(Kind::Service, service.name.to_string()),
            Resource::Endpoint(endpoint) => Key::new(Kind::Endpoint, endpoint.resource_name()),
            Resource::Certificate(certificate) => Key::new(Kind::Certificate, certificate.name.to_string()),
            Resource::Workload(workload) => Key::new(Kind::Workload, workload.address.to_string()),
            Resource::Namespace(namespace) => Key::new(Kind::Namespace, namespace.name.as_str()),
            Resource::ForeignService(service) => Key::new(Kind::ForeignService, service.name.to_string()),
            Resource::Slice(slice) => Key::new(Kind::Slice, slice.resource_name()),
            Resource::HopKeys(_) => Key::new(Kind::HopKeys, "default"),
        }
    }

    /// The canonical bytes: equal content gives equal bytes in every process.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Resource::Settings(settings) => wire::Settings::from(settings).encode_to_vec(),
            Resource::Node(node) => wire::Node::from(node).encode_to_vec(),
            Resource::Service(service) | Resource::ForeignService(service) => {
                wire::Service::from(&**service).encode_to_vec()
            }
            Resource::Endpoint(endpoint) => wire::Endpoint::from(&**endpoint).encode_to_vec(),
            Resource::Certificate(certificate) => wire::Certificate::from(certificate).encode_to_vec(),
            Resource::Workload(workload) => wire::Workload::from(workload).encode_to_vec(),
            Resource::Namespace(namespace) => wire::Namespace::from(namespace).encode_to_vec(),
            Resource::Slice(slice) => wire::Slice::from(slice).encode_to_vec(),
            Resource::HopKeys(keys) => wire::HopKeys::from(keys).encode_to_vec(),
        }
    }

    /// Parses a body of type `kind`.
    ///
    /// # Errors
    /// [`Invalid`] names the field that cannot be used and what would be right.
    pub fn decode(kind: Kind, body: Bytes) -> Result<Resource, Invalid> {
        fn message<M: prost::Message + Default>(body: Bytes) -> Result<M, Invalid> {
            M::decode(body).map_err(|error| Invalid::new("body", format!("does not decode: {error}")))
        }
        Ok(match kind {
            Kind::Settings => Resource::Settings(message::<wire::Settings>(body)?.try_into()?),
            Kind::Node => Resource::Node(message::<wire::Node>(body)?.try_into()?),
            Kind::Service => Resource::Service(Box::new(message::<wire::Service>(body)?.try_into()?)),
            Kind::Endpoint => Resource::Endpoint(Box::new(message::<wire::Endpoint>(body)?.try_into()?)),
            Kind::Certificate => Resource::Certificate(message::<wire::Certificate>(body)?.try_into()?),
            Kind::Workload => Resource::Workload(message::<wire::Workload>(body)?.try_into()?),
            Kind::Namespace => Resource::Namespace(message::<wire::Namespace>(body)?.try_into()?),
            Kind::ForeignService => Resource::ForeignService(Box::new(message::<wire::Service>(body)?.try_into()?)),
            Kind::Slice => Resource::Slice(message::<wire::Slice>(body)?.try_into()?),
            Kind::HopKeys => Resource::HopKeys(message::<wire::HopKeys>(body)?.try_into()?),
        })
    }
}
