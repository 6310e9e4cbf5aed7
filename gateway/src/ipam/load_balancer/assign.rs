//! From all Services at once to all addresses: who keeps, who gets, and who is refused and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    pool::{NamespaceLabels, Pool},
    request::{Family, Malformed, Request, Terms},
};
use crate::{problem::Problem, watch::object::ObjectKey};

/// One Service's wish. Those of whom nobody holds an address are granted in the order in which they are given.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who claims; at most one claim each.
    pub owner: ObjectKey,
    /// What it asks for.
    pub request: Request,
    /// What it was granted before.
    pub held: Vec<IpAddr>,
    /// Whether it still shares what it holds on the terms of the grant. Of two that cannot share any more, the one that
    /// has not changed keeps the address.
    pub settled: bool,
}

/// What a Service is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// One address of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The pool they belong to.
    pub pool: Arc<str>,
}

/// Why a Service is granted nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The wish cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The addresses asked for are of other families than the Service.
    #[error("asks for {asked}, but needs {wanted}; give one address for each family of its ClusterIPs")]
    WrongFamilies {
        /// What is asked for.
        asked: String,
        /// The families of the Service.
        wanted: String,
    },
    /// No pool has the addresses.
    #[error("asks for {0}, which no address pool has; ask for others, or add a pool")]
    Outside(String),
    /// The pool with the addresses is for other Services.
    #[error("asks for {asked} of the address pool {pool}, which is not for this Service; see its serviceAllocation")]
    NotForThis {
        /// What is asked for.
        asked: String,
        /// Which pool has it.
        pool: Arc<str>,
    },
    /// The addresses and the pool asked for do not belong together.
    #[error("asks for {asked} and for the address pool {pool}, which does not have it")]
    OtherPool {
        /// What is asked for.
        asked: String,
        /// Which pool is asked for.
        pool: String,
    },
    /// There is no pool of the name.
    #[error("asks for the address pool {0}, which does not exist")]
    UnknownPool(String),
    /// Somebody else has the address.
    #[error(
        "asks for {0}, which belongs to {1}; to share it both need the same portico.dev/allow-shared-ip, different ports, \
             and externalTrafficPolicy Cluster or the same selector"
    )]
    Taken(IpAddr, ObjectKey),
    /// Nothing is free.
    #[error("no {families} address is free in {pools}")]
    Exhausted {
        /// The families of the Service.
        families: String,
        /// Where was looked.
        pools: String,
    },
}

/// Grants what is held as long as it is allowed, and then the rest (S11.4 to S11.8).
pub fn assign(
    pools: &[Pool],
    namespaces: &NamespaceLabels,
    claims: &[Claim],
) -> BTreeMap<ObjectKey, Result<Granted, Refusal>> {
    let mut pools: Vec<&Pool> = pools.iter().collect();
    pools.sort_by_key(|pool| pool.rank());
    let mut state = State { pools, namespaces, users: BTreeMap::new() };
    let mut outcomes = BTreeMap::new();
    let (settled, changed): (Vec<_>, Vec<_>) =
        claims.iter().filter(|claim| !claim.held.is_empty()).partition(|claim| claim.settled);
    for claim in settled.into_iter().chain(changed) {
        if let Some(granted) = state.keep(claim) {
            state.note(claim, &granted);
            outcomes.insert(claim.owner.clone(), Ok(granted));
        }
    }
    // What a Service lacks is looked for once everybody has what they had.
    for claim in claims {
        if let Some(Ok(granted)) = outcomes.get_mut(&claim.owner) {
            state.complete(claim, granted);
            if claim.request.one_is_enough || granted.addresses.len() == claim.request.families.len() {
                continue;
            }
            state.forget(claim, granted);
        }
        let outcome = state.choose(claim);
        if let Ok(granted) = &outcome {
            state.note(claim, granted);
        }
        outcomes.insert(claim.owner.clone(), outcome);
    }
    // Others may have come to share an address since it was refused. Who has it is told as it is in the end, so that the
    // same state is told in the same words.
    for claim in claims {
        if let Some(Err(Refusal::Taken(address, owner))) = outcomes.get_mut(&claim.owner)
            && let Some(first) = state.taken_by(*address, claim)
        {
            *owner = first.clone();
        }
    }
    outcomes
}

