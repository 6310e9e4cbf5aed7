//! Questions to the API server: whose token is this?

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    AUDIENCE, Account,
    refusal::{Reason, Refusal},
    roster::PodRef,
    token::Token,
};

/// Questions under way. Strangers who send tokens that look right must not keep the API server busy.
const CONCURRENT: usize = 32;

/// How long one may take, with the wait for its turn.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fields of `status.user.extra` that say what a token is bound to (KEP-4193).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks.
#[derive(Clone)]
pub struct Reviewer {
    reviews: Api<TokenReview>,
    turns: Arc<Semaphore>,
}

/// What the API server vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// The node that the token is bound to, where the API server says so (Kubernetes 1.32).
    pub node: Option<Arc<str>>,
    /// The Pod that the token is bound to.
    pub pod: Option<PodRef>,
}

// === impl Reviewer ===

impl Reviewer {
    /// Asks through this client.
    pub fn new(client: Client) -> Self {
        Self { reviews: Api::all(client), turns: Arc::new(Semaphore::new(CONCURRENT)) }
    }

    /// Asks whose `token` is. The outer error says that nobody answered.
    ///
    /// # Errors
    /// Why there is no answer; inside, a [`Refusal`] if the answer does not vouch for an agent of `account`.
    pub async fn review(&self, token: &Token, account: &Account) -> Result<Result<Reviewed, Refusal>, String> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.expose().to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answered = timeout(TIMEOUT, async {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        });
        match answered.await {
            Ok(Ok(answer)) => Ok(judge(&answer.status.unwrap_or_default(), account)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
        }
    }
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Reviewer")
    }
}

/// What an answer says of an agent of `account`.
///
/// # Errors
/// A [`Refusal`] if it does not vouch for one.
pub fn judge(status: &TokenReviewStatus, account: &Account) -> Result<Reviewed, Refusal> {
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().filter(|why| !why.is_empty()).unwrap_or("it gives no reason");
        return Err(Refusal::new(Reason::Rejected, format!("the API server does not take the token: {why}")));
    }
    // An API server that knows nothing of audiences leaves this out, and would take any token (authentication/v1).
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        let message = format!("the API server does not take the token for the audience {AUDIENCE}");
        return Err(Refusal::new(Reason::WrongAudience, message));
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != account.user_name() {
        let message = format!("the token is that of {name:?}, not of {:?}", account.user_name());
        return Err(Refusal::new(Reason::WrongAccount, message));
    }
    let extra = user.extra.unwrap_or_default();
    let one = |field: &str| match extra.get(field).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(Arc::<str>::from(value.as_str())),
        _ => None,
    };
    let pod = one(POD_NAME).zip(one(POD_UID)).map(|(name, uid)| PodRef { name, uid });
    Ok(Reviewed { node: one(NODE_NAME), pod })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::roster::tests::{account, reference};

    fn status(json: serde_json::Value) -> Result<Reviewed, Reason> {
        let status = serde_json::from_value(json).expect("a status");
        judge(&status, &account()).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn all_of_the_answer_has_to_be_right() {
        let user = |name: &str| serde_json::json!({"username": name});
        let agent = user("system:serviceaccount:portico-system:portico-agent");
        let cases = [
            (serde_json::json!({}), Reason::Rejected),
            (serde_json::json!({"authenticated": false, "error": "expired"}), Reason::Rejected),
            (serde_json::json!({"authenticated": true, "user": agent}), Reason::WrongAudience),
            (serde_json::json!({"authenticated": true, "audiences": ["api"], "user": agent}), Reason::WrongAudience),
            (serde_json::json!({"authenticated": true, "audiences": ["portico-discovery"]}), Reason::WrongAccount),
            (
                serde_json::json!({"authenticated": true, "audiences": ["portico-discovery"], "user": user("admin")}),
                Reason::WrongAccount,
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(status(json.clone()), Err(expected), "{json}");
        }
        let bare = serde_json::json!({"authenticated": true, "audiences": ["portico-discovery"], "user": agent});
        assert_eq!(status(bare), Ok(Reviewed { node: None, pod: None }));
    }

    #[test]
    fn what_the_token_is_bound_to_is_taken_if_it_is_one_thing() {
        let reviewed = |extra: serde_json::Value| {
            let user =
                serde_json::json!({"username": "system:serviceaccount:portico-system:portico-agent", "extra": extra});
            status(serde_json::json!({"authenticated": true, "audiences": ["portico-discovery"], "user": user}))
        };
        let full = serde_json::json!({NODE_NAME: ["n1"], POD_NAME: ["a"], POD_UID: ["u1"]});
        let expected = Reviewed { node: Some("n1".into()), pod: Some(reference("a", "u1")) };
        assert_eq!(reviewed(full), Ok(expected));
        let odd = serde_json::json!({NODE_NAME: ["n1", "n2"], POD_NAME: ["a"]});
        assert_eq!(reviewed(odd), Ok(Reviewed { node: None, pod: None }));
    }
}
