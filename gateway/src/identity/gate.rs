//! From the credential of a request to the peer that it proves.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use http::HeaderMap;
use kube::Client;

use super::{
    Account,
    cache::Cache,
    peer::{Agent, Peer},
    refusal::{Reason, Refusal, Refusals},
    review::{Reviewed, Reviewer},
    roster::Roster,
    token::Token,
};

/// Decides who comes in. Clones share what was learned.
#[derive(Clone, Debug)]
pub struct Gate {
    /// `None` lets everybody in, as anyone.
    tokens: Option<Arc<Tokens>>,
    refusals: Arc<Refusals>,
}

#[derive(Debug)]
struct Tokens {
    account: Account,
    reviewer: Reviewer,
    roster: Arc<Roster>,
    cache: Mutex<Cache>,
}

// === impl Gate ===

impl Gate {
    /// Lets everybody in.
    pub fn open(refusals: Arc<Refusals>) -> Self {
        Self { tokens: None, refusals }
    }

    /// Lets agents of `account` in, of whom the API server behind `client` knows.
    pub fn tokens(account: Account, client: Client, roster: Arc<Roster>, refusals: Arc<Refusals>) -> Self {
        let tokens = Tokens { account, reviewer: Reviewer::new(client), roster, cache: Mutex::default() };
        Self { tokens: Some(Arc::new(tokens)), refusals }
    }

    /// Who sent a request with these headers from the address `from`. A refusal is counted and logged.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub async fn admit(&self, headers: &HeaderMap, from: &str) -> Result<Peer, Refusal> {
        let Some(tokens) = &self.tokens else {
            return Ok(Peer::anyone(from, self.refusals.clone()));
        };
        let (refusal, claimed) = match Token::of(headers, &tokens.account, SystemTime::now()) {
            Ok((token, claimed)) => match tokens.agent(&token).await {
                Ok(agent) => return Ok(Peer::agent(agent, from, self.refusals.clone())),
                Err(refusal) => (refusal, claimed),
            },
            Err(refused) => refused,
        };
        self.refusals.note(from, claimed.as_deref(), &refusal);
        Err(refusal)
    }
}

// === impl Tokens ===

impl Tokens {
    async fn agent(&self, token: &Token) -> Result<Agent, Refusal> {
        let reviewed = self.reviewed(token).await?;
        let known = self.roster.watch();
        let by_pod = || reviewed.pod.as_ref().and_then(|pod| known.borrow().node_of(pod));
        let node = reviewed.node.clone().or_else(by_pod).ok_or_else(|| {
            let message = match &reviewed.pod {
                Some(pod) => format!("the Pod {} of the token is not known here, or has no node", pod.name),
                None => "the token is bound to no node and no Pod; give a token from a projected volume".to_owned(),
            };
            Refusal::new(Reason::Unbound, message)
        })?;
        Ok(Agent::new(node, reviewed.pod, token.expires(), known))
    }

    async fn reviewed(&self, token: &Token) -> Result<Reviewed, Refusal> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = cache().fresh(token.digest(), Instant::now()) {
            return answer;
        }
        match self.reviewer.review(token, &self.account).await {
            Ok(answer) => {
                cache().note(*token.digest(), &answer, Instant::now());
                answer
            }
            // While the API server is away nothing can be revoked, so what it last said still holds. An agent that
            // restarts in such a time would otherwise have nothing to serve until the API server is back.
            Err(why) => match cache().remembered(token.digest(), Instant::now()) {
                Some(reviewed) => {
                    tracing::info!(why, "the API server cannot be asked; its last word on the token holds");
                    Ok(reviewed)
                }
                None => {
                    let message = format!("the API server cannot be asked about the token, try again: {why}");
                    Err(Refusal::new(Reason::ReviewUnavailable, message))
                }
            },
        }
    }
}
