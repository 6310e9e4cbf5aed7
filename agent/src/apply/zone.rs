//! From resources to the zone that DNS answers. What no name depends on, such as the endpoints of a Service with a
//! ClusterIP, changes nothing: the zone is shared with the previous table then.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::resource::name::NamespacedName;
use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::resources::{Dirty, Resources};
use crate::table::zone::{Entry, Zone};

/// Compiles zones, one after the other.
#[derive(Default)]
pub struct ZoneCompiler {
    entries: BTreeMap<NamespacedName, Arc<Entry>>,
    last: Option<Arc<Zone>>,
}

// === impl ZoneCompiler ===

impl ZoneCompiler {
    /// The zone `domain` for `resources`, of which `dirty` changed since the last call.
    pub fn compile(&mut self, domain: &str, resources: &Resources, dirty: &Dirty) -> Option<Arc<Zone>> {
        let domain = name_of(domain)?;
        let fresh = self.last.as_ref().is_none_or(|last| last.domain != domain);
        let mut changed = fresh || dirty.namespaces;
        if fresh {
            self.entries.clear();
            let services = resources.services().chain(resources.foreign_services());
            let names: BTreeSet<NamespacedName> = services.map(|service| service.name.clone()).collect();
            for name in &names {
                self.update(&domain, name, resources);
            }
        } else {
            for name in &dirty.services {
                changed |= self.update(&domain, name, resources);
            }
        }
        let ranges = match &self.last {
            Some(last) if !dirty.all => last.ranges.clone(),
            _ => ranges(resources),
        };
        changed |= self.last.as_ref().is_none_or(|last| last.ranges != ranges);
        if changed {
            let serial = self.last.as_ref().map_or(1, |last| last.serial.wrapping_add(1));
            self.last = Some(Arc::new(Zone::new(domain, serial, ranges, &self.entries, resources.namespaces())));
        }
        self.last.clone()
    }

    /// Compiles one Service again. Whether its names are others now.
    fn update(&mut self, domain: &Name, name: &NamespacedName, resources: &Resources) -> bool {
        let service = resources.service(name);
        match service.and_then(|service| Entry::new(domain, service, resources.endpoints(name))) {
            Some(entry) if self.entries.get(name).is_some_and(|known| **known == entry) => false,
            Some(entry) => {
                self.entries.insert(name.clone(), Arc::new(entry));
                true
            }
            None => self.entries.remove(name).is_some(),
        }
    }
}

fn name_of(domain: &str) -> Option<Name> {
    let mut name = Name::from_ascii(domain).ok()?.to_lowercase();
    name.set_fqdn(true);
    Some(name)
}

/// Ranges of Services and Pods, each once.
fn ranges(resources: &Resources) -> Box<[IpNet]> {
    let services = resources.settings().into_iter().flat_map(|settings| settings.service_cidrs.iter());
    let pods = resources.nodes().flat_map(|node| node.pod_cidrs.iter());
    // Loopback ranges, which manifests of a single machine use, are everybody's.
    let ours = services.chain(pods).filter(|range| !IpAddr::is_loopback(&range.addr())).map(IpNet::trunc);
    ours.collect::<BTreeSet<IpNet>>().into_iter().collect()
}
