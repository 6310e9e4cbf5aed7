//! The bytes of `/bytes/N`: the same for every request, at every offset different, made as they are sent.
//!
//! The stream is the sequence of 64-bit little-endian words `mix(0), mix(1), …` where `mix` is the output function of
//! SplitMix64 (Steele, Lea, Flood 2014). A lost, repeated or swapped block therefore never goes unnoticed, a client can
//! compute the same bytes in any language, and none are kept in memory.

use bytes::{BufMut, Bytes, BytesMut};

/// The longest stream that is served, in bytes.
pub const LIMIT: u64 = 2 << 30;

/// The most bytes made at once: large enough that frames and system calls cost little, small enough to stay in cache.
const CHUNK: u64 = 64 << 10;

/// What is left to send.
#[derive(Clone, Debug)]
pub struct Pattern {
    offset: u64,
    end: u64,
}

impl Pattern {
    /// The first `length` bytes.
    pub fn new(length: u64) -> Self {
        Pattern { offset: 0, end: length }
    }

    /// Bytes not yet taken.
    pub fn remaining(&self) -> u64 {
        self.end - self.offset
    }
}

impl Iterator for Pattern {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = self.remaining().min(CHUNK);
        if length == 0 {
            return None;
        }
        // Chunks begin at multiples of CHUNK, hence on a word; only the last may end inside one.
        let words = length.div_ceil(8);
        let mut chunk = BytesMut::with_capacity((words * 8) as usize);
        let first = self.offset / 8;
        for word in first..first + words {
            chunk.put_u64_le(mix(word));
        }
        chunk.truncate(length as usize);
        self.offset += length;
        Some(chunk.freeze())
    }
}

/// The `index`-th output of SplitMix64 with seed 0.
fn mix(index: u64) -> u64 {
    let mut word = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(length: u64) -> Vec<u8> {
        Pattern::new(length).flatten().collect()
    }

    #[test]
    fn words_are_those_of_splitmix64() {
        // The first outputs for seed 0, as published with the reference implementation.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(1), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(all(8), mix(0).to_le_bytes());
    }

    #[test]
    fn every_length_is_exact_and_a_prefix_of_the_longer_ones() {
        let long = all(3 * CHUNK + 5);
        for length in [0, 1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5] {
            let bytes = all(length);
            assert_eq!(bytes.len() as u64, length);
            assert!(bytes == long[..length as usize], "length {length}");
        }
    }

    #[test]
    fn memory_is_bounded_by_the_chunk() {
        assert!(Pattern::new(LIMIT).take(3).all(|chunk| chunk.len() as u64 == CHUNK));
    }
}
