//! Which headers came lately, so that one that somebody has overheard is good for nothing.
//!
//! The kernel spreads connections over workers, so all of them share what is here: words that are written by
//! compare-and-exchange, in sets of one cache line, without a lock. A nonce that cannot be remembered is refused: what is not
//! remembered could come again.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Slots of a set.
const WAYS: usize = 8;

/// Bits of a slot that hold the second up to which it counts. It comes round after half a year.
const SECOND_BITS: u32 = 24;
const SECOND_MASK: u64 = (1 << SECOND_BITS) - 1;

/// How many seconds a nonce is remembered at most. What is further ahead is a second of long ago that came round.
const LONGEST: u64 = 60;

/// Nonces of headers that are still within their time.
#[derive(Debug)]
pub struct Seen {
    sets: Box<[Set]>,
    /// Where nonces go is not for senders to foresee.
    seed: u64,
}

/// What becomes of a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It is new.
    First,
    /// It came before.
    Again,
    /// There is no room for it.
    Full,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

// === impl Seen ===

impl Seen {
    /// Room for about `nonces` nonces at a time, 16 bytes each.
    pub fn new(nonces: usize) -> Self {
        // Half full, a set of eight is full for one nonce in fifty, and for one in ten thousand when a quarter full.
        let sets = (nonces / 4).next_power_of_two();
        Self { sets: (0..sets).map(|_| Set::default()).collect(), seed: fastrand::u64(..) }
    }

    /// Notes a nonce at second `now`, to be remembered through second `until`, which is at most [`LONGEST`] later.
    pub fn note(&self, nonce: u128, now: u64, until: u64) -> Noted {
        let hash = xxh3_64_with_seed(&nonce.to_le_bytes(), self.seed);
        // The number of sets is a power of two. Which of them it is, and what is remembered, are different bits; the lowest
        // of these is set, so that no slot in use is zero.
        let set = &self.sets[(hash & SECOND_MASK) as usize & (self.sets.len() - 1)].0;
        let mark = (hash >> SECOND_BITS) | 1;
        let value = (mark << SECOND_BITS) | (until & SECOND_MASK);
        loop {
            let mut free = None;
            for slot in set {
                let found = slot.load(SeqCst);
                match lives(found, now) {
                    true if found >> SECOND_BITS == mark => return Noted::Again,
                    true => {}
                    false => free = free.or(Some((slot, found))),
                }
            }
            let Some((slot, before)) = free else { return Noted::Full };
            if slot.compare_exchange(before, value, SeqCst, SeqCst).is_err() {
                continue;
            }
            // Two workers whose clocks differ may have chosen different slots for one nonce. At least one sees the other.
            let same = |slot: &&AtomicU64| {
                let found = slot.load(SeqCst);
                lives(found, now) && found >> SECOND_BITS == mark
            };
            return if set.iter().filter(same).count() > 1 { Noted::Again } else { Noted::First };
        }
    }
}

/// Whether a slot still counts at second `now`.
fn lives(value: u64, now: u64) -> bool {
    let left = value.wrapping_sub(now) & SECOND_MASK;
    value != 0 && left <= LONGEST
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_nonce_counts_once_as_long_as_it_is_remembered() {
        let seen = Seen::new(64);
        assert_eq!(seen.note(7, 100, 130), Noted::First);
        assert_eq!(seen.note(7, 130, 160), Noted::Again);
        assert_eq!(seen.note(8, 100, 130), Noted::First);
        assert_eq!(seen.note(7, 131, 160), Noted::First);
        // The seconds come round.
        let round = u64::from(u32::MAX) & !SECOND_MASK;
        assert_eq!(seen.note(9, round - 1, round + 20), Noted::First);
        assert_eq!(seen.note(9, round + 20, round + 40), Noted::Again);
        assert_eq!(seen.note(9, round + 21, round + 40), Noted::First);
        // What is long over stays over.
        for days in [1, 96, 98, 150] {
            assert_eq!(seen.note(days, 100, 130), Noted::First);
            let later = 100 + days as u64 * 24 * 3600;
            assert_eq!(seen.note(days, later, later + 30), Noted::First, "after {days} days");
        }
    }

    #[test]
    fn what_cannot_be_remembered_is_not_taken() {
        let seen = Seen::new(1);
        let count = |noted| (0..20).filter(|nonce| seen.note(*nonce, 100, 130) == noted).count();
        assert_eq!(count(Noted::First), WAYS);
        assert_eq!((count(Noted::Again), count(Noted::Full)), (WAYS, 20 - WAYS));
        assert_eq!(seen.note(1000, 131, 160), Noted::First);
    }

    #[test]
    fn room_is_as_said() {
        let seen = Seen::new(4096);
        let full = (0..4096).filter(|nonce| seen.note(*nonce, 100, 130) == Noted::Full).count();
        assert!(full < 200, "{full} of 4096");
    }

    #[test]
    fn of_many_at_once_one_is_first() {
        let seen = Seen::new(4);
        let first = AtomicUsize::new(0);
        for nonce in 0..2_000u128 {
            let now = nonce as u64 * 100;
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        if seen.note(nonce, now, now + 30) == Noted::First {
                            first.fetch_add(1, SeqCst);
                        }
                    });
                }
            });
            assert_eq!(first.swap(0, SeqCst), 1, "nonce {nonce}");
        }
    }
}
