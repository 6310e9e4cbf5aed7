//! ClusterIPs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::Service;

use super::{Rules, Services, report, seed};
use crate::{
    ipam::{
        allocate::{Claim, Refusal, allocate},
        pool::Pool,
    },
    problem::ByObject,
    watch::object::ObjectKey,
};

const FAMILIES: [(&str, bool); 2] = [("IPv4", true), ("IPv6", false)];

/// Addresses that were given away without being asked for, by Service and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    cluster: BTreeMap<(ObjectKey, bool), IpAddr>,
}

/// Gives every Service that is not headless its ClusterIPs, one for each of its families.
///
/// One that asks for an address it cannot have gets another: without any it would not be served at all.
pub fn cluster_ips(rules: &Rules, services: &mut Services, held: &mut Held, problems: &mut ByObject) {
    let order = services.oldest_first();
    let mut granted: BTreeMap<(ObjectKey, bool), IpAddr> = BTreeMap::new();
    for (family, is_ipv4) in FAMILIES {
        let pool = Pool::of_services(&rules.service_cidrs, is_ipv4);
        let claim = |key: &ObjectKey| {
            let service = services.get(key)?;
            if !has_cluster_ip(service) || !wants_family(service, family) {
                return None;
            }
            Some(Claim {
                owner: key.clone(),
                asked: asked_cluster_ip(service, is_ipv4),
                held: held.cluster.get(&(key.clone(), is_ipv4)).copied(),
                parts: BTreeSet::new(),
                seed: seed(&["cluster-ip", &key.namespace, &key.name]),
            })
        };
        let mut claims: Vec<_> = order.iter().filter_map(claim).collect();
        let first = allocate(&pool, &claims);
        for claim in &mut claims {
            if let (Some(asked), Some(refusal)) = (claim.asked, first.refused.get(&claim.owner)) {
                claim.asked = None;
                let why = match refusal {
                    Refusal::Taken(_, owner) => format!("belongs to {owner}, which is older"),
                    Refusal::Outside(_) | Refusal::Exhausted => "is not within --service-cidr".to_owned(),
                };
                let message = format!("spec.clusterIP {asked} {why}; another address was assigned");
                report(problems, &claim.owner, "CLUSTER_IP_CONFLICT", message);
            }
        }
        let second = allocate(&pool, &claims);
        for (owner, refusal) in &second.refused {
            // The default family of a pool that was never configured is no one's wish.
            if *refusal == Refusal::Exhausted {
                let what = if pool.is_empty() { "has no network of this family" } else { "has no free address left" };
                report(
                    problems,
                    owner,
                    "CLUSTER_IP_EXHAUSTED",
                    format!("no {family} ClusterIP: --service-cidr {what}"),
                );
            }
        }
        let asked: BTreeSet<_> =
            claims.iter().filter(|claim| claim.asked.is_some()).map(|claim| &claim.owner).collect();
        held.cluster.retain(|(_, of), _| *of != is_ipv4);
        for (owner, address) in second.granted {
            if !asked.contains(&owner) {
                held.cluster.insert((owner.clone(), is_ipv4), address);
            }
            granted.insert((owner, is_ipv4), address);
        }
    }
    for key in order {
        let Some(service) = services.get_mut(&key).filter(|service| has_cluster_ip(service)) else { continue };
        let Some(spec) = &mut service.spec else { continue };
        let families = spec.ip_families.clone().unwrap_or_default();
        let pairs = families.into_iter().filter_map(|family| {
            let address = granted.get(&(key.clone(), family == "IPv4"))?;
            Some((family, address.to_string()))
        });
        let (families, addresses): (Vec<_>, Vec<_>) = pairs.unzip();
        spec.cluster_ip = addresses.first().cloned();
        spec.cluster_ips = Some(addresses);
        spec.ip_families = Some(families);
    }
}

fn has_cluster_ip(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let headless = spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.as_ref().is_some_and(|addresses| addresses.iter().any(|address| address == "None"));
    !headless && spec.type_.as_deref() != Some("ExternalName")
}

/// Whether the Service takes part in a family: its first, or any if it may have two.
fn wants_family(service: &Service, family: &str) -> bool {
    let Some(spec) = &service.spec else { return false };
    let families = spec.ip_families.as_deref().unwrap_or_default();
    match spec.ip_family_policy.as_deref() {
        Some("PreferDualStack" | "RequireDualStack") => families.iter().any(|wanted| wanted == family),
        _ => families.first().is_some_and(|wanted| wanted == family),
    }
}

fn asked_cluster_ip(service: &Service, is_ipv4: bool) -> Option<IpAddr> {
    let spec = service.spec.as_ref()?;
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    addresses.filter_map(|address| address.parse::<IpAddr>().ok()).find(|address| address.is_ipv4() == is_ipv4)
}
