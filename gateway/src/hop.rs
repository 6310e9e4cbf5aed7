//! The keys by which the agents of a cluster know each other when one hands a connection to another: made by the
//! gateways, kept in a Secret, sent to agents that have proved who they are.
//!
//! Whoever has a key can speak to a Pod from any address, so there are none where agents are not known.

/// What the Secret holds, and what is to be done about it.
pub mod held;
/// The Secret.
pub mod keeper;

use api::resource::hop_keys::HopKeys;

/// What is known of the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Known {
    /// Nobody has looked yet.
    #[default]
    Unread,
    /// Somebody has, and could not read them. Agents keep those that they have.
    Unavailable,
    /// These are in force.
    Keys(HopKeys),
}
