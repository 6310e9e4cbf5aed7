//! The gateway's end of one stream: a cursor into the history of the state, never a queue.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::{
    Rejection, Violation,
    frame::{Start, Step, View},
    version::{Digests, Version},
};
use crate::{
    proto::discovery as wire,
    resource::{Key, Kind},
};

/// Updates that may be open at once. Four slices of at most 1 MiB bound the bytes in flight of one stream.
const WINDOW: usize = 4;

/// How often one kind is sent in full again because its digest differs, before the stream is given up.
const REPAIRS: u8 = 2;

/// One stream.
#[derive(Debug)]
pub struct Server {
    phase: Phase,
    nonce: u64,
    open: VecDeque<Open>,
    /// Refused versions, which the agent's digests leave out.
    rejected: HashMap<Key, Version>,
    repairs: [u8; Kind::ALL.len()],
    resync: Resync,
}

/// What a message of the agent meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The stream was opened.
    Hello {
        /// Name of the node that the agent claims.
        node: String,
        /// Version of the agent.
        agent_version: String,
    },
    /// An update was acknowledged.
    Ack {
        /// Set when the update was the last of a commit: the revision that the agent now holds.
        revision: Option<u64>,
        /// What it refused of this update.
        rejections: Vec<Rejection>,
    },
    /// Something this release does not act on.
    Ignored,
}

/// How the stream began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resync {
    /// The agent held the newest state.
    #[default]
    None,
    /// The history led from what it held to the newest state.
    Log,
    /// At least one non-empty type was sent whole.
    Full,
}

/// One message to the agent. Its update, if any, is shared between streams.
#[derive(Clone, Debug)]
pub struct Frame {
    head: Bytes,
    shared: Bytes,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was heard yet.
    Silent,
    /// The agent spoke; it waits for Welcome.
    Greeted { held: Digests, wanted: Step, fresh: bool },
    /// Welcome was sent. `from` is where the next commit starts.
    Live { from: Step, sending: Option<Sending> },
}

/// A commit on its way.
#[derive(Debug)]
struct Sending {
    slices: Arc<[Bytes]>,
    next: usize,
    revision: u64,
    digests: Digests,
}

/// An update that was not acknowledged yet.
#[derive(Debug)]
struct Open {
    nonce: String,
    /// Of a commit's last slice.
    commit: Option<(u64, Digests)>,
}

