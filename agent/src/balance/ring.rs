//! The consistent-hash ring: equal members give an equal ring on every node, so a client keeps its endpoint whatever
//! node it enters by.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
};

use consistent_hash::{Node, RingHash, StaticHashRing};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::flow::FlowHash;

/// Ring entries wanted in total. 10,000 to 100,000 entries (16 bytes each) keep the busiest of ten endpoints within a
/// few per cent of the mean.
const ENTRIES: usize = 40_000;

/// Bounds of virtual nodes per unit of weight: above the upper one the spread no longer gets better.
const PER_WEIGHT: (usize, usize) = (100, 1_000);

/// Indices of endpoints on a ring.
pub struct Ring(StaticHashRing<'static, Member, usize, Xxh3>);

/// A member: its order and hash depend on its key only.
struct Member {
    hash: u64,
    key: Box<str>,
}

/// Passes through what was hashed before, so that the ring depends on no layout of the standard library's `Hash`.
#[derive(Clone, Copy)]
struct Xxh3;

#[derive(Default)]
struct Pass(u64);

// === impl Ring ===

impl Ring {
    /// Builds the ring of `(key, weight)` members; the index of a member is its place in the input. Of equal keys the
    /// first one counts.
    pub fn new<'a>(members: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let members: Vec<_> = members.into_iter().collect();
        let total: usize = members.iter().map(|(_, weight)| *weight as usize).sum();
        let per_weight = (ENTRIES / total.max(1)).clamp(PER_WEIGHT.0, PER_WEIGHT.1);
        let nodes = members.into_iter().enumerate().map(|(index, (key, weight))| {
            let member = Member { hash: xxh3_64(key.as_bytes()), key: key.into() };
            Node::new(member).value(index).quantity(per_weight * weight.max(1) as usize)
        });
        Self(StaticHashRing::new(Xxh3, nodes))
    }

    /// All members, nearest first: the first is the choice, the others follow in the order in which they would take over.
    pub fn walk(&self, hash: FlowHash) -> impl Iterator<Item = usize> + '_ {
        self.0.calc_candidates(&hash.0).map(|node| node.value)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Ring({} members)", self.0.nodes().len())
    }
}

// === impl Member ===

impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Member {}

impl Ord for Member {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.hash, &self.key).cmp(&(other.hash, &other.key))
    }
}

impl PartialOrd for Member {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

// === impl Xxh3 ===

impl RingHash for Xxh3 {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut pass = Pass::default();
        item.hash(&mut pass);
        pass.finish()
    }

    fn hash_vnode<K: Hash>(&self, key: &K, sequence: usize) -> u64 {
        xxh3_64_with_seed(&(sequence as u64).to_le_bytes(), self.hash_item(key))
    }
}

impl Hasher for Pass {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn ring(count: u8) -> Ring {
        let keys: Vec<String> = (1..=count).map(|last| format!("10.0.0.{last}")).collect();
        Ring::new(keys.iter().map(|key| (key.as_str(), 1)))
    }

    fn client(index: u32) -> FlowHash {
        FlowHash::of_client(IpAddr::V4(Ipv4Addr::from(0xc0a8_0000 + index)))
    }

    #[test]
    fn placement_is_pinned() {
        let ring = ring(5);
        let picks: Vec<usize> = (0..12).map(|index| ring.walk(client(index)).next().expect("not empty")).collect();
        // A change here moves every client of every user: it needs a release note, not a new expectation.
        assert_eq!(picks, PINNED);
    }
    const PINNED: [usize; 12] = [1, 1, 2, 1, 4, 4, 1, 4, 3, 0, 3, 4];

    #[test]
    fn a_walk_visits_every_member_once() {
        let mut walk: Vec<usize> = ring(7).walk(client(3)).collect();
        walk.sort_unstable();
        assert_eq!(walk, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_member_that_leaves_moves_only_its_own_clients() {
        let (before, after) = (ring(6), ring(5));
        for index in 0..5_000 {
            let old = before.walk(client(index)).next();
            if old != Some(5) {
                assert_eq!(old, after.walk(client(index)).next());
            }
        }
    }

    #[test]
    fn clients_spread_within_a_quarter_of_the_mean() {
        let ring = ring(5);
        let mut counts = [0u32; 5];
        for index in 0..50_000 {
            counts[ring.walk(client(index)).next().expect("not empty")] += 1;
        }
        assert!(counts.iter().all(|count| (7_500..=12_500).contains(count)), "{counts:?}");
    }

    #[test]
    fn weights_are_shares() {
        let ring = Ring::new([("a", 1), ("b", 3)]);
        let heavy = (0..20_000).filter(|index| ring.walk(client(*index)).next() == Some(1)).count();
        assert!((13_000..=17_000).contains(&heavy), "{heavy} of 20000");
    }
}
