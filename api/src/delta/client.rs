//! The agent's end of the stream: stages slices, hands over whole commits, and remembers what it holds.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Changed, Changes, Rejection, Violation,
    version::{Digests, Version},
};
use crate::{
    proto::discovery as wire,
    resource::{Key, Kind},
};

/// What an agent holds, and what is on its way. Outlives streams.
#[derive(Debug)]
pub struct Client {
    node: String,
    agent_version: String,
    cluster_uid: String,
    held: HashMap<Key, Version>,
    /// Versions refused at present. They are no part of the digests.
    refused: HashMap<Key, Version>,
    digests: Digests,
    welcomed: bool,
    staged: Staged,
}

/// What a message of the gateway meant.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// The stream is open.
    Welcome(wire::Welcome),
    /// A slice was kept back; send this.
    Staged(wire::WatchRequest),
    /// A commit is complete: apply the changes, then call [`Client::applied`] with what was refused.
    Commit(Changes, Option<prost_types::Timestamp>),
    /// The gateway ends the stream.
    Goodbye(wire::Goodbye),
}

#[derive(Debug, Default)]
struct Staged {
    nonce: String,
    /// `None` means removed.
    touched: BTreeMap<Key, Option<(Version, bytes::Bytes)>>,
    replaced: HashSet<Kind>,
    /// Versions of the open commit, for [`Client::applied`].
    applying: Vec<(Key, Option<Version>)>,
}

// === impl Client ===