// === impl Server ===

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// A stream on which nothing was said yet.
    pub fn new() -> Self {
        Self {
            phase: Phase::Silent,
            nonce: 0,
            open: VecDeque::new(),
            rejected: HashMap::new(),
            repairs: [0; Kind::ALL.len()],
            resync: Resync::None,
        }
    }

    /// How the stream began; meaningful once [`Server::welcome`] was called.
    pub fn resync(&self) -> Resync {
        self.resync
    }

    /// Versions that the agent refuses at present.
    pub fn rejected(&self) -> usize {
        self.rejected.len()
    }

    /// Whether updates wait for acknowledgement.
    pub fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// Takes a message of the agent.
    ///
    /// # Errors
    /// A [`Violation`] must end the stream.
    pub fn request(&mut self, request: wire::WatchRequest, cluster_uid: &str) -> Result<Heard, Violation> {
        use wire::watch_request::Kind as Message;
        match (request.kind.ok_or(Violation::Empty)?, &self.phase) {
            (Message::Hello(hello), Phase::Silent) => self.hello(hello, cluster_uid),
            (Message::Hello(_), _) => Err(Violation::Order("hello")),
            (Message::Ack(ack), Phase::Live { .. }) => self.ack(ack),
            (Message::Interests(_), Phase::Live { .. }) => {
                Err(Violation::Field("interests: resources are not watched by name; open a stream with ALL".to_owned()))
            }
            (Message::BucketDigests(_), Phase::Live { .. }) => Ok(Heard::Ignored),
            (Message::Ack(_), _) => Err(Violation::Order("ack")),
            (_, _) => Err(Violation::Order("message")),
        }
    }

    fn hello(&mut self, hello: wire::Hello, cluster_uid: &str) -> Result<Heard, Violation> {
        let mut wanted = Step::NOTHING;
        for interest in &hello.interests {
            // Types that only newer agents know are not sent to them; they must live without.
            let Some(kind) = Kind::from_wire(interest.r#type) else { continue };
            match wire::InterestMode::try_from(interest.mode) {
                Ok(wire::InterestMode::All) => wanted.set(kind, Start::Full),
                Ok(wire::InterestMode::None) => wanted.set(kind, Start::Skip),
                _ => return Err(Violation::Field(format!("interests: mode of {kind} must be ALL or NONE"))),
            }
        }
        let fresh = hello.cluster_uid != cluster_uid;
        let held = if fresh { Digests::default() } else { Digests::from_wire(&hello.held) };
        self.phase = Phase::Greeted { held, wanted, fresh };
        Ok(Heard::Hello { node: hello.node_name, agent_version: hello.agent_version })
    }

    /// Answers Hello, and decides for each type whether the history can bring the agent up to date.
    ///
    /// # Errors
    /// [`Violation::Order`] unless Hello was just heard.
    pub fn welcome(&mut self, welcome: wire::Welcome, view: &dyn View) -> Result<Frame, Violation> {
        let Phase::Greeted { held, wanted, fresh } = &self.phase else {
            return Err(Violation::Order("welcome"));
        };
        let mut from = *wanted;
        let mut resync = Resync::None;
        for kind in Kind::ALL.into_iter().filter(|kind| wanted.of(*kind) != Start::Skip) {
            let digest = held.of(kind);
            if !fresh && digest == view.digests().of(kind) {
                from.set(kind, Start::After(view.revision()));
            } else if let Some(revision) = view.find(kind, digest).filter(|_| !fresh) {
                from.set(kind, Start::After(revision));
                resync = if resync == Resync::Full { resync } else { Resync::Log };
            } else {
                from.set(kind, Start::Full);
                resync = Resync::Full;
            }
        }
        self.resync = resync;
        self.phase = Phase::Live { from, sending: None };
        let head =
            wire::WatchResponse { nonce: self.next_nonce(), kind: Some(wire::watch_response::Kind::Welcome(welcome)) };
        // The first commit is sent even when nothing changed: it tells the agent that it is up to date.
        let Phase::Live { sending, .. } = &mut self.phase else { return Err(Violation::Order("welcome")) };
        *sending = Some(Sending::new(view, &from));
        Ok(Frame::message(&head))
    }

    /// The next message to send, if the window is open and there is news. Call until it returns `None`.
    pub fn respond(&mut self, view: &dyn View) -> Option<Frame> {
        if self.open.len() >= WINDOW {
            return None;
        }
        let Phase::Live { from, sending } = &mut self.phase else { return None };
        if sending.is_none() {
            if Self::at_head(from, view) {
                return None;
            }
            *sending = Some(Sending::new(view, from));
        }
        self.send_slice()
    }

    /// An empty commit, so that the agent hears that it is still up to date. `None` while other messages are open.
    pub fn heartbeat(&mut self, view: &dyn View) -> Option<Frame> {
        if !self.open.is_empty() {
            return None;
        }
        let Phase::Live { from, sending } = &mut self.phase else { return None };
        if sending.is_none() {
            *sending = Some(Sending::new(view, from));
        }
        self.send_slice()
    }

    fn send_slice(&mut self) -> Option<Frame> {
        let nonce = self.next_nonce();
        let Phase::Live { from, sending } = &mut self.phase else { return None };
        let current = sending.as_mut()?;
        let slice = current.slices.get(current.next)?.clone();
        current.next += 1;
        let mut commit = None;
        if current.next == current.slices.len() {
            commit = Some((current.revision, current.digests));
            for start in from.0.iter_mut().filter(|start| **start != Start::Skip) {
                *start = Start::After(current.revision);
            }
            *sending = None;
        }
        self.open.push_back(Open { nonce: nonce.clone(), commit });
        Some(Frame::update(&nonce, slice))
    }

    fn at_head(from: &Step, view: &dyn View) -> bool {
        let head = Start::After(view.revision());
        from.0.iter().all(|start| *start == Start::Skip || *start == head)
    }

    fn ack(&mut self, ack: wire::Ack) -> Result<Heard, Violation> {
        let open = match self.open.front() {
            Some(open) if open.nonce == ack.nonce => self.open.pop_front(),
            other => {
                let expected = other.map_or_else(String::new, |open| open.nonce.clone());
                return Err(Violation::Nonce { got: ack.nonce, expected });
            }
        };
        let mut rejections = Vec::with_capacity(ack.rejections.len());
        for rejection in ack.rejections {
            let kind = Kind::from_wire(rejection.r#type);
            let version = Version::from_bytes(&rejection.version);
            let (Some(kind), Some(version)) = (kind, version) else {
                return Err(Violation::Field(format!("rejections: {:?} has no known type or version", rejection.name)));
            };
            let message = rejection.message;
            rejections.push(Rejection { key: Key::new(kind, rejection.name), version, message });
        }
        let commit = open.and_then(|open| open.commit);
        if let Some((_, expected)) = &commit {
            self.rejected = rejections.iter().map(|rejection| (rejection.key.clone(), rejection.version)).collect();
            self.compare(*expected, &Digests::from_wire(&ack.digests))?;
        }
        Ok(Heard::Ack { revision: commit.map(|(revision, _)| revision), rejections })
    }

    /// Compares what the agent holds with what it was sent, less what it refused; sends a kind that differs in full.
    fn compare(&mut self, mut expected: Digests, held: &Digests) -> Result<(), Violation> {
        for (key, version) in &self.rejected {
            expected.remove(key, *version);
        }
        let Phase::Live { from, .. } = &mut self.phase else { return Ok(()) };
        for kind in Kind::ALL {
            let repairs = &mut self.repairs[kind as usize];
            if from.of(kind) == Start::Skip || held.of(kind) == expected.of(kind) {
                *repairs = 0;
            } else if *repairs == REPAIRS {
                return Err(Violation::Digest(kind));
            } else {
                *repairs += 1;
                from.set(kind, Start::Full);
            }
        }
        Ok(())
    }

    fn next_nonce(&mut self) -> String {
        self.nonce += 1;
        self.nonce.to_string()
    }
}

// === impl Sending ===

impl Sending {
    fn new(view: &dyn View, from: &Step) -> Self {
        Self { slices: view.slices(from), next: 0, revision: view.revision(), digests: *view.digests() }
    }
}

// === impl Frame ===

impl Frame {
    /// A message of its own, such as Goodbye.
    pub fn message(message: &wire::WatchResponse) -> Self {
        Self { head: message.encode_to_vec().into(), shared: Bytes::new() }
    }

    fn update(nonce: &str, slice: Bytes) -> Self {
        const TAG_NONCE: u8 = 0x0a;
        const TAG_UPDATE: u8 = 0x1a;
        let mut head = BytesMut::with_capacity(nonce.len() + 16);
        head.put_u8(TAG_NONCE);
        prost::encoding::encode_varint(nonce.len() as u64, &mut head);
        head.extend_from_slice(nonce.as_bytes());
        head.put_u8(TAG_UPDATE);
        prost::encoding::encode_varint(slice.len() as u64, &mut head);
        Self { head: head.freeze(), shared: slice }
    }

    /// The encoded WatchResponse, in two parts of which the second is shared between streams.
    pub fn parts(&self) -> [&Bytes; 2] {
        [&self.head, &self.shared]
    }

    /// Length of the encoded message in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.shared.len()
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
