//! A pool: ranges of addresses, and the Services they are for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};

use super::request::{Family, Request};
use crate::{
    ipam::pool::{address, number},
    problem::Problem,
    watch::address_pool::{AddressPoolSpec, ServiceAllocation},
};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Labels by namespace.
pub type NamespaceLabels = BTreeMap<Arc<str>, Labels>;

/// Addresses that Services of type LoadBalancer may be given.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Names it in requests.
    pub name: Arc<str>,
    ipv4: Vec<RangeInclusive<u128>>,
    ipv6: Vec<RangeInclusive<u128>>,
    auto_assign: bool,
    avoid_buggy: bool,
    /// 1 before 2; [`u32::MAX`] is without priority.
    priority: u32,
    namespaces: Option<Namespaces>,
    /// One that matches is enough; empty for all Services.
    services: Vec<Selector>,
}

/// The namespaces that a pool is for.
#[derive(Clone, Debug, PartialEq)]
struct Namespaces {
    names: BTreeSet<String>,
    selectors: Vec<Selector>,
}

// === impl Pool ===

impl Pool {
    /// A pool for everybody that gives the networks' addresses, both ends of each included.
    pub fn of_networks<'a>(name: &str, networks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut pool = Self::empty(name);
        networks.into_iter().for_each(|network| pool.add(network.network(), network.broadcast()));
        pool
    }

    /// Reads an `AddressPool`. What is wrong with it is reported, and the rest of it is obeyed; a selector that cannot be
    /// read matches nothing.
    pub fn parse(name: &str, spec: &AddressPoolSpec, report: &mut dyn FnMut(Problem)) -> Self {
        let mut pool = Self::empty(name);
        pool.auto_assign = spec.auto_assign;
        pool.avoid_buggy = spec.avoid_buggy_ips;
        for (index, text) in spec.addresses.iter().enumerate() {
            match parse_range(text) {
                Ok((first, last)) => pool.add(first, last),
                Err(reason) => report(Problem::new(
                    "INVALID_ADDRESS_POOL",
                    format!("spec.addresses[{index}]: {text:?} {reason}; give 192.0.2.0/24 or 192.0.2.10-192.0.2.20"),
                )),
            }
        }
        if spec.addresses.is_empty() {
            report(Problem::new("INVALID_ADDRESS_POOL", "spec.addresses is empty; give networks or ranges"));
        }
        if let Some(allocation) = &spec.service_allocation {
            pool.restrict(allocation, report);
        }
        pool
    }

    fn empty(name: &str) -> Self {
        Self {
            name: name.into(),
            ipv4: vec![],
            ipv6: vec![],
            auto_assign: true,
            avoid_buggy: false,
            priority: u32::MAX,
            namespaces: None,
            services: vec![],
        }
    }

    fn add(&mut self, first: IpAddr, last: IpAddr) {
        let ranges = if first.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 };
        ranges.push(number(first)..=number(last));
    }

    fn restrict(&mut self, allocation: &ServiceAllocation, report: &mut dyn FnMut(Problem)) {
        let wanted = allocation.priority.and_then(|priority| u32::try_from(priority).ok());
        self.priority = wanted.filter(|priority| *priority > 0).unwrap_or(u32::MAX);
        if allocation.priority.is_some_and(|priority| priority < 0) {
            let message = "spec.serviceAllocation.priority is below 0; it counts as none";
            report(Problem::new("INVALID_ADDRESS_POOL", message));
        }
        let namespaces = selectors("namespaceSelectors", &allocation.namespace_selectors, report);
        if !allocation.namespaces.is_empty() || !allocation.namespace_selectors.is_empty() {
            let names = allocation.namespaces.iter().cloned().collect();
            self.namespaces = Some(Namespaces { names, selectors: namespaces });
        }
        self.services = selectors("serviceSelectors", &allocation.service_selectors, report);
    }

    /// Whether it is for some Services only. Those it is for look here first (S11.5).
    pub fn is_pinned(&self) -> bool {
        self.namespaces.is_some() || !self.services.is_empty()
    }

    /// Whether Services that ask for neither an address nor a pool are given its addresses.
    pub fn is_automatic(&self) -> bool {
        self.auto_assign
    }

    /// Where it stands among the pools that fit a Service: what is pinned first, then by priority, then by name.
    pub fn rank(&self) -> (bool, u32, &str) {
        (!self.is_pinned(), self.priority, &self.name)
    }

    /// Whether the Service may have its addresses.
    pub fn is_for(&self, request: &Request, namespaces: &NamespaceLabels) -> bool {
        let here = self.namespaces.as_ref().is_none_or(|wanted| {
            let none = Labels::new();
            let labels = namespaces.get(&*request.namespace).unwrap_or(&none);
            wanted.names.contains(&*request.namespace)
                || wanted.selectors.iter().any(|selector| selector.matches(labels))
        });
        here && (self.services.is_empty() || self.services.iter().any(|selector| selector.matches(&request.labels)))
    }

    /// Whether the address can be had from it at all.
    pub fn contains(&self, address: IpAddr) -> bool {
        let wanted = number(address);
        self.ranges(Family::of(address)).iter().any(|range| range.contains(&wanted)) && !self.avoids(address)
    }

    /// Its addresses of a family, the lowest of the first range first.
    pub fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        let numbers = self.ranges(family).iter().flat_map(|range| range.clone());
        let addresses = numbers.map(move |number| address(number, family == Family::V4));
        addresses.filter(|address| !self.avoids(*address))
    }

    fn ranges(&self, family: Family) -> &[RangeInclusive<u128>] {
        match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }

    fn avoids(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.avoid_buggy && matches!(address.octets()[3], 0 | 255),
            IpAddr::V6(_) => false,
        }
    }
}

/// First and last address of `CIDR` or `FIRST-LAST`.
fn parse_range(text: &str) -> Result<(IpAddr, IpAddr), String> {
    if let Some((first, last)) = text.split_once('-') {
        let parse = |end: &str| end.trim().parse::<IpAddr>().map_err(|_| "is not two IP addresses".to_owned());
        let (first, last) = (parse(first)?, parse(last)?);
        if first.is_ipv4() != last.is_ipv4() {
            return Err("mixes IPv4 and IPv6".to_owned());
        }
        return if first <= last { Ok((first, last)) } else { Err("ends before it begins".to_owned()) };
    }
    let network: IpNet = text.trim().parse().map_err(|_| "is not a network".to_owned())?;
    Ok((network.network(), network.broadcast()))
}

fn selectors(field: &str, wanted: &[LabelSelector], report: &mut dyn FnMut(Problem)) -> Vec<Selector> {
    let read = |(index, selector): (usize, &LabelSelector)| match Selector::try_from(selector.clone()) {
        Ok(selector) => selector,
        Err(error) => {
            let message = format!("spec.serviceAllocation.{field}[{index}]: {error}; it matches nothing");
            report(Problem::new("INVALID_ADDRESS_POOL", message));
            // No label can be there and not be there.
            let key = "portico.dev/never".to_owned();
            let never = [kube::core::Expression::Exists(key.clone()), kube::core::Expression::DoesNotExist(key)];
            never.into_iter().collect()
        }
    };
    wanted.iter().enumerate().map(read).collect()
}
