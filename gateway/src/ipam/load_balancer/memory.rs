//! What was granted, so that it stays: the one state of address assignment.
//!
//! It begins empty, and then what the status of the Services says is what they hold (S11.10). A grant that is not yet seen
//! in the status counts as held as well; whoever else changes the status is believed.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};

use super::{
    assign::{Claim, Granted, Refusal, assign},
    pool::{NamespaceLabels, Pool},
    request::{Classes, Request, Terms},
};
use crate::watch::object::ObjectKey;

/// What was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    grants: BTreeMap<ObjectKey, Grant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    /// Nothing, if it was refused.
    addresses: Vec<IpAddr>,
    /// On what terms; `None` if the Service could not be read.
    terms: Option<Terms>,
    /// The addresses in the status at that time.
    observed: Vec<IpAddr>,
}

/// What the status of a Service is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The pool they belong to.
    pub pool: Option<std::sync::Arc<str>>,
    /// Why there are none, or none of what is asked for.
    pub refusal: Option<Refusal>,
}

// === impl Memory ===

impl Memory {
    /// What the status of each Service that is ours, or was, is to say. Services are given in the order in which those that
    /// wait are served.
    pub fn assign<'a>(
        &mut self,
        classes: &Classes,
        pools: &[Pool],
        namespaces: &NamespaceLabels,
        services: impl IntoIterator<Item = (&'a ObjectKey, &'a Service)>,
    ) -> BTreeMap<ObjectKey, Wanted> {
        let mut claims = Vec::new();
        let mut wanted = BTreeMap::new();
        let mut before = std::mem::take(&mut self.grants);
        for (key, service) in services {
            let observed = in_status(service);
            let grant = before.remove(key);
            if !classes.take(service) {
                if was_ours(classes, service, grant.as_ref()) && !observed.is_empty() {
                    wanted.insert(key.clone(), Wanted::nothing(None));
                    // Until it is seen to be cleared.
                    self.grants.insert(key.clone(), Grant { addresses: vec![], terms: None, observed });
                }
                continue;
            }
            let (held, terms) = match grant {
                Some(grant) if grant.observed == observed => (grant.addresses, grant.terms),
                Some(grant) => (observed.clone(), grant.terms),
                None => (observed.clone(), None),
            };
            let request = Request::of(&key.namespace, service);
            let now = request.as_ref().ok().and_then(|request| Some(request.as_ref()?.terms.clone()));
            let settled = terms.is_none() || terms == now;
            self.grants.insert(key.clone(), Grant { addresses: vec![], terms: now, observed });
            match request {
                Ok(Some(request)) => claims.push(Claim { owner: key.clone(), request, held, settled }),
                Ok(None) => drop(wanted.insert(key.clone(), Wanted::nothing(None))),
                Err(malformed) => drop(wanted.insert(key.clone(), Wanted::nothing(Some(malformed.into())))),
            }
        }
        for (owner, outcome) in assign(pools, namespaces, &claims) {
            if let (Ok(granted), Some(grant)) = (&outcome, self.grants.get_mut(&owner)) {
                grant.addresses.clone_from(&granted.addresses);
            }
            wanted.insert(owner, outcome.map_or_else(|refusal| Wanted::nothing(Some(refusal)), Wanted::from));
        }
        wanted
    }
}

/// Whether a Service that is not ours now was before, so that its status is ours to clear (S11.2): it was granted
/// something, or it is no load balancer any more and nobody else's class says who it was.
fn was_ours(classes: &Classes, service: &Service, grant: Option<&Grant>) -> bool {
    let spec = service.spec.as_ref();
    let is_load_balancer = spec.and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    let class = spec.and_then(|spec| spec.load_balancer_class.as_deref());
    !is_load_balancer && (grant.is_some() || classes.contain(class))
}

/// Whether a Service is a load balancer, or has something left of when it was one.
pub fn is_concerned(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
        || !in_status(service).is_empty()
        || service.metadata.finalizers.is_some()
}

/// The addresses that the status says.
pub fn in_status(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

/// Addresses as the status of a Service lists them: answered by the nodes themselves (S11.11).
pub fn ingress(addresses: &[IpAddr]) -> Vec<LoadBalancerIngress> {
    let entry = |address: &IpAddr| LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ..Default::default()
    };
    addresses.iter().map(entry).collect()
}

// === impl Wanted ===

impl Wanted {
    fn nothing(refusal: Option<Refusal>) -> Self {
        Self { addresses: vec![], pool: None, refusal }
    }
}

impl From<Granted> for Wanted {
    fn from(granted: Granted) -> Self {
        Self { addresses: granted.addresses, pool: Some(granted.pool), refusal: None }
    }
}
