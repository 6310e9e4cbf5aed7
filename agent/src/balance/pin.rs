//! Which endpoint each client of a port with session affinity has (S8).
//!
//! The ring gives a client the same endpoint on every node, after a restart, and on every worker, as long as the members
//! stay. When members are added it moves some clients, also active ones, and that is what pins are for: they remember,
//! until the affinity has timed out, where a client went last. A lost pin therefore costs nothing until members change.
//!
//! The kernel spreads the connections of a client over workers, so pins are shared by all of a node's workers. They
//! stand in an array of fixed size whose words are atomic: no lock, no allocation, no counter, and a cache line is written
//! by two workers only if they serve clients of the same set at the same time. The two words of a slot check each other,
//! as in the transposition tables of chess programs, so a slot that two workers write at once is a forgotten pin and never
//! the pin of somebody else. Where a set is full, its oldest pin is forgotten.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::table::Affinity;

/// Slots of a set. With these, one cache line is one set.
const WAYS: usize = 4;

/// Remembers the endpoints of clients.
#[derive(Debug)]
pub struct Pins {
    sets: Box<[Set]>,
    /// Where clients go is not for clients to foresee.
    seed: u64,
    /// Second 1 of the times in slots.
    began: Instant,
}

/// A client of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinKey(u64);

/// Stands for the address of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(u32);

#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([Slot; WAYS]);

#[derive(Debug, Default)]
struct Slot {
    /// The key, xor `value`.
    check: AtomicU64,
    /// The tag, and below it the second in which it was set. Zero means empty.
    value: AtomicU64,
}

// === impl Pins ===

impl Pins {
    /// Room for about `clients` clients, 32 bytes each.
    pub fn new(clients: usize, now: Instant) -> Self {
        // Half full, a set of four is full for one client in twenty.
        let sets = (clients / 2).next_power_of_two();
        Self { sets: (0..sets).map(|_| Set::default()).collect(), seed: fastrand::u64(..), began: now }
    }

    /// The key of a client. An IPv4 address and its IPv6-mapped form are one client (S8.2).
    pub fn key(&self, affinity: &Affinity, client: IpAddr) -> PinKey {
        let seed = self.seed ^ affinity.port;
        PinKey(match client.to_canonical() {
            IpAddr::V4(address) => xxh3_64_with_seed(&address.octets(), seed),
            IpAddr::V6(address) => xxh3_64_with_seed(&address.octets(), seed),
        })
    }

    /// The endpoint of a client, unless its affinity has timed out.
    pub fn get(&self, key: PinKey, affinity: &Affinity, now: Instant) -> Option<Tag> {
        let value = self.set(key).0.iter().find_map(|slot| slot.get(key))?;
        let age = self.second(now).saturating_sub(u64::from(value as u32));
        (age <= affinity.timeout.as_secs()).then_some(Tag((value >> 32) as u32))
    }

    /// Remembers the endpoint of a client, from now on for the time of its affinity (S8.3).
    pub fn set_to(&self, key: PinKey, tag: Tag, now: Instant) {
        let value = (u64::from(tag.0) << 32) | self.second(now);
        let slots = &self.set(key).0;
        let known = slots.iter().find_map(|slot| Some((slot, slot.get(key)?)));
        match known {
            // Nothing to say that is not said: the cache line stays shared.
            Some((_, before)) if before == value => {}
            Some((slot, _)) => slot.put(key, value),
            None => {
                let oldest = slots.iter().min_by_key(|slot| slot.value.load(Relaxed) as u32);
                oldest.into_iter().for_each(|slot| slot.put(key, value));
            }
        }
    }

    fn set(&self, key: PinKey) -> &Set {
        // The number of sets is a power of two. The low bits of the key are as random as any.
        &self.sets[key.0 as usize & (self.sets.len() - 1)]
    }

    /// Counted from 1, so that no value is zero. It fits 32 bits for 136 years.
    fn second(&self, now: Instant) -> u64 {
        1 + now.saturating_duration_since(self.began).as_secs()
    }
}

