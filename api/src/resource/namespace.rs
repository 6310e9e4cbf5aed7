//! That a namespace exists.

use super::invalid::{self, Invalid};
use crate::proto::discovery as wire;

/// A namespace. DNS names between the cluster domain and a Service exist as long as it does (S19.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name, not empty.
    pub name: String,
}

// === impl Namespace ===

impl TryFrom<wire::Namespace> for Namespace {
    type Error = Invalid;

    fn try_from(namespace: wire::Namespace) -> Result<Self, Invalid> {
        Ok(Namespace { name: invalid::required("name", namespace.name)? })
    }
}

impl From<&Namespace> for wire::Namespace {
    fn from(namespace: &Namespace) -> Self {
        wire::Namespace { name: namespace.name.clone() }
    }
}
