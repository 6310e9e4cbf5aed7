//! Load-balancer addresses: pools and Services in, step by step, addresses out.
//!
//! Cases are written with the names of MetalLB: its `IPAddressPool` has the fields of our `AddressPool`, and its
//! annotations have other names for the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use gateway::{
    ipam::load_balancer::{
        memory::{Memory, Wanted, ingress},
        pool::{NamespaceLabels, Pool},
        request::{ADDRESS_POOL, ALLOW_SHARED_IP, Classes, LOAD_BALANCER_IPS},
    },
    watch::{
        address_pool::AddressPoolSpec,
        object::{ANNOTATION_PREFIX, Kind, ObjectKey},
    },
};
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Namespace, Service, ServiceStatus};
use serde::Deserialize;
use serde_json::Value;

use super::{Document, Suite, Test};

/// The folder `ipam`.
pub const SUITE: Suite = Suite { name: "ipam", tests };

/// Annotations of the cases, and what we call them.
const ANNOTATIONS: [(&str, &str); 3] = [
    ("metallb.io/loadBalancerIPs", LOAD_BALANCER_IPS),
    ("metallb.io/address-pool", ADDRESS_POOL),
    ("metallb.io/allow-shared-ip", ALLOW_SHARED_IP),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    #[serde(default)]
    pools: Option<Vec<PoolObject>>,
    #[serde(default)]
    pools_from: Option<String>,
    /// The class that is ours; empty if we are the default implementation and have none.
    #[serde(default)]
    controller_class: Option<String>,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Clone, Deserialize)]
struct PoolObject {
    metadata: PoolName,
    spec: AddressPoolSpec,
}

#[derive(Clone, Deserialize)]
struct PoolName {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Step {
    #[serde(default)]
    set_pools: Option<Vec<PoolObject>>,
    #[serde(default)]
    delete: Vec<Named>,
    #[serde(default)]
    apply: Vec<Value>,
    #[serde(default)]
    expect: Vec<Expected>,
    #[serde(default)]
    expect_together: Option<Together>,
}

#[derive(Deserialize)]
struct Named {
    kind: String,
    #[serde(default)]
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    service: String,
    ips: BTreeSet<IpAddr>,
    #[serde(default)]
    pool: Option<String>,
    #[serde(default)]
    warning: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Together {
    services: Vec<String>,
    ips: BTreeSet<IpAddr>,
}

/// An API server with what concerns addresses, and the assignment at work.
struct Cluster {
    classes: Classes,
    pools: Vec<Pool>,
    namespaces: NamespaceLabels,
    services: BTreeMap<ObjectKey, Service>,
    memory: Memory,
    wanted: BTreeMap<ObjectKey, Wanted>,
}

fn tests(documents: Vec<Document>) -> Result<Vec<Test>, String> {
    let mut fixtures = BTreeMap::new();
    let mut cases = Vec::new();
    for document in documents {
        let case: Case = document.typed()?;
        if case.steps.is_empty() {
            let pools = case.pools.ok_or_else(|| format!("{} has neither steps nor pools", document.name))?;
            fixtures.insert(document.name, pools);
        } else {
            cases.push((document.name, case));
        }
    }
    let test = |(name, case): (String, Case)| {
        let pools = match (&case.pools, &case.pools_from) {
            (Some(pools), None) => pools.clone(),
            (None, Some(from)) => {
                fixtures.get(from).cloned().ok_or_else(|| format!("{name}: there are no pools of the name {from}"))?
            }
            _ => return Err(format!("{name}: give one of pools and poolsFrom")),
        };
        Ok(Test { name, run: Box::new(move || run(&case, &pools)) })
    };
    cases.into_iter().map(test).collect()
}

fn run(case: &Case, pools: &[PoolObject]) -> Result<(), String> {
    let classes = match case.controller_class.as_deref() {
        None => Classes { named: Some(gateway::LOAD_BALANCER_CLASS.into()), unnamed: true },
        Some("") => Classes { named: None, unnamed: true },
        Some(class) => Classes { named: Some(class.into()), unnamed: false },
    };
    let mut cluster = Cluster {
        classes,
        pools: self::pools(pools)?,
        namespaces: NamespaceLabels::new(),
        services: BTreeMap::new(),
        memory: Memory::default(),
        wanted: BTreeMap::new(),
    };
    for (number, step) in case.steps.iter().enumerate() {
        cluster.step(step)?;
        let mut different: Vec<String> = step.expect.iter().filter_map(|wanted| cluster.differs(wanted)).collect();
        different.extend(step.expect_together.as_ref().and_then(|wanted| cluster.differs_together(wanted)));
        if !different.is_empty() {
            return Err(format!("after step {}: {}", number + 1, different.join("; ")));
        }
    }
    Ok(())
}

fn pools(objects: &[PoolObject]) -> Result<Vec<Pool>, String> {
    let mut problems = Vec::new();
    let parse = |object: &PoolObject| {
        Pool::parse(&object.metadata.name, &object.spec, &mut |problem| problems.push(problem.to_string()))
    };
    let pools = objects.iter().map(parse).collect();
    if problems.is_empty() { Ok(pools) } else { Err(problems.join("; ")) }
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Service, if namespace.is_empty() { "default" } else { namespace }, name)
}

fn named(service: &str) -> ObjectKey {
    let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
    key(namespace, name)
}

// === impl Cluster ===

impl Cluster {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        if let Some(pools) = &step.set_pools {
            self.pools = self::pools(pools)?;
            self.look(&[]);
        }
        for gone in &step.delete {
            if gone.kind != "Service" {
                return Err(format!("cannot delete a {}", gone.kind));
            }
            self.services.remove(&key(&gone.namespace, &gone.name));
        }
        if !step.delete.is_empty() {
            self.look(&[]);
        }
        let applied = step.apply.iter().map(|object| self.apply(object)).collect::<Result<Vec<_>, _>>()?;
        if !applied.is_empty() {
            self.look(&applied.into_iter().flatten().collect::<Vec<_>>());
        }
        Ok(())
    }

