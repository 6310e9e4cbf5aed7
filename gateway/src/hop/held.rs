//! What the Secret of the keys holds, and what is to be done about it. Pure but for the making of keys: every replica comes
//! to the same step, and the version of the Secret decides whose step is taken.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use api::resource::hop_keys::{HopKey, HopKeys, KEY_LENGTH};
use aws_lc_rs::{error::Unspecified, rand};
use k8s_openapi::ByteString;

/// How long a key signs. It is accepted for as long before that and after it, so an agent may be away for a day.
pub const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Data of a Secret.
pub type Data = BTreeMap<String, ByteString>;

/// What is held at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Will sign.
    pub next: HopKey,
    /// Signs.
    pub current: HopKey,
    /// Signed before; none before the first rotation.
    pub previous: Option<HopKey>,
    /// Since when `current` signs, in whole seconds.
    pub since: SystemTime,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make all keys anew: there are none, or none that can be read.
    Create,
    /// Sign with the next key from now on.
    Rotate,
    /// Nothing before this time.
    Wait(SystemTime),
}

/// Why the data of the Secret is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Error {
    field: &'static str,
    reason: &'static str,
}

/// What is to be done at `now`.
pub fn plan(now: SystemTime, held: Option<&Held>) -> Step {
    let Some(held) = held else { return Step::Create };
    let due = held.since + LIFE;
    if due <= now { Step::Rotate } else { Step::Wait(due) }
}

// === impl Held ===

impl Held {
    /// All keys anew.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn make(now: SystemTime) -> Result<Self, Unspecified> {
        Ok(Self { next: make()?, current: make()?, previous: None, since: whole(now) })
    }

    /// The same, with the next key in force.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn rotated(&self, now: SystemTime) -> Result<Self, Unspecified> {
        Ok(Self { next: make()?, current: self.next, previous: Some(self.current), since: whole(now) })
    }

    /// What agents are told.
    pub fn keys(&self) -> HopKeys {
        HopKeys { current: self.current, accepted: std::iter::once(self.next).chain(self.previous).collect() }
    }

    /// As data of the Secret.
    pub fn data(&self) -> Data {
        let seconds = self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let keys = [("next", Some(self.next)), ("current", Some(self.current)), ("previous", self.previous)];
        let keys = keys.into_iter().filter_map(|(name, key)| Some((name, key?.0.to_vec())));
        let since = std::iter::once(("since", seconds.to_string().into_bytes()));
        keys.chain(since).map(|(name, value)| (name.to_owned(), ByteString(value))).collect()
    }

    /// From data of the Secret.
    ///
    /// # Errors
    /// [`Error`] names the key that is wrong.
    pub fn read(data: &Data) -> Result<Self, Error> {
        let key = |field: &'static str, value: &ByteString| {
            let reason = "is not a key of 32 bytes";
            HopKey::parse(field, &value.0).map_err(|_| Error { field, reason })
        };
        let required =
            |field| data.get(field).ok_or(Error { field, reason: "is missing" }).and_then(|value| key(field, value));
        let since = data.get("since").and_then(|value| std::str::from_utf8(&value.0).ok()?.parse().ok());
        let since = since.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        Ok(Self {
            next: required("next")?,
            current: required("current")?,
            previous: data.get("previous").map(|value| key("previous", value)).transpose()?,
            since: since.ok_or(Error { field: "since", reason: "is not a time in seconds since 1970" })?,
        })
    }
}

fn make() -> Result<HopKey, Unspecified> {
    let mut key = [0; KEY_LENGTH];
    rand::fill(&mut key)?;
    Ok(HopKey(key))
}

/// As precise as the Secret is, so that what is read equals what was written.
fn whole(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_800_000_000_500)
    }

    #[test]
    fn a_key_is_known_to_agents_before_it_signs_and_after() {
        let made = Held::make(start()).expect("random numbers");
        assert_eq!(plan(start(), None), Step::Create);
        assert_eq!(plan(start(), Some(&made)), Step::Wait(made.since + LIFE));
        assert_eq!(made.keys(), HopKeys { current: made.current, accepted: vec![made.next] });

        assert_eq!(plan(start() + LIFE, Some(&made)), Step::Rotate);
        let rotated = made.rotated(start() + LIFE).expect("random numbers");
        assert_eq!((rotated.current, rotated.previous), (made.next, Some(made.current)));
        assert!(![made.current, made.next].contains(&rotated.next), "a new one follows");
        assert_eq!(rotated.keys().accepted, [rotated.next, made.current]);
        assert_eq!(plan(start() + LIFE, Some(&rotated)), Step::Wait(rotated.since + LIFE));

        let again = rotated.rotated(start() + 2 * LIFE).expect("random numbers");
        assert!(!again.keys().accepted.contains(&made.current), "its time is over");
    }

    #[test]
    fn the_secret_holds_it_all() {
        let made = Held::make(start()).expect("random numbers");
        for held in [made.clone(), made.rotated(start()).expect("random numbers")] {
            assert_eq!(Held::read(&held.data()), Ok(held));
        }
    }

    #[test]
    fn what_is_damaged_is_named() {
        let data = Held::make(start()).and_then(|made| made.rotated(start())).expect("random numbers").data();
        for (field, value, expected) in [
            ("next", None, "next: is missing"),
            ("current", Some("short"), "current: is not a key of 32 bytes"),
            ("previous", Some("short"), "previous: is not a key of 32 bytes"),
            ("since", Some("yesterday"), "since: is not a time in seconds since 1970"),
            ("since", None, "since: is not a time in seconds since 1970"),
        ] {
            let mut data = data.clone();
            match value {
                Some(value) => data.insert(field.to_owned(), ByteString(value.into())),
                None => data.remove(field),
            };
            assert_eq!(Held::read(&data).map_err(|error| error.to_string()), Err(expected.to_owned()));
        }
    }
}
