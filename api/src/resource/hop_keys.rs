//! The keys by which the agents of a cluster know each other. They are never printed.

use std::fmt;

use bytes::Bytes;

use super::invalid::Invalid;
use crate::proto::discovery as wire;

/// Length of a key: as long as what HMAC-SHA256 makes of it, so that guessing a key is no easier than guessing a code.
pub const KEY_LENGTH: usize = 32;

/// Accepted beside the current one at most: one before and one after are in use, the rest is room.
const MAX_ACCEPTED: usize = 8;

/// A key of HMAC-SHA256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HopKey(pub [u8; KEY_LENGTH]);

/// The keys of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopKeys {
    /// Signs.
    pub current: HopKey,
    /// Signed before, or will sign next.
    pub accepted: Vec<HopKey>,
}

// === impl HopKey ===

impl HopKey {
    /// Takes bytes for a key.
    ///
    /// # Errors
    /// [`Invalid`] if the length is wrong.
    pub fn parse(field: &'static str, bytes: &[u8]) -> Result<Self, Invalid> {
        let length = || Invalid::new(field, format!("has {} bytes; a key has {KEY_LENGTH}", bytes.len()));
        bytes.try_into().map(Self).map_err(|_| length())
    }
}

impl fmt::Debug for HopKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("HopKey(hidden)")
    }
}

// === impl HopKeys ===

impl TryFrom<wire::HopKeys> for HopKeys {
    type Error = Invalid;

    fn try_from(keys: wire::HopKeys) -> Result<Self, Invalid> {
        if keys.accepted.len() > MAX_ACCEPTED {
            return Err(Invalid::new(
                "accepted",
                format!("holds {} keys, the most is {MAX_ACCEPTED}", keys.accepted.len()),
            ));
        }
        Ok(Self {
            current: HopKey::parse("current", &keys.current)?,
            accepted: keys.accepted.iter().map(|key| HopKey::parse("accepted", key)).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&HopKeys> for wire::HopKeys {
    fn from(keys: &HopKeys) -> Self {
        let bytes = |key: &HopKey| Bytes::copy_from_slice(&key.0);
        wire::HopKeys { current: bytes(&keys.current), accepted: keys.accepted.iter().map(bytes).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> HopKeys {
        HopKeys { current: HopKey([1; 32]), accepted: vec![HopKey([2; 32]), HopKey([3; 32])] }
    }

    #[test]
    fn keys_pass_the_wire_and_are_never_printed() {
        assert_eq!(HopKeys::try_from(wire::HopKeys::from(&keys())), Ok(keys()));
        let printed = format!("{:?}", HopKeys { current: HopKey(*b"a key that nobody should ever se"), ..keys() });
        assert_eq!(printed, "HopKeys { current: HopKey(hidden), accepted: [HopKey(hidden), HopKey(hidden)] }");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let check = |change: fn(&mut wire::HopKeys), expected: &str| {
            let mut message = wire::HopKeys::from(&keys());
            change(&mut message);
            let invalid = HopKeys::try_from(message).expect_err("is wrong");
            assert_eq!(invalid.to_string(), expected);
        };
        check(|keys| keys.current = Bytes::new(), "current: has 0 bytes; a key has 32");
        check(|keys| keys.accepted[1] = vec![0; 33].into(), "accepted: has 33 bytes; a key has 32");
        check(|keys| keys.accepted = vec![vec![0; 32].into(); 9], "accepted: holds 9 keys, the most is 8");
    }
}