    fn apply(&mut self, object: &Value) -> Result<Option<ObjectKey>, String> {
        let failed = |error: serde_json::Error| format!("an object cannot be read: {error}");
        if object["kind"] == "Namespace" {
            let namespace: Namespace = serde_json::from_value(object.clone()).map_err(failed)?;
            let name: Arc<str> = namespace.metadata.name.unwrap_or_default().into();
            self.namespaces.insert(name, namespace.metadata.labels.unwrap_or_default());
            return Ok(None);
        }
        let mut service: Service = serde_json::from_value(object.clone()).map_err(failed)?;
        if let Some(annotations) = &mut service.metadata.annotations {
            for (theirs, ours) in ANNOTATIONS {
                if let Some(value) = annotations.remove(theirs) {
                    annotations.insert(format!("{ANNOTATION_PREFIX}{ours}"), value);
                }
            }
        }
        let metadata = &service.metadata;
        let key = key(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
        if service.status.is_none() {
            service.status = self.services.get(&key).and_then(|before| before.status.clone());
        }
        self.services.insert(key.clone(), service);
        Ok(Some(key))
    }

    /// Assigns addresses, `first` before the other Services that wait, and writes them into the status.
    fn look(&mut self, first: &[ObjectKey]) {
        let rest = self.services.keys().filter(|key| !first.contains(key));
        let order = first.iter().chain(rest).filter_map(|key| Some((key, self.services.get(key)?)));
        let wanted = self.memory.assign(&self.classes, &self.pools, &self.namespaces, order);
        for (key, wanted) in &wanted {
            let load_balancer = LoadBalancerStatus { ingress: Some(ingress(&wanted.addresses)) };
            if let Some(service) = self.services.get_mut(key) {
                service.status = Some(ServiceStatus { load_balancer: Some(load_balancer), ..ServiceStatus::default() });
            }
        }
        self.wanted = wanted;
    }

    /// The addresses in the status of a Service.
    fn addresses(&self, key: &ObjectKey) -> Option<Vec<IpAddr>> {
        self.services.get(key).map(gateway::ipam::load_balancer::memory::in_status)
    }

    fn differs(&self, expected: &Expected) -> Option<String> {
        let key = named(&expected.service);
        let Some(addresses) = self.addresses(&key) else { return Some(format!("there is no {key}")) };
        let wanted = self.wanted.get(&key);
        let set: BTreeSet<_> = addresses.iter().copied().collect();
        if set != expected.ips || set.len() != addresses.len() {
            let refusal = wanted.and_then(|wanted| wanted.refusal.as_ref());
            let why = refusal.map(|refusal| format!(" ({refusal})")).unwrap_or_default();
            return Some(format!("{key} has {addresses:?}{why} instead of {:?}", expected.ips));
        }
        let pool = wanted.and_then(|wanted| wanted.pool.as_deref());
        if expected.pool.is_some() && expected.pool.as_deref() != pool {
            return Some(format!("{key} is in the pool {pool:?} instead of {:?}", expected.pool));
        }
        let warned = wanted.is_some_and(|wanted| wanted.refusal.is_some());
        if expected.warning.is_some_and(|expected| expected != warned) {
            return Some(format!("{key}: warned is {warned}"));
        }
        None
    }

    fn differs_together(&self, expected: &Together) -> Option<String> {
        let mut held = BTreeSet::new();
        for service in &expected.services {
            let addresses = self.addresses(&named(service)).unwrap_or_default();
            if addresses.len() != 1 || !held.insert(addresses[0]) {
                return Some(format!("{service} has {addresses:?} instead of one of its own"));
            }
        }
        (held != expected.ips).then(|| format!("together they have {held:?} instead of {:?}", expected.ips))
    }
}
