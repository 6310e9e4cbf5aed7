//! Walking the candidates of a connection or request: the choice first, then those that take over.

use std::{cell::Cell, net::SocketAddr, num::NonZeroU32, sync::Arc};

use super::flow::FlowHash;
use crate::table::{Backend, Balance, Candidates};

/// What this worker knows of an endpoint when it chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests or connections in flight from this worker.
    pub active: u32,
    /// It failed lately; used only when nothing else is left.
    pub ejected: bool,
}

/// How full an endpoint may be, beside the others, for a client that is new to it (consistent hashing with bounded loads,
/// Mirrokni et al. 2016).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBound {
    /// Per cent of the mean; `None` follows the ring strictly.
    pub percent: Option<NonZeroU32>,
}

/// Connections of one worker to one endpoint that are never too many: below this, a share says nothing of the load.
const ALWAYS_ROOM: u32 = 32;

/// The first endpoint on the ring that is in order and not fuller than `bound` says. `None` if there is no ring, or no
/// such endpoint.
pub fn within<'a>(
    candidates: &'a Candidates,
    hash: FlowHash,
    bound: LoadBound,
    load: impl Fn(&Backend) -> Load,
    tried: &[SocketAddr],
) -> Option<&'a Arc<Backend>> {
    let (ring, percent) = (candidates.ring.as_ref()?, bound.percent?);
    let backends = &candidates.backends;
    // Counted only once an endpoint is busy at all: it takes a look at every endpoint.
    let mut most = None;
    let limit = || {
        let total: u64 = 1 + backends.iter().map(|backend| u64::from(load(backend).active)).sum::<u64>();
        (total * u64::from(percent.get())).div_ceil(100 * backends.len() as u64)
    };
    ring.walk(hash).filter_map(|index| backends.get(index)).find(|backend| {
        let Load { active, ejected } = load(backend);
        let open = !ejected && !tried.contains(&backend.address);
        open && (active < ALWAYS_ROOM || u64::from(active) < *most.get_or_insert_with(&limit))
    })
}

/// Chooses the endpoint for the next attempt, leaving out those in `tried`. `hash` is used where the balance hashes.
///
/// Ejected endpoints are chosen only when no other is left: an ejection is an opinion, the candidates are a fact.
pub fn pick<'a>(
    candidates: &'a Candidates,
    balance: &Balance,
    hash: FlowHash,
    turn: &Cell<u32>,
    load: impl Fn(&Backend) -> Load,
    tried: &[SocketAddr],
) -> Option<&'a Arc<Backend>> {
    let backends = &candidates.backends;
    let open = |backend: &Backend| !tried.contains(&backend.address);
    if let [only] = &**backends {
        return open(only).then_some(only);
    }
    match (balance, &candidates.ring) {
        (Balance::Hash(_), Some(ring)) => {
            let mut fallback = None;
            for backend in ring.walk(hash).filter_map(|index| backends.get(index)).filter(|backend| open(backend)) {
                if !load(backend).ejected {
                    return Some(backend);
                }
                fallback = fallback.or(Some(backend));
            }
            fallback
        }
        (Balance::LeastRequest, _) => {
            let first = probe(backends, fastrand::usize(..backends.len().max(1)), &open, &load)?;
            let second = probe(backends, fastrand::usize(..backends.len()), &open, &load)?;
            let cost = |backend: &Backend| {
                let Load { active, ejected } = load(backend);
                (ejected, u64::from(active + 1) * 1_000 / u64::from(backend.weight.max(1)))
            };
            Some(if cost(second) < cost(first) { second } else { first })
        }
        (Balance::RoundRobin, _) => {
            turn.set(turn.get().wrapping_add(1));
            probe(backends, turn.get() as usize % backends.len().max(1), &open, &load)
        }
        (Balance::Random | Balance::Hash(_), _) => {
            probe(backends, fastrand::usize(..backends.len().max(1)), &open, &load)
        }
    }
}

