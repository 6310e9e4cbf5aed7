//! The verdict on a node, as it stands on the board.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::{proto::health as wire, resource::node::Node};
use prost::Message as _;

use crate::health::{moment::Heard, verdict::Verdict};

/// The verdict on a node, with the revision at which it last differed.
#[derive(Debug)]
pub struct NodeEntry {
    /// What is said.
    pub said: Said,
    /// Revision at which that last differed, times aside.
    pub revision: u64,
    hash: blake3::Hash,
}

/// What is said of a node.
#[derive(Clone, Debug)]
pub struct Said {
    /// The node.
    pub node: Arc<Node>,
    /// The verdict.
    pub verdict: Verdict,
    /// 1 if it takes new connections, else 0.
    pub weight: u32,
    /// When the state of the verdict last changed.
    pub since: SystemTime,
    /// When the agent was last heard, if ever.
    pub heard: Option<Arc<Heard>>,
    /// Until when the verdict may be trusted.
    pub expiry: Expiry,
}

/// Until when a verdict may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// As long as the agent is heard.
    Lease,
    /// Until this time, when it becomes another one.
    At(SystemTime),
    /// It stands until there is news.
    Never,
}

// === impl NodeEntry ===

impl NodeEntry {
    /// The entry that follows `before`: of `revision` if anything differs that load balancers are told.
    pub fn next(said: Said, before: Option<&Arc<Self>>, revision: u64) -> Arc<Self> {
        // Most entries are as they were, and comparing costs less than hashing.
        let hash = match before {
            Some(before) if before.said.says_the_same(&said) => before.hash,
            _ => said.hash(),
        };
        let Some(before) = before.filter(|before| before.hash == hash) else {
            return Arc::new(Self { said, revision, hash });
        };
        let same_heard = match (&before.said.heard, &said.heard) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        let same_times = before.said.expiry == said.expiry && before.said.verdict.until == said.verdict.until;
        match same_heard && same_times {
            true => before.clone(),
            false => Arc::new(Self { said, revision: before.revision, hash }),
        }
    }

    /// Hash of all that is said, times aside: replicas agree on it, and renewals leave it alone.
    pub fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// Whether external load balancers may use the node.
    pub fn is_listed(&self) -> bool {
        !self.said.node.excluded_from_load_balancers
    }

    /// The message, of leases that last for `term`.
    pub fn message(&self, term: Duration) -> wire::NodeHealth {
        wire::NodeHealth { health: Some(self.health(term)), ..self.said.head() }
    }

    /// The verdict as a message.
    pub fn health(&self, term: Duration) -> wire::Health {
        let Said { verdict, since, heard, expiry, .. } = &self.said;
        let heard = heard.as_ref().map(|heard| heard.last().wall);
        let expires = match expiry {
            Expiry::Lease => heard.map(|heard| heard + term),
            Expiry::At(time) => Some(*time),
            Expiry::Never => None,
        };
        wire::Health {
            state_since: Some((*since).into()),
            observe_time: heard.map(Into::into),
            expire_time: expires.map(Into::into),
            ..verdict.message()
        }
    }
}

// === impl Said ===

impl Said {
    /// Addresses of the node, internal ones first.
    pub fn addresses(&self) -> Vec<wire::NodeAddress> {
        let of = |addresses: &[IpAddr], kind: wire::NodeAddressType| -> Vec<wire::NodeAddress> {
            let message = |address: &IpAddr| wire::NodeAddress { address: address.to_string(), r#type: kind as i32 };
            addresses.iter().map(message).collect()
        };
        let internal = of(&self.node.internal_addresses, wire::NodeAddressType::Internal);
        [internal, of(&self.node.external_addresses, wire::NodeAddressType::External)].concat()
    }

    /// A short cut: whether the hash cannot differ.
    fn says_the_same(&self, other: &Self) -> bool {
        let (one, two) = (&self.verdict, &other.verdict);
        Arc::ptr_eq(&self.node, &other.node)
            && self.weight == other.weight
            && (one.state, &one.reason, &one.message) == (two.state, &two.reason, &two.message)
    }

    /// Everything but the verdict.
    fn head(&self) -> wire::NodeHealth {
        wire::NodeHealth {
            name: format!("nodes/{}", self.node.name),
            health: None,
            addresses: self.addresses(),
            region: self.node.region.clone(),
            zone: self.node.zone.clone(),
            weight: self.weight,
        }
    }

    fn hash(&self) -> blake3::Hash {
        let message = wire::NodeHealth { health: Some(self.verdict.message()), ..self.head() };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[u8::from(self.node.excluded_from_load_balancers)]);
        hasher.update(&message.encode_to_vec());
        hasher.finalize()
    }
}
