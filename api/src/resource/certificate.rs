//! A certificate chain with its key. The key is never printed.

use std::fmt;

use bytes::Bytes;

use super::{invalid::Invalid, name::NamespacedName};
use crate::proto::discovery as wire;

/// Content of a `kubernetes.io/tls` Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Namespace and name of the Secret.
    pub name: NamespacedName,
    /// DER certificates, leaf first; at least one.
    pub chain: Vec<Bytes>,
    /// Private key in PEM (PKCS#8, PKCS#1 or SEC1).
    pub private_key: Bytes,
}

// === impl Certificate ===

impl fmt::Debug for Certificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Certificate({}, {} certificates, key hidden)", self.name, self.chain.len())
    }
}

impl TryFrom<wire::Certificate> for Certificate {
    type Error = Invalid;

    fn try_from(certificate: wire::Certificate) -> Result<Self, Invalid> {
        if certificate.chain.is_empty() {
            return Err(Invalid::new("chain", "holds no certificate"));
        }
        Ok(Certificate {
            name: NamespacedName::parse(&certificate.namespace, &certificate.name)?,
            chain: certificate.chain,
            private_key: certificate.private_key,
        })
    }
}

impl From<&Certificate> for wire::Certificate {
    fn from(certificate: &Certificate) -> Self {
        wire::Certificate {
            namespace: certificate.name.namespace.to_string(),
            name: certificate.name.name.to_string(),
            chain: certificate.chain.clone(),
            private_key: certificate.private_key.clone(),
        }
    }
}
