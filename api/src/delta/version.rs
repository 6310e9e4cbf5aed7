//! Versions are functions of content, so that replicas and restarts agree on them.

use std::fmt;

use bytes::Bytes;

use crate::{
    proto::discovery as wire,
    resource::{Key, Kind},
};

/// First 16 bytes of BLAKE3 over a resource's canonical bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version([u8; 16]);

/// Order-independent sum over the resources of one type: costs one hash per change, whatever the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    lanes: [u64; 4],
    count: u64,
}

/// One [`Digest`] for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digests([Digest; Kind::ALL.len()]);

// === impl Version ===

impl Version {
    /// The version of a body.
    pub fn of(body: &[u8]) -> Self {
        let mut version = [0; 16];
        version.copy_from_slice(&blake3::hash(body).as_bytes()[..16]);
        Self(version)
    }

    /// The wire form; `None` unless it has 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The wire form.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

// === impl Digest ===

impl Digest {
    /// Number of resources summed up.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn element(key: &Key, version: Version) -> [u64; 4] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(key.kind.wire() as u32).to_le_bytes());
        hasher.update(&(key.name.len() as u32).to_le_bytes());
        hasher.update(key.name.as_bytes());
        hasher.update(&version.0);
        let hash = hasher.finalize();
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            *lane = u64::from_le_bytes(word);
        }
        lanes
    }

    fn from_wire(digest: &wire::TypeDigest) -> Option<Self> {
        if digest.digest.len() != 32 {
            return None;
        }
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(digest.digest.chunks_exact(8)) {
            *lane = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(Self { lanes, count: digest.resource_count })
    }
}

// === impl Digests ===

impl Digests {
    /// The digest of one kind.
    pub fn of(&self, kind: Kind) -> &Digest {
        &self.0[kind as usize]
    }

    /// Counts a resource in.
    pub fn add(&mut self, key: &Key, version: Version) {
        let digest = &mut self.0[key.kind as usize];
        for (lane, word) in digest.lanes.iter_mut().zip(Digest::element(key, version)) {
            *lane = lane.wrapping_add(word);
        }
        digest.count += 1;
    }

    /// Counts out a resource that was counted in.
    pub fn remove(&mut self, key: &Key, version: Version) {
        let digest = &mut self.0[key.kind as usize];
        for (lane, word) in digest.lanes.iter_mut().zip(Digest::element(key, version)) {
            *lane = lane.wrapping_sub(word);
        }
        digest.count = digest.count.wrapping_sub(1);
    }

    /// The wire form for some kinds.
    pub fn to_wire(&self, kinds: impl IntoIterator<Item = Kind>) -> Vec<wire::TypeDigest> {
        let encode = |kind: Kind| {
            let digest = self.of(kind);
            let lanes: Vec<u8> = digest.lanes.iter().flat_map(|lane| lane.to_le_bytes()).collect();
            wire::TypeDigest { r#type: kind.wire() as i32, digest: lanes.into(), resource_count: digest.count }
        };
        kinds.into_iter().map(encode).collect()
    }

    /// Reads the wire form. Kinds that are absent or malformed are left at the digest of nothing, and unknown types skipped.
    pub fn from_wire(digests: &[wire::TypeDigest]) -> Self {
        let mut this = Self::default();
        for digest in digests {
            if let (Some(kind), Some(value)) = (Kind::from_wire(digest.r#type), Digest::from_wire(digest)) {
                this.0[kind as usize] = value;
            }
        }
        this
    }
}
