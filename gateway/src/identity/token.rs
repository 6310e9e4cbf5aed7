//! The bearer token of a request, and what it says of itself. That is believed only to refuse: what admits is the answer
//! of the API server to the very same bytes.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header::AUTHORIZATION};
use serde::Deserialize;

use super::{
    AUDIENCE, Account,
    refusal::{Reason, Refusal},
};

/// Longer than any token that an API server gives out.
const MAX_BYTES: usize = 16 << 10;

/// A token that may be worth a question to the API server.
#[derive(Clone)]
pub struct Token {
    raw: String,
    digest: Digest,
    expires: SystemTime,
}

/// A hash of a token, by which it is remembered: the token itself is kept nowhere.
pub type Digest = [u8; 32];

/// What a token says of itself.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    #[serde(default)]
    sub: String,
    /// Seconds since 1970.
    exp: Option<u64>,
    #[serde(default, rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Debug, Default, Deserialize)]
struct Kubernetes {
    #[serde(default)]
    node: Named,
}

#[derive(Debug, Default, Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

// === impl Token ===

impl Token {
    /// The token of a request at the time `now`, and the node that it claims to be of, for the log.
    ///
    /// # Errors
    /// A [`Refusal`] for what cannot be a valid token of `account`, whatever the API server would say.
    pub fn of(
        headers: &HeaderMap,
        account: &Account,
        now: SystemTime,
    ) -> Result<(Self, Option<String>), (Refusal, Option<String>)> {
        let raw = bearer(headers).map_err(|refusal| (refusal, None))?;
        let claims = claims(raw).map_err(|refusal| (refusal, None))?;
        let claimed = Some(claims.kubernetes.node.name.clone()).filter(|name| !name.is_empty());
        match check(&claims, account, now) {
            Ok(expires) => {
                let digest = *blake3::hash(raw.as_bytes()).as_bytes();
                Ok((Self { raw: raw.to_owned(), digest, expires }, claimed))
            }
            Err(refusal) => Err((refusal, claimed)),
        }
    }

    /// The token, for the API server only.
    pub fn expose(&self) -> &str {
        &self.raw
    }

    /// What it is remembered by.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// When its time is over.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token(until {:?})", self.expires)
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let malformed = |what: &str| Refusal::new(Reason::Malformed, format!("authorization: {what}"));
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        let message = "authorization: is missing; give the token of the agent's ServiceAccount with --gateway-token";
        return Err(Refusal::new(Reason::NoCredential, message));
    };
    if values.next().is_some() {
        return Err(malformed("is there twice; give one token"));
    }
    let value = value.to_str().map_err(|_| malformed("is not text; give Bearer and a token"))?;
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_matches(' '),
        _ => return Err(malformed("is not of scheme Bearer; give Bearer and a token")),
    };
    if token.is_empty() || token.len() > MAX_BYTES {
        return Err(malformed("is empty or too long; give a projected ServiceAccount token"));
    }
    Ok(token)
}

/// Reads the second of the three parts of a JSON Web Token (RFC 7519).
fn claims(token: &str) -> Result<Claims, Refusal> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(not_a_token());
    };
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| not_a_token())?;
    serde_json::from_slice(&json).map_err(|_| not_a_token())
}

fn not_a_token() -> Refusal {
    Refusal::new(Reason::Malformed, "authorization: is not a JSON Web Token; give a projected ServiceAccount token")
}

fn check(claims: &Claims, account: &Account, now: SystemTime) -> Result<SystemTime, Refusal> {
    let audiences = match &claims.aud {
        Audiences::One(audience) => std::slice::from_ref(audience),
        Audiences::Many(audiences) => audiences,
    };
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        let message = format!("the token is for the audience {audiences:?}, not for {AUDIENCE}");
        return Err(Refusal::new(Reason::WrongAudience, message));
    }
    if claims.sub != account.user_name() {
        let message = format!("the token is that of {:?}, not of {:?}", claims.sub, account.user_name());
        return Err(Refusal::new(Reason::WrongAccount, message));
    }
    let expires = claims.exp.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let Some(expires) = expires else {
        return Err(Refusal::new(Reason::Malformed, "the token never expires; give a projected ServiceAccount token"));
    };
    if expires <= now {
        let ago = now.duration_since(expires).unwrap_or_default().as_secs();
        let message =
            format!("the token expired {ago} s ago; see whether its file is renewed, and whether clocks agree");
        return Err(Refusal::new(Reason::Expired, message));
    }
    Ok(expires)
}

// === impl Audiences ===

impl Default for Audiences {
    fn default() -> Self {
        Audiences::Many(vec![])
    }
}

#[cfg(test)]
mod tests;
