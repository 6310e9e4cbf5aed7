//! A Secret of type `kubernetes.io/tls` that somebody else keeps, such as cert-manager.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::watch;

use super::{Material, publish};
use crate::owned::changes;

/// The Secret is read this often, whatever its watch says.
const AT_LEAST: Duration = Duration::from_secs(60);

/// Publishes what the Secret holds into `current`, now and whenever it changes, without end.
pub async fn follow(client: Client, namespace: &str, name: &str, current: watch::Sender<Option<Material>>) {
    let secrets = Api::<Secret>::namespaced(client, namespace);
    let mut changes = std::pin::pin!(changes(secrets.clone(), name));
    loop {
        match secrets.get_opt(name).await {
            Ok(Some(secret)) => match material(&secret) {
                Some(material) => publish(&current, material),
                None => tracing::warn!(secret = name, "tls.crt or tls.key is missing in the Secret, or not text"),
            },
            Ok(None) => tracing::warn!(secret = name, namespace, "waiting for the Secret of --discovery-secret"),
            Err(error) => tracing::warn!(secret = name, namespace, %error, "cannot read the Secret; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(AT_LEAST) => {}
            Some(()) = changes.next() => {}
        }
    }
}

fn material(secret: &Secret) -> Option<Material> {
    let text = |key: &str| String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok();
    Some(Material { certificate: text("tls.crt")?, key: text("tls.key")? })
}
