//! Who may hand connections over: whoever has a key of the cluster, just now, and with these bytes not yet.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use api::resource::hop_keys::HopKeys;
use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};

use super::{
    introduction::{self, CODE, Introduction, Stamp, micros},
    proxy,
    seen::{Noted, Seen},
};

/// How far the clocks of two nodes may differ, with the time on the way. A header is good for as long.
pub const WINDOW: Duration = Duration::from_secs(15);

/// The keys of the cluster, ready for use.
pub struct Keys {
    sign: hmac::Key,
    accept: Vec<hmac::Key>,
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error(transparent)]
    Malformed(#[from] introduction::Error),
    #[error("no key of this cluster made its code")]
    Code,
    #[error("it was made more than {WINDOW:?} from now by the clock of this node, or before this agent started")]
    Time,
    #[error("it came before")]
    Replayed,
    #[error("more came lately than can be remembered")]
    Full,
    #[error("it did not come in time")]
    Late,
}

// === impl Refusal ===

impl Refusal {
    /// Every label, in the order of [`Refusal::index`].
    pub const LABELS: [&'static str; 6] = ["malformed", "code", "time", "replayed", "full", "late"];

    /// `reason` of the metric and of log lines.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// Its place among the labels.
    pub fn index(self) -> usize {
        match self {
            Refusal::Malformed(_) => 0,
            Refusal::Code => 1,
            Refusal::Time => 2,
            Refusal::Replayed => 3,
            Refusal::Full => 4,
            Refusal::Late => 5,
        }
    }
}

// === impl Keys ===

impl Keys {
    /// Takes the keys of the gateway.
    pub fn new(keys: &HopKeys) -> Self {
        let key = |key: &api::resource::hop_keys::HopKey| hmac::Key::new(hmac::HMAC_SHA256, &key.0);
        // The current one made most codes.
        let accept = std::iter::once(&keys.current).chain(&keys.accepted);
        Self { sign: key(&keys.current), accept: accept.map(key).collect() }
    }

    /// The header for an introduction, good for one time.
    ///
    /// # Errors
    /// As of [`Introduction::encode`]; also when the system has no random numbers.
    pub fn seal(&self, said: &Introduction, now: SystemTime) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let stamp = Stamp::new(now, u128::from_be_bytes(nonce));
        let code = |bytes: &[u8]| {
            let mut code = [0; CODE];
            code.copy_from_slice(hmac::sign(&self.sign, bytes).as_ref());
            code
        };
        Ok(said.encode(stamp, code)?)
    }

    /// What a header says, if it may. `began` is when `seen` was empty.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open(&self, bytes: &[u8], now: SystemTime, began: SystemTime, seen: &Seen) -> Result<Introduction, Refusal> {
        let check = |covered: &[u8], code: &[u8; CODE]| {
            let made = |key: &hmac::Key| verify_slices_are_equal(hmac::sign(key, covered).as_ref(), code).is_ok();
            if self.accept.iter().any(made) { Ok(()) } else { Err(Refusal::Code) }
        };
        let (heard, stamp) = Introduction::parse(bytes, check)?;
        let (now, began) = (micros(now), micros(began));
        let window = WINDOW.as_micros() as u64;
        if now.abs_diff(stamp.micros) > window || stamp.micros < began {
            return Err(Refusal::Time);
        }
        let second = |micros: u64| micros / 1_000_000;
        match seen.note(stamp.nonce, second(now), second(stamp.micros + window)) {
            Noted::First => Ok(heard),
            Noted::Again => Err(Refusal::Replayed),
            Noted::Full => Err(Refusal::Full),
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Keys({} hidden)", self.accept.len())
    }
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SealError {
    #[error("a header for it {0}")]
    Header(#[from] proxy::Error),
    #[error("the system has no random numbers")]
    Random,
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use api::resource::{hop_keys::HopKey, name::NamespacedName, service::Transport};
    use proptest::prelude::*;

    use super::*;
    use crate::report::trace::SpanContext;

    fn keys(current: u8, accepted: &[u8]) -> Keys {
        let key = |byte: u8| HopKey([byte; 32]);
        Keys::new(&HopKeys { current: key(current), accepted: accepted.iter().copied().map(key).collect() })
    }

    fn said() -> Introduction {
        Introduction {
            transport: Transport::Tcp,
            client: "192.0.2.1:40000".parse().expect("an address"),
            destination: "10.96.0.1:80".parse().expect("an address"),
            service: NamespacedName::new("shop", "cart"),
            endpoint: "10.244.1.5:8080".parse().expect("an address"),
            entry: "node-1".into(),
            trace: SpanContext::default(),
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// Opens with an agent that began an hour ago.
    fn open(keys: &Keys, bytes: &[u8], at: SystemTime) -> Result<Introduction, Refusal> {
        keys.open(bytes, at, now() - Duration::from_secs(3600), &Seen::new(64))
    }

    #[test]
    fn keys_of_the_cluster_are_believed_through_a_rotation() {
        // The next key, the current one, the previous one.
        let before = keys(2, &[3, 1]);
        let after = keys(3, &[4, 2]);
        for (signs, opens) in [(&before, &after), (&after, &before), (&before, &before)] {
            let bytes = signs.seal(&said(), now()).expect("fits");
            assert_eq!(open(opens, &bytes, now()), Ok(said()));
        }
        let old = keys(1, &[2]).seal(&said(), now()).expect("fits");
        assert_eq!(open(&after, &old, now()), Err(Refusal::Code));
        let forged = keys(99, &[]).seal(&said(), now()).expect("fits");
        assert_eq!(open(&before, &forged, now()), Err(Refusal::Code));
    }

    #[test]
    fn a_header_is_good_for_a_while_and_for_once() {
        let keys = keys(1, &[]);
        let bytes = keys.seal(&said(), now()).expect("fits");
        let second = Duration::from_secs(1);
        assert_eq!(open(&keys, &bytes, now() + WINDOW), Ok(said()));
        assert_eq!(open(&keys, &bytes, now() - WINDOW), Ok(said()));
        assert_eq!(open(&keys, &bytes, now() + WINDOW + second), Err(Refusal::Time));
        assert_eq!(open(&keys, &bytes, now() - WINDOW - second), Err(Refusal::Time));
        // What an agent saw before it was restarted it cannot know.
        assert_eq!(keys.open(&bytes, now(), now() + second, &Seen::new(64)), Err(Refusal::Time));

        let seen = Seen::new(64);
        assert_eq!(keys.open(&bytes, now(), now(), &seen), Ok(said()));
        for later in [0, 1, 14, 15] {
            let replayed = keys.open(&bytes, now() + later * second, now(), &seen);
            assert_eq!(replayed, Err(Refusal::Replayed), "{later} s later");
        }
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", keys(7, &[8])), "Keys(2 hidden)");
    }

    proptest! {
        #[test]
        fn no_bit_of_a_header_can_be_changed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let keys = keys(1, &[2]);
            let mut bytes = keys.seal(&said(), now()).expect("fits");
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(open(&keys, &bytes, now()).is_err());
        }
    }
}
