//! An EndpointSlice as far as the latency of its changes goes (S20). Its endpoints are resources of their own.

use std::time::SystemTime;

use super::{
    invalid::{self, Invalid},
    name::NamespacedName,
};
use crate::{delta::version::Version, proto::discovery as wire};

/// When the cluster changed what a slice holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: NamespacedName,
    /// Name of the slice.
    pub name: String,
    /// Hash of its endpoints and ports.
    pub content: Version,
    /// When the cluster began the latest change; `None` if the slice does not say.
    pub triggered: Option<SystemTime>,
}

// === impl Slice ===

impl Slice {
    /// `namespace/service/slice`.
    pub fn resource_name(&self) -> String {
        format!("{}/{}", self.service, self.name)
    }
}

impl TryFrom<wire::Slice> for Slice {
    type Error = Invalid;

    fn try_from(slice: wire::Slice) -> Result<Self, Invalid> {
        let triggered = slice.last_change_trigger_time.map(SystemTime::try_from).transpose();
        Ok(Slice {
            service: NamespacedName::parse(&slice.namespace, &slice.service)?,
            name: invalid::required("name", slice.name)?,
            content: Version::from_bytes(&slice.content)
                .ok_or_else(|| Invalid::new("content", "is not a hash of 16 bytes"))?,
            triggered: triggered.map_err(|_| Invalid::new("last_change_trigger_time", "is not a time"))?,
        })
    }
}

impl From<&Slice> for wire::Slice {
    fn from(slice: &Slice) -> Self {
        wire::Slice {
            namespace: slice.service.namespace.to_string(),
            service: slice.service.name.to_string(),
            name: slice.name.clone(),
            content: slice.content.to_bytes(),
            last_change_trigger_time: slice.triggered.map(Into::into),
        }
    }
}
