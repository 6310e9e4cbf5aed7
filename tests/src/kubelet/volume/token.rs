//! Tokens of service accounts for projected volumes, bound to their Pod and renewed in time.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection},
};
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use tokio::time::Instant;

/// Life of a token that does not say. The API server's default.
const LIFE: i64 = 3600;
/// No token is renewed more often than this, however short it lives.
const SOONEST: Duration = Duration::from_secs(5);

/// The tokens of a Pod, by audience and life.
#[derive(Debug, Default)]
pub struct Tokens(BTreeMap<(Option<String>, i64), Token>);

#[derive(Debug)]
struct Token {
    text: String,
    renewal: Instant,
}

// === impl Tokens ===

impl Tokens {
    /// A token as a projection asks for it: a new one when there is none, or it has lived four fifths of its life.
    ///
    /// # Errors
    /// When there is none that is usable and the API server gives none.
    pub async fn get(
        &mut self,
        client: &Client,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
    ) -> anyhow::Result<String> {
        let key = (source.audience.clone(), source.expiration_seconds.unwrap_or(LIFE));
        if let Some(token) = self.0.get(&key).filter(|token| Instant::now() < token.renewal) {
            return Ok(token.text.clone());
        }
        let token = request(client, pod, key.0.as_deref(), key.1).await?;
        let text = token.text.clone();
        self.0.insert(key, token);
        Ok(text)
    }

    /// When the first of them is to be renewed.
    pub fn renewal(&self) -> Option<Instant> {
        self.0.values().map(|token| token.renewal).min()
    }
}

async fn request(client: &Client, pod: &Pod, audience: Option<&str>, seconds: i64) -> anyhow::Result<Token> {
    let account =
        pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let pod = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.uid(),
    };
    let spec = TokenRequestSpec {
        audiences: audience.map(|audience| vec![audience.to_owned()]),
        expiration_seconds: Some(seconds),
        bound_object_ref: Some(pod),
        ..Default::default()
    };
    let body = TokenRequest { spec: Some(spec), ..Default::default() };
    let answer = accounts.create_token_request(&account, &PostParams::default(), &body).await;
    let given = answer.with_context(|| format!("no token for service account {account:?}"))?;
    let status = given.status.unwrap_or_default();
    let (text, end) = status.token.zip(status.expiration_timestamp).context("the API server's answer has no token")?;
    let life = end.0.as_second() - k8s_openapi::jiff::Timestamp::now().as_second();
    Ok(Token { text, renewal: Instant::now() + renewal(life) })
}

/// When a token that has so many seconds to live is renewed: after four fifths of them, and after a day at the latest.
fn renewal(seconds: i64) -> Duration {
    let life = Duration::from_secs(seconds.max(0).unsigned_abs());
    (life * 4 / 5).clamp(SOONEST, Duration::from_secs(24 * 3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_after_four_fifths_of_their_life() {
        let cases = [(3600, 2880), (600, 480), (1, 5), (-1, 5), (365 * 24 * 3600, 24 * 3600)];
        for (life, expected) in cases {
            assert_eq!(renewal(life), Duration::from_secs(expected), "{life}");
        }
    }
}