struct State<'a> {
    /// In order of preference.
    pools: Vec<&'a Pool>,
    namespaces: &'a NamespaceLabels,
    users: BTreeMap<IpAddr, Vec<(&'a ObjectKey, &'a Terms)>>,
}

// === impl State ===

impl<'a> State<'a> {
    fn note(&mut self, claim: &'a Claim, granted: &Granted) {
        for address in &granted.addresses {
            self.users.entry(*address).or_default().push((&claim.owner, &claim.request.terms));
        }
    }

    fn forget(&mut self, claim: &Claim, granted: &Granted) {
        for address in &granted.addresses {
            self.users.entry(*address).or_default().retain(|(owner, _)| **owner != claim.owner);
        }
    }

    /// Who keeps the Service from having the address.
    fn taken_by(&self, address: IpAddr, claim: &Claim) -> Option<&ObjectKey> {
        let users = self.users.get(&address)?;
        let rivals = users.iter().filter(|(owner, terms)| **owner != claim.owner && !terms.allow(&claim.request.terms));
        // The first by name, so that the same state is told in the same words whoever was granted the address first.
        rivals.map(|(owner, _)| *owner).min()
    }

    fn is_free(&self, address: IpAddr, claim: &Claim) -> bool {
        self.taken_by(address, claim).is_none()
    }

    /// What a Service holds, as far as it may keep it; `None` if it has to choose anew.
    fn keep(&self, claim: &Claim) -> Option<Granted> {
        let request = &claim.request;
        let mut addresses = claim.held.clone();
        addresses.sort();
        addresses.retain(|address| request.families.contains(&Family::of(*address)));
        let held: BTreeSet<_> = addresses.iter().map(|address| Family::of(*address)).collect();
        if addresses.is_empty() || held.len() != addresses.len() {
            return None;
        }
        let asked = &request.addresses;
        if !asked.is_empty() && (*asked != addresses || asked.len() != request.families.len()) {
            return None;
        }
        let fits = |pool: &&&Pool| {
            request.pool.as_deref().is_none_or(|wanted| *wanted == *pool.name)
                && pool.is_for(request, self.namespaces)
                && addresses.iter().all(|address| pool.contains(*address))
        };
        let pool = self.pools.iter().find(fits)?;
        if !addresses.iter().all(|address| self.is_free(*address, claim)) {
            return None;
        }
        Some(Granted { addresses, pool: pool.name.clone() })
    }

    /// Adds the family that a grant lacks, if its pool has it (S11.6).
    fn complete(&mut self, claim: &'a Claim, granted: &mut Granted) {
        if granted.addresses.len() == claim.request.families.len() || !claim.request.addresses.is_empty() {
            return;
        }
        let Some(pool) = self.pools.iter().copied().find(|pool| pool.name == granted.pool) else { return };
        let before = granted.addresses.clone();
        self.complete_from(pool, claim, granted);
        let gained = granted.addresses.iter().filter(|address| !before.contains(address)).copied().collect();
        self.note(claim, &Granted { addresses: gained, pool: granted.pool.clone() });
    }

    fn complete_from(&self, pool: &Pool, claim: &Claim, granted: &mut Granted) {
        for family in &claim.request.families {
            if !granted.addresses.iter().any(|address| Family::of(*address) == *family) {
                granted.addresses.extend(self.lowest(pool, *family, claim));
            }
        }
        granted.addresses.sort();
    }

