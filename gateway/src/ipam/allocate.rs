//! From all claims at once to all grants: a function of the claims, not of the order in which they arrived.

use std::collections::{BTreeMap, BTreeSet};

use super::pool::Space;

/// One claimant's wish. Claims are given oldest first: of two that ask for the same, the earlier gets it.
#[derive(Clone, Debug)]
pub struct Claim<Owner, Item> {
    /// Who claims; at most one claim each.
    pub owner: Owner,
    /// The item asked for by name, if any.
    pub asked: Option<Item>,
    /// What was granted before without being asked for. It is kept as long as it can be.
    pub held: Option<Item>,
    /// Parts of the item that are used, such as ports of an address. Claims on one item that use different parts can share
    /// it if both asked for it by name; a claim without parts wants all of it.
    pub parts: BTreeSet<(u8, u16)>,
    /// Where an unasked grant is looked for first; see [`Space::candidates`].
    pub seed: u64,
}

/// Why a wish by name was not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal<Owner, Item> {
    /// The item is not in the space.
    Outside(Item),
    /// An older claim has it.
    Taken(Item, Owner),
    /// Nothing is free.
    Exhausted,
}

/// What each claimant gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation<Owner: Ord, Item> {
    /// Items by claimant.
    pub granted: BTreeMap<Owner, Item>,
    /// Claims that were not granted, in order of their claimants.
    pub refused: BTreeMap<Owner, Refusal<Owner, Item>>,
}

/// Grants what is asked for by name first, then what is already held, then the rest, each oldest first.
pub fn allocate<Owner: Ord + Clone, S: Space>(
    space: &S,
    claims: &[Claim<Owner, S::Item>],
) -> Allocation<Owner, S::Item> {
    let mut granted = BTreeMap::new();
    let mut refused = BTreeMap::new();
    // Claims by item; more than one only where they share it.
    let mut users: BTreeMap<S::Item, Vec<&Claim<Owner, S::Item>>> = BTreeMap::new();
    for claim in claims {
        let Some(asked) = claim.asked else { continue };
        let others = users.entry(asked).or_default();
        if !space.contains(asked) {
            refused.insert(claim.owner.clone(), Refusal::Outside(asked));
        } else if let Some(other) = others.iter().find(|other| other.conflicts(claim)) {
            refused.insert(claim.owner.clone(), Refusal::Taken(asked, other.owner.clone()));
        } else {
            others.push(claim);
            granted.insert(claim.owner.clone(), asked);
        }
    }
    users.retain(|_, claims| !claims.is_empty());
    let unasked = || claims.iter().filter(|claim| claim.asked.is_none());
    for claim in unasked() {
        if let Some(held) = claim.held.filter(|held| space.contains(*held) && !users.contains_key(held)) {
            users.insert(held, vec![claim]);
            granted.insert(claim.owner.clone(), held);
        }
    }
    for claim in unasked() {
        if granted.contains_key(&claim.owner) {
            continue;
        }
        match space.candidates(claim.seed).find(|item| !users.contains_key(item)) {
            Some(item) => {
                users.insert(item, vec![claim]);
                granted.insert(claim.owner.clone(), item);
            }
            None => {
                refused.insert(claim.owner.clone(), Refusal::Exhausted);
            }
        }
    }
    Allocation { granted, refused }
}

impl<Owner, Item> Claim<Owner, Item> {
    fn conflicts(&self, other: &Self) -> bool {
        self.parts.is_empty() || other.parts.is_empty() || !self.parts.is_disjoint(&other.parts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipam::pool::PortRange;

    fn claim(owner: u8, asked: Option<u16>, held: Option<u16>) -> Claim<u8, u16> {
        Claim { owner, asked, held, parts: BTreeSet::new(), seed: u64::from(owner) * 7919 }
    }

    #[test]
    fn the_older_of_two_that_ask_for_the_same_gets_it() {
        let space = PortRange::new(30000..=30099);
        let claims = [claim(9, Some(30050), None), claim(1, Some(30050), None), claim(2, Some(1), None)];
        let allocation = allocate(&space, &claims);
        assert_eq!(allocation.granted, BTreeMap::from([(9, 30050)]));
        let refused = BTreeMap::from([(1, Refusal::Taken(30050, 9)), (2, Refusal::Outside(1))]);
        assert_eq!(allocation.refused, refused);
    }

    #[test]
    fn what_is_held_stays_unless_it_is_asked_for_by_name() {
        let space = PortRange::new(30000..=30099);
        let allocation = allocate(&space, &[claim(1, None, Some(30070)), claim(2, None, Some(30071))]);
        assert_eq!(allocation.granted, BTreeMap::from([(1, 30070), (2, 30071)]));
        let allocation = allocate(&space, &[claim(1, None, Some(30070)), claim(2, Some(30070), None)]);
        assert_eq!(allocation.granted[&2], 30070);
        assert_ne!(allocation.granted[&1], 30070);
    }

    #[test]
    fn different_parts_of_one_item_can_be_shared_by_name_only() {
        let space = PortRange::new(30000..=30099);
        let with = |owner, asked, part| Claim { parts: BTreeSet::from([(0, part)]), ..claim(owner, asked, None) };
        let shared = [with(1, Some(30000), 80), with(2, Some(30000), 443), with(3, Some(30000), 80)];
        let allocation = allocate(&space, &shared);
        assert_eq!(allocation.granted, BTreeMap::from([(1, 30000), (2, 30000)]));
        assert_eq!(allocation.refused[&3], Refusal::Taken(30000, 1));
        let narrow = PortRange::new(30000..=30000);
        let allocation = allocate(&narrow, &[with(1, Some(30000), 80), with(2, None, 443)]);
        assert_eq!(allocation.refused[&2], Refusal::Exhausted);
    }

    proptest! {
        #[test]
        fn grants_are_distinct_complete_and_stable(
            wishes in proptest::collection::vec((proptest::option::of(0u16..40), proptest::option::of(0u16..40)), 1..40),
            leave in any::<prop::sample::Index>(),
        ) {
            let space = PortRange::new(5..=34);
            let mut claims: Vec<_> =
                wishes.iter().enumerate().map(|(owner, (asked, held))| claim(owner as u8, *asked, *held)).collect();
            let first = allocate(&space, &claims);
            let items: BTreeSet<_> = first.granted.values().collect();
            prop_assert_eq!(items.len(), first.granted.len());
            prop_assert_eq!(first.granted.len() + first.refused.len(), claims.len());
            // Something is refused for want of space only when all space is used.
            if first.refused.values().any(|refusal| *refusal == Refusal::Exhausted) {
                prop_assert_eq!(first.granted.len(), 30);
            }
            // Once everybody holds what they got, nothing moves, also when somebody leaves.
            for claim in &mut claims {
                claim.held = first.granted.get(&claim.owner).copied();
            }
            prop_assert_eq!(&allocate(&space, &claims), &first);
            let left = claims.remove(leave.index(claims.len())).owner;
            let second = allocate(&space, &claims);
            for (owner, item) in first.granted.iter().filter(|(owner, _)| **owner != left) {
                prop_assert_eq!(second.granted.get(owner), Some(item));
            }
        }
    }
}