/// The first usable endpoint from `start` on, around; the first open one if all are ejected.
fn probe<'a>(
    backends: &'a [Arc<Backend>],
    start: usize,
    open: &impl Fn(&Backend) -> bool,
    load: &impl Fn(&Backend) -> Load,
) -> Option<&'a Arc<Backend>> {
    let around = || backends.iter().cycle().skip(start).take(backends.len()).filter(|backend| open(backend));
    around().find(|backend| !load(backend).ejected).or_else(|| around().next())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::table::HashKey;

    fn candidates(count: u8) -> Candidates {
        let backend = |last: u8| {
            let address = SocketAddr::from(([10, 0, 0, last], 80));
            Arc::new(Backend { key: address.ip().to_string().into(), ..Backend::new(address) })
        };
        Candidates::new((1..=count).map(backend)).with_ring()
    }

    fn all() -> [Balance; 4] {
        [Balance::LeastRequest, Balance::Random, Balance::RoundRobin, Balance::Hash(HashKey::Client)]
    }

    #[test]
    fn every_policy_walks_all_endpoints_and_then_ends() {
        let candidates = candidates(5);
        for balance in all() {
            let mut tried = Vec::new();
            while let Some(next) = pick(&candidates, &balance, FlowHash(7), &Cell::new(0), |_| Load::default(), &tried)
            {
                assert!(!tried.contains(&next.address));
                tried.push(next.address);
            }
            assert_eq!(tried.len(), 5, "{balance:?}");
        }
    }

    #[test]
    fn nothing_is_picked_from_nothing() {
        let none = Candidates::default();
        for balance in all() {
            assert!(pick(&none, &balance, FlowHash(7), &Cell::new(0), |_| Load::default(), &[]).is_none());
        }
    }

    #[test]
    fn ejected_endpoints_come_last() {
        let candidates = candidates(3);
        let bad = candidates.backends[1].address;
        let load = |backend: &Backend| Load { active: 0, ejected: backend.address == bad };
        for balance in all() {
            for hash in 0..50 {
                let hash = FlowHash(hash << 58);
                let chosen = pick(&candidates, &balance, hash, &Cell::new(0), load, &[]).expect("two are left");
                assert_ne!(chosen.address, bad, "{balance:?}");
            }
            let tried = [candidates.backends[0].address, candidates.backends[2].address];
            let last = pick(&candidates, &balance, FlowHash(1), &Cell::new(0), load, &tried);
            assert_eq!(last.map(|backend| backend.address), Some(bad));
        }
    }

    #[test]
    fn least_request_avoids_the_busy_one() {
        let candidates = candidates(2);
        let busy = candidates.backends[0].address;
        let load = |backend: &Backend| Load { active: if backend.address == busy { 9 } else { 0 }, ejected: false };
        let mut counts: HashMap<SocketAddr, u32> = HashMap::new();
        for _ in 0..400 {
            let chosen = pick(&candidates, &Balance::LeastRequest, FlowHash(0), &Cell::new(0), load, &[]);
            *counts.entry(chosen.expect("not empty").address).or_default() += 1;
        }
        // Both probes hit the busy one in a quarter of all cases.
        assert!(counts[&busy] < 160, "{counts:?}");
    }

    #[test]
    fn round_robin_takes_turns() {
        let (candidates, turn) = (candidates(3), Cell::new(0));
        let next = || pick(&candidates, &Balance::RoundRobin, FlowHash(0), &turn, |_| Load::default(), &[]);
        let taken: Vec<_> = (0..6).filter_map(|_| next()).map(|backend| backend.address).collect();
        assert_eq!(taken[..3], taken[3..]);
        assert_eq!(taken.iter().collect::<std::collections::HashSet<_>>().len(), 3);
    }

    #[test]
    fn a_full_endpoint_is_passed_over_by_new_clients_and_a_busy_one_is_not() {
        let candidates = candidates(4);
        let first = |busy: u32, percent: u32| {
            let strict = pick(
                &candidates,
                &Balance::Hash(HashKey::Client),
                FlowHash(7),
                &Cell::new(0),
                |_| Load::default(),
                &[],
            );
            let strict = strict.expect("not empty").address;
            let load =
                |backend: &Backend| Load { active: if backend.address == strict { busy } else { 0 }, ejected: false };
            let bound = LoadBound { percent: NonZeroU32::new(percent) };
            within(&candidates, FlowHash(7), bound, load, &[]).map(|backend| backend.address == strict)
        };
        assert_eq!(first(31, 125), Some(true), "too few to mean anything");
        assert_eq!(first(100, 125), Some(false));
        assert_eq!(first(100, 10_000), Some(true));
        assert_eq!(first(100, 0), None, "strict");
    }
}
