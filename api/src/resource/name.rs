//! Names as types: a namespaced name is never a bare string.

use std::{fmt, str::FromStr, sync::Arc};

use super::invalid::Invalid;

/// A name within a namespace: of a Service, a Secret or a Pod. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Namespace, not empty.
    pub namespace: Arc<str>,
    /// Name, not empty.
    pub name: Arc<str>,
}

// === impl NamespacedName ===

impl NamespacedName {
    /// Joins two parts that are known to be good, such as those of an object of the API server.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Checks parts from the wire: neither may be empty or hold a slash.
    pub(crate) fn parse(namespace: &str, name: &str) -> Result<Self, Invalid> {
        for (field, value) in [("namespace", namespace), ("name", name)] {
            if value.is_empty() || value.contains('/') {
                return Err(Invalid::new(field, format!("{value:?} is empty or contains a slash")));
            }
        }
        Ok(Self::new(namespace, name))
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for NamespacedName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for NamespacedName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| Invalid::new("name", format!("{text:?} is not namespace/name")))?;
        Self::parse(namespace, name)
    }
}
