//! Why somebody is not let in: one word for the log and the metric, one sentence for the one who asked.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use opentelemetry::{KeyValue, metrics::Meter};
use tonic::{Code, Status};

/// Why a connection or a stream is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The first byte is not that of a TLS handshake.
    Plaintext,
    /// The TLS handshake failed; a client that does not trust our CA says so here.
    Handshake,
    /// The TLS handshake took too long.
    HandshakeTimeout,
    /// Too many handshakes at once, from this address or from all.
    TooManyConnections,
    /// No `authorization` header.
    NoCredential,
    /// The credential is not a bearer token of a ServiceAccount.
    Malformed,
    /// The token's time is over.
    Expired,
    /// The token is for another audience.
    WrongAudience,
    /// The token is another account's.
    WrongAccount,
    /// The API server does not vouch for the token.
    Rejected,
    /// The token is bound to no node that can be told.
    Unbound,
    /// The API server cannot be asked.
    ReviewUnavailable,
    /// The agent says that it is on another node than its credential.
    OtherNode,
}

/// What is told to whoever is refused. It never holds the credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The class.
    pub reason: Reason,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// How often each reason was given since the start.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Reason::ALL.len()]);

// === impl Reason ===

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 13] = [
        Reason::Plaintext,
        Reason::Handshake,
        Reason::HandshakeTimeout,
        Reason::TooManyConnections,
        Reason::NoCredential,
        Reason::Malformed,
        Reason::Expired,
        Reason::WrongAudience,
        Reason::WrongAccount,
        Reason::Rejected,
        Reason::Unbound,
        Reason::ReviewUnavailable,
        Reason::OtherNode,
    ];

    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Plaintext => "plaintext",
            Reason::Handshake => "handshake",
            Reason::HandshakeTimeout => "handshake_timeout",
            Reason::TooManyConnections => "too_many_connections",
            Reason::NoCredential => "no_credential",
            Reason::Malformed => "malformed",
            Reason::Expired => "expired",
            Reason::WrongAudience => "wrong_audience",
            Reason::WrongAccount => "wrong_account",
            Reason::Rejected => "rejected",
            Reason::Unbound => "unbound",
            Reason::ReviewUnavailable => "review_unavailable",
            Reason::OtherNode => "other_node",
        }
    }

    /// What it is to gRPC.
    fn code(self) -> Code {
        match self {
            Reason::NoCredential | Reason::Malformed | Reason::Expired | Reason::WrongAudience | Reason::Rejected => {
                Code::Unauthenticated
            }
            Reason::WrongAccount | Reason::Unbound | Reason::OtherNode => Code::PermissionDenied,
            // A client that does not speak TLS with us never sees a status.
            Reason::Plaintext
            | Reason::Handshake
            | Reason::HandshakeTimeout
            | Reason::TooManyConnections
            | Reason::ReviewUnavailable => Code::Unavailable,
        }
    }
}

impl Refusal {
    /// Refuses for `reason`.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Status::new(refusal.reason.code(), refusal.message)
    }
}

// === impl Refusals ===

impl Refusals {
    /// Counts and logs a refusal. `claimed` is the node that the peer says it is on, if it said so.
    pub fn note(&self, peer: &str, claimed: Option<&str>, refusal: &Refusal) {
        self.0[refusal.reason as usize].fetch_add(1, Ordering::Relaxed);
        let (reason, node) = (refusal.reason.as_str(), claimed.unwrap_or("-"));
        tracing::warn!(peer, claimed_node = node, reason, "refused at the discovery port: {refusal}");
    }

    /// How often `reason` was given.
    pub fn count(&self, reason: Reason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Shows the counts in metrics.
    pub fn observe(self: &Arc<Self>, meter: &Meter) {
        let read = self.clone();
        meter
            .u64_observable_counter("portico.discovery.refusals")
            .with_description("Connections and streams refused at the discovery port")
            .with_callback(move |observer| {
                for reason in Reason::ALL {
                    observer.observe(read.count(reason), &[KeyValue::new("reason", reason.as_str())]);
                }
            })
            .build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_word_and_a_count_of_its_own() {
        let refusals = Refusals::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            for _ in 0..times {
                refusals.note("192.0.2.1:1", None, &Refusal::new(reason, "no"));
            }
        }
        let counts: Vec<_> = Reason::ALL.map(|reason| refusals.count(reason)).to_vec();
        assert_eq!(counts, (0..Reason::ALL.len() as u64).collect::<Vec<_>>());
        let words: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
