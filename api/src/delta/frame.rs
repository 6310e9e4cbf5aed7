//! From a step between two states to the bytes of its Updates: each resource is encoded once for all streams, and a
//! step's slices are shared by all streams that make the same step.

use std::{sync::Arc, time::SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::version::{Digest, Digests, Version};
use crate::{
    proto::discovery as wire,
    resource::{Key, Kind, Resource},
};

/// Slices stay at or below this size, except for a single resource that is larger by itself.
pub const SLICE_BYTES: usize = 1 << 20;

const TAG_RESOURCES: u8 = 0x0a;
const TAG_REMOVED: u8 = 0x12;
const TAG_REPLACED_BUCKETS: u8 = 0x1a;
const TAG_COMMIT: u8 = 0x3a;

/// A resource with its wire form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Its name.
    pub key: Key,
    /// Hash of its body.
    pub version: Version,
    /// Canonical body.
    pub body: Bytes,
    /// The `resources` field of an Update holding it, tag and length included.
    field: Bytes,
}

/// Where one kind starts from in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// Nothing is sent: unwanted, or already at the head.
    Skip,
    /// Changes after this revision.
    After(u64),
    /// Everything, replacing whatever is held.
    Full,
}

/// Where each kind starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step(pub [Start; Kind::ALL.len()]);

/// The state that streams read: an immutable snapshot and its recent history.
pub trait View {
    /// Grows by one with each commit of this process.
    fn revision(&self) -> u64;
    /// Sums over the newest state.
    fn digests(&self) -> &Digests;
    /// When the newest state was committed.
    fn commit_time(&self) -> SystemTime;
    /// The revision at which `kind` had this digest, if it is in the history.
    fn find(&self, kind: Kind, digest: &Digest) -> Option<u64>;
    /// Keys of `kind` touched after `revision`; `None` if the history does not reach back that far.
    fn touched(&self, kind: Kind, revision: u64) -> Option<Vec<Key>>;
    /// The newest content of a resource.
    fn get(&self, key: &Key) -> Option<&Encoded>;
    /// All resources of a kind, in order of their names.
    fn all(&self, kind: Kind) -> Vec<&Encoded>;
    /// The Updates of a step. Implementations may cache what [`slices`] returns.
    fn slices(&self, step: &Step) -> Arc<[Bytes]>;
}

// === impl Encoded ===

impl Encoded {
    /// Encodes a resource.
    pub fn new(resource: &Resource) -> Self {
        let body = Bytes::from(resource.encode());
        let key = resource.key();
        let version = Version::of(&body);
        let message = wire::Resource {
            r#type: key.kind.wire() as i32,
            name: key.name.to_string(),
            version: version.to_bytes(),
            body: body.clone(),
        };
        let mut field = BytesMut::with_capacity(message.encoded_len() + 6);
        put_message(&mut field, TAG_RESOURCES, &message);
        Self { key, version, body, field: field.freeze() }
    }

    /// The resource as a message.
    pub fn to_wire(&self) -> wire::Resource {
        wire::Resource {
            r#type: self.key.kind.wire() as i32,
            name: self.key.name.to_string(),
            version: self.version.to_bytes(),
            body: self.body.clone(),
        }
    }
}

// === impl Step ===

impl Step {
    /// Nothing for any kind.
    pub const NOTHING: Step = Step([Start::Skip; Kind::ALL.len()]);

    /// Where `kind` starts.
    pub fn of(&self, kind: Kind) -> Start {
        self.0[kind as usize]
    }

    /// Sets where `kind` starts.
    pub fn set(&mut self, kind: Kind, start: Start) {
        self.0[kind as usize] = start;
    }
}

/// Encodes the Updates of a step; the last one carries the Commit. Never empty.
///
/// A kind whose history does not reach back to its start is sent in full.
pub fn slices(view: &dyn View, step: &Step) -> Arc<[Bytes]> {
    let mut slicer = Slicer::default();
    for kind in Kind::ALL {
        let touched = match step.of(kind) {
            Start::Skip => continue,
            Start::After(revision) => view.touched(kind, revision),
            Start::Full => None,
        };
        match touched {
            Some(keys) => keys.into_iter().for_each(|key| match view.get(&key) {
                Some(encoded) => slicer.put(&encoded.field),
                None => slicer.put_message(TAG_REMOVED, &reference(&key)),
            }),
            None => {
                let bucket = wire::BucketRef { r#type: kind.wire() as i32, bucket: 0 };
                slicer.put_message(TAG_REPLACED_BUCKETS, &bucket);
                view.all(kind).into_iter().for_each(|encoded| slicer.put(&encoded.field));
            }
        }
    }
    slicer.put_message(
        TAG_COMMIT,
        &wire::Commit {
            position: None,
            digests: view.digests().to_wire(Kind::ALL),
            commit_time: Some(view.commit_time().into()),
        },
    );
    slicer.finish()
}

fn reference(key: &Key) -> wire::ResourceRef {
    wire::ResourceRef { r#type: key.kind.wire() as i32, name: key.name.to_string() }
}

fn put_message(buffer: &mut BytesMut, tag: u8, message: &impl prost::Message) {
    buffer.put_u8(tag);
    prost::encoding::encode_varint(message.encoded_len() as u64, buffer);
    buffer.extend_from_slice(&message.encode_to_vec());
}

/// Gathers fields into slices.
#[derive(Default)]
struct Slicer {
    done: Vec<Bytes>,
    open: BytesMut,
}

// === impl Slicer ===

impl Slicer {
    fn put(&mut self, field: &[u8]) {
        if !self.open.is_empty() && self.open.len() + field.len() > SLICE_BYTES {
            self.done.push(self.open.split().freeze());
        }
        self.open.extend_from_slice(field);
    }

    fn put_message(&mut self, tag: u8, message: &impl prost::Message) {
        let mut field = BytesMut::with_capacity(message.encoded_len() + 6);
        put_message(&mut field, tag, message);
        self.put(&field);
    }

    fn finish(mut self) -> Arc<[Bytes]> {
        self.done.push(self.open.freeze());
        self.done.into()
    }
}
