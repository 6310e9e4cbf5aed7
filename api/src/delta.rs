//! Both ends of the discovery stream as state machines without IO and without a clock.
//!
//! The gateway's task and the agent's loop only move frames between these machines and the network, so every rule of
//! the protocol can be tested by feeding one machine's output to the other.

use bytes::Bytes;

use crate::{proto::discovery as wire, resource::Key};

pub mod client;
pub mod frame;
pub mod server;
pub mod version;

use version::Version;

/// What one commit changes, as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New or changed resources.
    pub set: Vec<Changed>,
    /// Resources that are gone.
    pub removed: Vec<Key>,
}

/// A resource with new content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its name.
    pub key: Key,
    /// Hash of `body`.
    pub version: Version,
    /// Canonical encoding; a slice of the receive buffer.
    pub body: Bytes,
}

/// A resource that an agent refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub key: Key,
    /// The version that was refused.
    pub version: Version,
    /// Why, for people.
    pub message: String,
}

/// The peer broke the protocol; the stream must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message that may only come first came later, or the first message was another one.
    #[error("unexpected {0}: a stream begins with one hello, answered by one welcome")]
    Order(&'static str),
    /// An acknowledgement that does not belong to the oldest open update.
    #[error("acknowledgement of nonce {got:?} where {expected:?} was due")]
    Nonce {
        /// Nonce that came.
        got: String,
        /// Nonce of the oldest open update, empty if none is open.
        expected: String,
    },
    /// A message without content.
    #[error("empty message")]
    Empty,
    /// A field that cannot be used.
    #[error("{0}")]
    Field(String),
    /// The agent holds something else than it was sent, again and again.
    #[error("digest of {0} differs after it was sent in full")]
    Digest(crate::resource::Kind),
}

// === impl Rejection ===

impl From<&Rejection> for wire::Rejection {
    fn from(rejection: &Rejection) -> Self {
        wire::Rejection {
            r#type: rejection.key.kind.wire() as i32,
            name: rejection.key.name.to_string(),
            version: rejection.version.to_bytes(),
            reason: "INVALID".to_owned(),
            message: rejection.message.clone(),
        }
    }
}