    fn choose(&self, claim: &Claim) -> Result<Granted, Refusal> {
        if !claim.request.addresses.is_empty() {
            return self.asked(claim);
        }
        let request = &claim.request;
        let candidates: Vec<&Pool> = match &request.pool {
            Some(wanted) => {
                let unknown = || Refusal::UnknownPool(wanted.clone());
                let pool = self.pools.iter().find(|pool| *pool.name == **wanted).ok_or_else(unknown)?;
                if !pool.is_for(request, self.namespaces) {
                    return Err(Refusal::NotForThis { asked: "an address".to_owned(), pool: pool.name.clone() });
                }
                vec![*pool]
            }
            None => {
                let fits = |pool: &&&Pool| pool.is_automatic() && pool.is_for(request, self.namespaces);
                self.pools.iter().filter(fits).copied().collect()
            }
        };
        let mut wanted = vec![request.families.as_slice()];
        if request.one_is_enough {
            wanted.push(&request.families[..1]);
        }
        for families in wanted {
            for pool in &candidates {
                let addresses = families.iter().map(|family| self.lowest(pool, *family, claim));
                if let Some(mut addresses) = addresses.collect::<Option<Vec<_>>>() {
                    addresses.sort();
                    return Ok(Granted { addresses, pool: pool.name.clone() });
                }
            }
        }
        let names: Vec<_> = candidates.iter().map(|pool| &*pool.name).collect();
        let pools = match names.len() {
            0 => "any address pool, because none is for this Service".to_owned(),
            1 => format!("the address pool {}", names[0]),
            _ => format!("one of the address pools {}", names.join(", ")),
        };
        Err(Refusal::Exhausted { families: families_of(&request.families), pools })
    }

    fn asked(&self, claim: &Claim) -> Result<Granted, Refusal> {
        let request = &claim.request;
        let asked = || request.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ");
        let given: BTreeSet<_> = request.addresses.iter().map(|address| Family::of(*address)).collect();
        if given != request.families.iter().copied().collect() {
            return Err(Refusal::WrongFamilies { asked: asked(), wanted: families_of(&request.families) });
        }
        let has = |pool: &&&Pool| request.addresses.iter().all(|address| pool.contains(*address));
        let mut having = self.pools.iter().filter(has).peekable();
        if having.peek().is_none() {
            return Err(Refusal::Outside(asked()));
        }
        let named: Vec<_> =
            having.filter(|pool| request.pool.as_deref().is_none_or(|wanted| *wanted == *pool.name)).collect();
        let Some(first) = named.first() else {
            return Err(Refusal::OtherPool { asked: asked(), pool: request.pool.clone().unwrap_or_default() });
        };
        let Some(pool) = named.iter().find(|pool| pool.is_for(request, self.namespaces)) else {
            return Err(Refusal::NotForThis { asked: asked(), pool: first.name.clone() });
        };
        for address in &request.addresses {
            if let Some(other) = self.taken_by(*address, claim) {
                return Err(Refusal::Taken(*address, other.clone()));
            }
        }
        Ok(Granted { addresses: request.addresses.clone(), pool: pool.name.clone() })
    }

    fn lowest(&self, pool: &Pool, family: Family, claim: &Claim) -> Option<IpAddr> {
        pool.addresses(family).find(|address| self.is_free(*address, claim))
    }
}

fn families_of(families: &[Family]) -> String {
    families.iter().map(|family| family.as_str()).collect::<Vec<_>>().join(" and ")
}

// === impl Refusal ===

impl Refusal {
    /// What people are told of it.
    pub fn problem(&self) -> Problem {
        let reason = match self {
            Refusal::Malformed(_) => "INVALID_ADDRESS_REQUEST",
            Refusal::WrongFamilies { .. }
            | Refusal::Outside(_)
            | Refusal::NotForThis { .. }
            | Refusal::OtherPool { .. }
            | Refusal::UnknownPool(_) => "ADDRESS_NOT_ALLOWED",
            Refusal::Taken(..) => "LOAD_BALANCER_IP_CONFLICT",
            Refusal::Exhausted { .. } => "LOAD_BALANCER_IP_EXHAUSTED",
        };
        Problem::new(reason, format!("no load-balancer address is assigned: {self}"))
    }
}

#[cfg(test)]
mod tests;
