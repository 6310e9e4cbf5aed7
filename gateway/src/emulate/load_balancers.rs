//! Load-balancer addresses of manifests: assigned as in a cluster, and written into the status at once.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LoadBalancerStatus, Service, ServiceStatus};

use super::{Rules, Services};
use crate::{
    ipam::load_balancer::{
        memory::{Memory, ingress},
        pool::{NamespaceLabels, Pool},
        request::{Classes, LOAD_BALANCER_IPS},
    },
    problem::ByObject,
    watch::object::{ANNOTATION_PREFIX, Object, ObjectKey},
};

/// Gives Services of type LoadBalancer an address of each of their families, and writes it into their status.
///
/// Those that ask for an address are served before those that take any, so that it does not matter in which order
/// manifests are read.
pub fn assign(
    rules: &Rules,
    objects: &BTreeMap<ObjectKey, Object>,
    services: &mut Services,
    memory: &mut Memory,
    problems: &mut ByObject,
) {
    let (pools, namespaces) = pools(rules, objects);
    let classes = Classes { named: Some(crate::LOAD_BALANCER_CLASS.into()), unnamed: true };
    let mut order = services.oldest_first();
    order.sort_by_key(|key| services.get(key).is_none_or(|service| !asks(service)));
    let ordered = order.iter().filter_map(|key| Some((key, services.get(key)?)));
    let wanted = memory.assign(&classes, &pools, &namespaces, ordered);
    for (key, wanted) in wanted {
        let Some(service) = services.get_mut(&key) else { continue };
        let load_balancer = LoadBalancerStatus { ingress: Some(ingress(&wanted.addresses)) };
        service.status = Some(ServiceStatus { load_balancer: Some(load_balancer), ..Default::default() });
        problems.entry(key).or_default().extend(wanted.refusal.map(|refusal| refusal.problem()));
    }
    problems.retain(|_, problems| !problems.is_empty());
}

/// The pool of the option, and those of the manifests. What is wrong with the latter is reported by the model.
fn pools(rules: &Rules, objects: &BTreeMap<ObjectKey, Object>) -> (Vec<Pool>, NamespaceLabels) {
    let mut pools = vec![Pool::of_networks(crate::DEFAULT_POOL, &rules.load_balancer_pool)];
    let mut namespaces = NamespaceLabels::new();
    for (key, object) in objects {
        match object {
            Object::AddressPool(pool) => pools.push(Pool::parse(&key.name, &pool.spec, &mut |_| {})),
            Object::Namespace(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                namespaces.insert(key.name.clone(), labels);
            }
            _ => {}
        }
    }
    (pools, namespaces)
}

fn asks(service: &Service) -> bool {
    let by_field = service.spec.as_ref().is_some_and(|spec| spec.load_balancer_ip.is_some());
    let annotation = format!("{ANNOTATION_PREFIX}{LOAD_BALANCER_IPS}");
    by_field || service.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(&annotation))
}