// === impl Slot ===

impl Slot {
    fn get(&self, key: PinKey) -> Option<u64> {
        let value = self.value.load(Relaxed);
        (value != 0 && (self.check.load(Relaxed) ^ value) == key.0).then_some(value)
    }

    fn put(&self, key: PinKey, value: u64) {
        self.check.store(key.0 ^ value, Relaxed);
        self.value.store(value, Relaxed);
    }
}

// === impl Tag ===

impl Tag {
    /// The tag of an endpoint.
    pub fn of(endpoint: SocketAddr) -> Self {
        let port = u64::from(endpoint.port());
        let hash = match endpoint.ip() {
            IpAddr::V4(address) => xxh3_64_with_seed(&address.octets(), port),
            IpAddr::V6(address) => xxh3_64_with_seed(&address.octets(), port),
        };
        Self(xxh3_64(&hash.to_le_bytes()) as u32)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    const AFFINITY: Affinity = Affinity { timeout: Duration::from_secs(100), port: 7 };

    fn client(index: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + index).into())
    }

    fn tag(last: u8) -> Tag {
        Tag::of(([10, 1, 0, last], 80).into())
    }

    #[test]
    fn a_pin_lives_for_the_timeout_after_the_latest_connection() {
        let now = Instant::now();
        let pins = Pins::new(64, now);
        let key = pins.key(&AFFINITY, client(1));
        let get = |after: u64| pins.get(key, &AFFINITY, now + Duration::from_secs(after));
        assert_eq!(get(0), None);
        pins.set_to(key, tag(1), now);
        assert_eq!((get(0), get(99), get(102)), (Some(tag(1)), Some(tag(1)), None));
        pins.set_to(key, tag(1), now + Duration::from_secs(90));
        assert_eq!(get(180), Some(tag(1)));
        pins.set_to(key, tag(2), now + Duration::from_secs(95));
        assert_eq!(get(180), Some(tag(2)));
    }

    #[test]
    fn ports_and_clients_are_apart_and_mapped_addresses_are_not() {
        let pins = Pins::new(64, Instant::now());
        let other = Affinity { port: 8, ..AFFINITY };
        assert_ne!(pins.key(&AFFINITY, client(1)), pins.key(&AFFINITY, client(2)));
        assert_ne!(pins.key(&AFFINITY, client(1)), pins.key(&other, client(1)));
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        assert_eq!(pins.key(&AFFINITY, client(1)), pins.key(&AFFINITY, mapped));
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let now = Instant::now();
        let pins = Pins::new(256, now);
        for index in 0..10_000 {
            let later = now + Duration::from_millis(u64::from(index) * 10);
            pins.set_to(pins.key(&AFFINITY, client(index)), tag(1), later);
        }
        let end = now + Duration::from_secs(100);
        let held = |clients: std::ops::Range<u32>| {
            clients.filter(|index| pins.get(pins.key(&AFFINITY, client(*index)), &AFFINITY, end).is_some()).count()
        };
        assert!(held(9_900..10_000) >= 90, "{} of the last 100", held(9_900..10_000));
        assert!(held(0..10_000) <= 512);
    }

    #[test]
    fn workers_that_write_at_once_never_give_a_client_the_pin_of_another() {
        let now = Instant::now();
        // One set for everybody.
        let pins = Arc::new(Pins::new(2, now));
        let workers: Vec<_> = (0..4u8)
            .map(|worker| {
                let pins = pins.clone();
                std::thread::spawn(move || {
                    for round in 0..20_000u32 {
                        let index = (u32::from(worker) + round) % 16;
                        let key = pins.key(&AFFINITY, client(index));
                        if let Some(found) = pins.get(key, &AFFINITY, now) {
                            assert_eq!(found, tag(index as u8));
                        }
                        pins.set_to(key, tag(index as u8), now);
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().expect("no assertion failed"));
    }
}
