//! Keeps the Secret and the ConfigMap of the certificates that the gateways make. All replicas do; a write names the
//! version that was read, so of two at once one is refused, and reads again.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{error::Elapsed, timeout},
};

use super::{
    Material, authority,
    held::{self, Held},
    plan::{Step, plan, take},
    publish,
};
use crate::owned::{Looked, Turns, is_conflict, is_ours, metadata};

/// The Secret with certificates and keys, which none but gateways need to read.
pub const SECRET: &str = "portico-gateway-tls";

/// The ConfigMap with what agents are to trust.
pub const CONFIG_MAP: &str = "portico-gateway-ca";

/// The key of the ConfigMap.
const BUNDLE: &str = "ca.crt";

/// Both objects are looked at this often, whatever the plan says.
const AT_LEAST: Duration = Duration::from_secs(60);

/// How long that may take, with the write that follows.
const LIMIT: Duration = Duration::from_secs(30);

/// Whose certificates they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Namespace of the gateways, and of Secret and ConfigMap.
    pub namespace: String,
    /// The Service by which agents know the gateways.
    pub service: String,
    /// DNS domain of the cluster.
    pub domain: String,
}

/// Keeps them.
pub struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    names: Names,
}

/// Why a step failed. The next attempt follows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do as asked.
    #[error("cannot {verb} {kind} {name}: {source}")]
    Api {
        /// What was to be done.
        verb: &'static str,
        /// To what.
        kind: &'static str,
        /// Its name.
        name: &'static str,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// There is an object of the name that somebody else made.
    #[error(
        "{kind} {name} was not made by a gateway, and is left alone; delete it, or name it with --discovery-secret \
         if it holds a certificate"
    )]
    Foreign {
        /// What it is.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The API server says nothing.
    #[error("the API server did not answer within {LIMIT:?}")]
    Silent(#[from] Elapsed),
    /// Certificates cannot be made.
    #[error(transparent)]
    Make(#[from] authority::Error),
}

// === impl Names ===

impl Names {
    /// The names of the discovery port. Agents expect the first.
    pub fn dns_names(&self) -> Vec<String> {
        let short = format!("{}.{}.svc", self.service, self.namespace);
        vec![short.clone(), format!("{short}.{}", self.domain)]
    }
}

// === impl Keeper ===

impl Keeper {
    /// Keeps the objects through this client.
    pub fn new(client: Client, names: Names) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &names.namespace),
            config_maps: Api::namespaced(client, &names.namespace),
            names,
        }
    }

    /// Publishes the certificate in force into `current`, and keeps the objects, without end.
    pub async fn run(self, current: watch::Sender<Option<Material>>) {
        let mut turns = Turns::new(self.secrets.clone(), SECRET, AT_LEAST);
        loop {
            let looked = timeout(LIMIT, self.look(SystemTime::now(), &current)).await.map_err(Error::from).flatten();
            let wait = turns.due(looked.as_ref().ok().copied());
            if let Err(error) = looked {
                tracing::warn!(%error, ?wait, "cannot keep the certificates of the discovery port; trying again");
            }
            turns.next(wait).await;
        }
    }

    /// Looks at what is there, shows it, and takes one step.
    async fn look(&self, now: SystemTime, current: &watch::Sender<Option<Material>>) -> Result<Looked, Error> {
        let secret = self.secrets.get_opt(SECRET).await.map_err(api("read", "Secret", SECRET))?;
        let held = match &secret {
            Some(secret) => self.read(secret)?,
            None => None,
        };
        let mut unpublished = None;
        if let Some(held) = &held {
            publish(current, held.serving.material.clone());
            // What is wrong with the ConfigMap must not keep a certificate from being renewed; it keeps authorities from
            // succeeding each other.
            unpublished = self.publish_bundle(&held.bundle()).await.err();
        }
        let names = self.names.dns_names();
        let step = plan(now, held.as_ref(), &names, unpublished.is_none());
        if let Step::Wait(until) = step {
            return unpublished.map_or(Ok(Looked::Until(until)), Err);
        }
        let after = take(step, held.as_ref(), &names, now)?;
        match self.write(secret, &after).await {
            Ok(()) => tracing::info!(?step, "certificates of the discovery port were changed"),
            Err(Error::Api { source, .. }) if is_conflict(&source) => {}
            Err(error) => return Err(error),
        }
        Ok(Looked::Again)
    }

    /// What the Secret holds; `None` if it is ours, and of no use.
    fn read(&self, secret: &Secret) -> Result<Option<Held>, Error> {
        if !is_ours(&secret.metadata) {
            return Err(Error::Foreign { kind: "Secret", name: SECRET });
        }
        match Held::read(secret.data.as_ref().unwrap_or(&held::Data::new())) {
            Ok(held) => Ok(Some(held)),
            Err(error) => {
                tracing::error!(%error, secret = SECRET, "the Secret is damaged; making everything anew");
                Ok(None)
            }
        }
    }

    async fn write(&self, secret: Option<Secret>, held: &Held) -> Result<(), Error> {
        let is_new = secret.is_none();
        let mut secret = secret.unwrap_or_else(|| Secret {
            metadata: metadata(SECRET),
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        });
        secret.data = Some(held.data());
        let params = PostParams::default();
        if is_new {
            self.secrets.create(&params, &secret).await.map_err(api("create", "Secret", SECRET))?;
        } else {
            // The version that was read is in the metadata.
            self.secrets.replace(SECRET, &params, &secret).await.map_err(api("update", "Secret", SECRET))?;
        }
        Ok(())
    }

    /// Makes the ConfigMap hold `bundle`.
    async fn publish_bundle(&self, bundle: &str) -> Result<(), Error> {
        let found = self.config_maps.get_opt(CONFIG_MAP).await.map_err(api("read", "ConfigMap", CONFIG_MAP))?;
        let content = |map: &ConfigMap| map.data.as_ref().and_then(|data| data.get(BUNDLE)).cloned();
        if found.as_ref().and_then(content).as_deref() == Some(bundle) {
            return Ok(());
        }
        let data = Some(BTreeMap::from([(BUNDLE.to_owned(), bundle.to_owned())]));
        let params = PostParams::default();
        let written = match found {
            None => {
                let map = ConfigMap { metadata: metadata(CONFIG_MAP), data, ..ConfigMap::default() };
                self.config_maps.create(&params, &map).await.map_err(api("create", "ConfigMap", CONFIG_MAP))
            }
            Some(map) if !is_ours(&map.metadata) => {
                return Err(Error::Foreign { kind: "ConfigMap", name: CONFIG_MAP });
            }
            Some(mut map) => {
                map.data = data;
                self.config_maps.replace(CONFIG_MAP, &params, &map).await.map_err(api(
                    "update",
                    "ConfigMap",
                    CONFIG_MAP,
                ))
            }
        };
        written.map(|_| tracing::info!(config_map = CONFIG_MAP, "published what agents are to trust"))
    }
}

fn api(verb: &'static str, kind: &'static str, name: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { verb, kind, name, source: Box::new(source) }
}
