//! Where the certificate of the discovery port comes from: made by the gateways themselves, kept in a Secret by somebody
//! else, or in files.

/// What is read of a certificate.
pub mod x509;
/// Certificates made here.
pub mod authority;
/// What the Secret holds.
pub mod held;
/// What is to be done next.
pub mod plan;
/// Secret and ConfigMap of certificates made here.
pub mod keeper;
/// A Secret that somebody else keeps.
pub mod secret;
/// Files.
pub mod files;

use std::path::PathBuf;

use kube::Client;
use tokio::sync::watch;

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// The chain, that of the server first.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The gateways make them.
    Made(keeper::Names),
    /// A Secret of type `kubernetes.io/tls`, which somebody else keeps.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Files in PEM form.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

// === impl Origin ===

impl Origin {
    /// Publishes the certificate in force into `current`, now and whenever it changes, without end. `client` is that of
    /// the cluster; without one only files can be read.
    pub async fn run(self, client: Option<Client>, current: watch::Sender<Option<Material>>) {
        match (self, client) {
            (Origin::Files { certificate, key }, _) => files::follow(certificate, key, current).await,
            (Origin::Made(names), Some(client)) => keeper::Keeper::new(client, names).run(current).await,
            (Origin::Secret { namespace, name }, Some(client)) => {
                secret::follow(client, &namespace, &name, current).await;
            }
            (Origin::Made(_) | Origin::Secret { .. }, None) => {
                unreachable!("options without a cluster name files only")
            }
        }
    }
}

// === impl Material ===

impl std::fmt::Debug for Material {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Material")
    }
}

/// Publishes `material` if it is another one.
fn publish(current: &watch::Sender<Option<Material>>, material: Material) {
    current.send_if_modified(|old| {
        let differs = old.as_ref() != Some(&material);
        *old = Some(material);
        differs
    });
}