impl Client {
    /// An agent that holds nothing.
    pub fn new(node: impl Into<String>, agent_version: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            agent_version: agent_version.into(),
            cluster_uid: String::new(),
            held: HashMap::new(),
            refused: HashMap::new(),
            digests: Digests::default(),
            welcomed: false,
            staged: Staged::default(),
        }
    }

    /// Sums over what is held and was not refused.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// UID of the cluster that the held state belongs to; empty before the first stream.
    pub fn cluster_uid(&self) -> &str {
        &self.cluster_uid
    }

    /// The first message of a new stream. Whatever an earlier stream left unfinished is forgotten.
    pub fn hello(&mut self) -> wire::WatchRequest {
        self.staged = Staged::default();
        self.welcomed = false;
        let interest = |kind: Kind| wire::Interest {
            r#type: kind.wire() as i32,
            mode: wire::InterestMode::All as i32,
            names: vec![],
        };
        request(wire::watch_request::Kind::Hello(wire::Hello {
            node_name: self.node.clone(),
            agent_version: self.agent_version.clone(),
            cluster_uid: self.cluster_uid.clone(),
            position: None,
            interests: Kind::ALL.into_iter().map(interest).collect(),
            held: self.digests.to_wire(Kind::ALL),
            max_message_bytes: 4 << 20,
            compressions: vec![],
        }))
    }

    /// Takes a message of the gateway.
    ///
    /// # Errors
    /// A [`Violation`] must end the stream; what was committed before stays in force.
    pub fn receive(&mut self, response: wire::WatchResponse) -> Result<Received, Violation> {
        use wire::watch_response::Kind as Message;
        match response.kind.ok_or(Violation::Empty)? {
            Message::Welcome(_) if self.welcomed => Err(Violation::Order("welcome")),
            Message::Welcome(welcome) => {
                self.welcomed = true;
                if welcome.cluster_uid != self.cluster_uid {
                    // Another cluster: the gateway sends everything, which replaces whatever is held.
                    self.cluster_uid.clone_from(&welcome.cluster_uid);
                }
                Ok(Received::Welcome(welcome))
            }
            Message::Update(_) if !self.welcomed => Err(Violation::Order("update")),
            Message::Update(update) => self.update(response.nonce, update),
            Message::BucketQuery(_) => Err(Violation::Field("bucket_query: not offered in hello".to_owned())),
            Message::Goodbye(goodbye) => Ok(Received::Goodbye(goodbye)),
        }
    }

    fn update(&mut self, nonce: String, update: wire::Update) -> Result<Received, Violation> {
        if !update.compressed.is_empty() {
            return Err(Violation::Field("compressed: no compression was offered in hello".to_owned()));
        }
        for bucket in &update.replaced_buckets {
            if let Some(kind) = Kind::from_wire(bucket.r#type) {
                self.staged.replaced.insert(kind);
            }
        }
        for resource in update.resources {
            // Types of a newer gateway were not asked for; ignore them.
            let Some(kind) = Kind::from_wire(resource.r#type) else { continue };
            // The version is computed from what came, never believed: it decides what a reconnect will claim to hold.
            let version = Version::of(&resource.body);
            self.staged.touched.insert(Key::new(kind, resource.name), Some((version, resource.body)));
        }
        for removed in update.removed {
            if let Some(kind) = Kind::from_wire(removed.r#type) {
                self.staged.touched.insert(Key::new(kind, removed.name), None);
            }
        }
        self.staged.nonce = nonce;
        match update.commit {
            Some(commit) => Ok(Received::Commit(self.commit(), commit.commit_time)),
            None => {
                let ack = wire::Ack { nonce: self.staged.nonce.clone(), rejections: vec![], digests: vec![] };
                Ok(Received::Staged(request(wire::watch_request::Kind::Ack(ack))))
            }
        }
    }

    /// Turns what was staged into the changes against what is held.
    fn commit(&mut self) -> Changes {
        let staged = std::mem::take(&mut self.staged);
        let mut touched = staged.touched;
        for key in self.held.keys().chain(self.refused.keys()) {
            if staged.replaced.contains(&key.kind) && !touched.contains_key(key) {
                touched.insert(key.clone(), None);
            }
        }
        let mut changes = Changes::default();
        let mut applying = Vec::with_capacity(touched.len());
        for (key, content) in touched {
            match content {
                Some((version, _)) if self.held.get(&key) == Some(&version) => {}
                Some((version, body)) => {
                    applying.push((key.clone(), Some(version)));
                    changes.set.push(Changed { key, version, body });
                }
                None => {
                    applying.push((key.clone(), None));
                    changes.removed.push(key);
                }
            }
        }
        self.staged = Staged { nonce: staged.nonce, applying, ..Staged::default() };
        changes
    }

    /// Closes the commit that [`Client::receive`] handed over and returns the acknowledgement to send.
    pub fn applied(&mut self, rejections: &[Rejection]) -> wire::WatchRequest {
        let refused: HashSet<&Key> = rejections.iter().map(|rejection| &rejection.key).collect();
        for (key, version) in std::mem::take(&mut self.staged.applying) {
            if let Some(old) = self.held.remove(&key) {
                self.digests.remove(&key, old);
            }
            self.refused.remove(&key);
            match version {
                Some(version) if refused.contains(&key) => {
                    self.refused.insert(key, version);
                }
                Some(version) => {
                    self.digests.add(&key, version);
                    self.held.insert(key, version);
                }
                None => {}
            }
        }
        // Every commit's acknowledgement lists all that is refused at present: the gateway leaves it out of the digests.
        let current = rejections.iter().map(wire::Rejection::from).collect::<Vec<_>>();
        let listed: HashSet<&Key> = rejections.iter().map(|rejection| &rejection.key).collect();
        let earlier = self.refused.iter().filter(|(key, _)| !listed.contains(key)).map(|(key, version)| {
            let message = "refused before, content unchanged".to_owned();
            wire::Rejection::from(&Rejection { key: key.clone(), version: *version, message })
        });
        let ack = wire::Ack {
            nonce: std::mem::take(&mut self.staged.nonce),
            rejections: current.into_iter().chain(earlier).collect(),
            digests: self.digests.to_wire(Kind::ALL),
        };
        request(wire::watch_request::Kind::Ack(ack))
    }
}

fn request(kind: wire::watch_request::Kind) -> wire::WatchRequest {
    wire::WatchRequest { kind: Some(kind) }
}
