//! Keeps the Secret of the keys. All replicas do; a write names the version that was read, so of two at once one is
//! refused, and reads again.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{error::Elapsed, timeout},
};

use super::{
    Known,
    held::{self, Held, Step, plan},
};
use crate::owned::{Looked, Turns, is_conflict, is_ours, metadata};

/// The Secret, which none but gateways need to read. Who deletes it has all keys made anew at once.
pub const SECRET: &str = "portico-hop-keys";

/// The Secret is looked at this often, whatever the plan says.
const AT_LEAST: Duration = Duration::from_secs(300);

/// How long a look may take, with the write that follows. The first state for agents waits for the first look.
const LIMIT: Duration = Duration::from_secs(10);

/// Keeps the keys.
pub struct Keeper {
    secrets: Api<Secret>,
}

/// Why a step failed. The next attempt follows.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {verb} the Secret {SECRET}: {source}")]
    Api { verb: &'static str, source: Box<kube::Error> },
    #[error("the Secret {SECRET} was not made by a gateway, and is left alone; delete it or give it another name")]
    Foreign,
    #[error("the API server did not answer within {LIMIT:?}")]
    Silent(#[from] Elapsed),
    #[error("the system has no random numbers")]
    Random(#[from] aws_lc_rs::error::Unspecified),
}

// === impl Keeper ===

impl Keeper {
    /// Keeps the Secret of this namespace through this client.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { secrets: Api::namespaced(client, namespace) }
    }

    /// Publishes the keys in force into `known`, and keeps the Secret, without end.
    pub async fn run(self, known: watch::Sender<Known>) {
        let mut turns = Turns::new(self.secrets.clone(), SECRET, AT_LEAST);
        loop {
            let looked = timeout(LIMIT, self.look(SystemTime::now(), &known)).await.map_err(Error::from).flatten();
            let wait = turns.due(looked.as_ref().ok().copied());
            if let Err(error) = looked {
                tracing::warn!(%error, ?wait, "cannot keep the keys of the hop between agents; trying again");
                known.send_if_modified(|known| {
                    let is_first = *known == Known::Unread;
                    if is_first {
                        *known = Known::Unavailable;
                    }
                    is_first
                });
            }
            turns.next(wait).await;
        }
    }

    /// Looks at what is there, publishes it, and takes one step.
    async fn look(&self, now: SystemTime, known: &watch::Sender<Known>) -> Result<Looked, Error> {
        let secret = self.secrets.get_opt(SECRET).await.map_err(api("read"))?;
        let held = match &secret {
            Some(secret) => read(secret)?,
            None => None,
        };
        if let Some(held) = &held {
            let keys = Known::Keys(held.keys());
            known.send_if_modified(|known| {
                let differs = *known != keys;
                *known = keys;
                differs
            });
        }
        let step = plan(now, held.as_ref());
        let after = match (step, &held) {
            (Step::Wait(until), _) => return Ok(Looked::Until(until)),
            (Step::Rotate, Some(held)) => held.rotated(now)?,
            (Step::Rotate, None) | (Step::Create, _) => Held::make(now)?,
        };
        match self.write(secret, &after).await {
            Ok(()) => tracing::info!(?step, "keys of the hop between agents were changed"),
            Err(Error::Api { source, .. }) if is_conflict(&source) => {}
            Err(error) => return Err(error),
        }
        Ok(Looked::Again)
    }

    async fn write(&self, secret: Option<Secret>, held: &Held) -> Result<(), Error> {
        let params = PostParams::default();
        match secret {
            None => {
                let secret = Secret { metadata: metadata(SECRET), data: Some(held.data()), ..Secret::default() };
                self.secrets.create(&params, &secret).await.map_err(api("create"))?;
            }
            Some(mut secret) => {
                secret.data = Some(held.data());
                // The version that was read is in the metadata.
                self.secrets.replace(SECRET, &params, &secret).await.map_err(api("update"))?;
            }
        }
        Ok(())
    }
}

/// What the Secret holds; `None` if it is ours, and of no use.
fn read(secret: &Secret) -> Result<Option<Held>, Error> {
    if !is_ours(&secret.metadata) {
        return Err(Error::Foreign);
    }
    match Held::read(secret.data.as_ref().unwrap_or(&held::Data::new())) {
        Ok(held) => Ok(Some(held)),
        Err(error) => {
            tracing::error!(%error, secret = SECRET, "the Secret is damaged; making all keys anew");
            Ok(None)
        }
    }
}

fn api(verb: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { verb, source: Box::new(source) }
}
