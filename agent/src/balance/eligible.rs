//! Which endpoints this node may use (S4), from what the control plane says of all of them.

use std::{collections::BTreeSet, net::IpAddr};

use api::resource::endpoint::Endpoint;

use crate::table::{Family, Location};

/// The endpoints that S4.1 gives for policy Cluster: ready ones, filtered by hints; if there are none, draining ones.
pub fn cluster<'a>(endpoints: &[&'a Endpoint], here: &Location) -> Vec<&'a Endpoint> {
    let ready: Vec<&Endpoint> = endpoints.iter().copied().filter(|endpoint| endpoint.is_ready()).collect();
    if ready.is_empty() {
        return draining(endpoints);
    }
    hinted(&ready, here).unwrap_or(ready)
}

/// The endpoints that S4.3 gives for policy Local: local ready ones; if there are none, local draining ones.
pub fn local<'a>(endpoints: &[&'a Endpoint], here: &Location) -> Vec<&'a Endpoint> {
    let local: Vec<&Endpoint> = endpoints.iter().copied().filter(|endpoint| is_local(endpoint, here)).collect();
    let ready: Vec<&Endpoint> = local.iter().copied().filter(|endpoint| endpoint.is_ready()).collect();
    if ready.is_empty() { draining(&local) } else { ready }
}

/// Whether some endpoint anywhere is ready or draining (S4.6).
pub fn any(endpoints: &[&Endpoint]) -> bool {
    endpoints.iter().any(|endpoint| endpoint.is_ready() || endpoint.is_draining())
}

/// Whether an endpoint is on this node (S3.8).
pub fn is_local(endpoint: &Endpoint, here: &Location) -> bool {
    !endpoint.node.is_empty() && endpoint.node == here.node
}

/// How many addresses of each family take new connections on this node: what a health-check node port tells (S12.3).
pub fn local_ready_addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, here: &Location) -> [usize; 2] {
    let ready = endpoints.filter(|endpoint| endpoint.is_ready() && is_local(endpoint, here));
    let with_ports = ready.filter(|endpoint| !endpoint.ports.is_empty());
    let addresses: BTreeSet<IpAddr> = with_ports.map(|endpoint| endpoint.address).collect();
    Family::ALL.map(|family| addresses.iter().filter(|address| Family::of(**address) == family).count())
}

fn draining<'a>(endpoints: &[&'a Endpoint]) -> Vec<&'a Endpoint> {
    endpoints.iter().copied().filter(|endpoint| endpoint.is_draining()).collect()
}

/// S4.2: hints count only if every ready endpoint has them and one names this node or zone.
fn hinted<'a>(ready: &[&'a Endpoint], here: &Location) -> Option<Vec<&'a Endpoint>> {
    let by = |hints: fn(&Endpoint) -> &Vec<String>, name: &str| {
        let complete = !name.is_empty() && ready.iter().all(|endpoint| !hints(endpoint).is_empty());
        let named: Vec<&Endpoint> =
            ready.iter().copied().filter(|endpoint| hints(endpoint).iter().any(|hint| hint == name)).collect();
        (complete && !named.is_empty()).then_some(named)
    };
    by(|endpoint| &endpoint.hint_nodes, &here.node).or_else(|| by(|endpoint| &endpoint.hint_zones, &here.zone))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use api::resource::{endpoint::EndpointPort, name::NamespacedName, service::Transport};

    use super::*;

    /// `name flags`: r ready, s serving, t terminating; `@node`, `zZONE` and `nNODE` hints.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split(' ');
        let last: u8 = words.next().and_then(|word| word.parse().ok()).expect("last octet");
        let words: Vec<&str> = words.collect();
        let with = |prefix: char| words.iter().filter_map(move |word| word.strip_prefix(prefix)).map(str::to_owned);
        Endpoint {
            ports: vec![EndpointPort {
                name: String::new(),
                transport: Transport::Tcp,
                port: NonZeroU16::new(80).expect("not zero"),
            }],
            ready: words.contains(&"ready"),
            serving: words.contains(&"ready") || words.contains(&"draining"),
            terminating: words.contains(&"draining") || words.contains(&"dead"),
            node: with('@').next().unwrap_or_default(),
            hint_zones: with('z').collect(),
            hint_nodes: with('n').collect(),
            ..Endpoint::new(NamespacedName::new("default", "web"), [10, 0, 0, last].into())
        }
    }

    fn check(endpoints: &[&str], expect_cluster: &[u8], expect_local: &[u8]) {
        let here = Location { node: "here".to_owned(), zone: "east".to_owned(), ..Location::default() };
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
        let all: Vec<&Endpoint> = endpoints.iter().collect();
        let last = |chosen: Vec<&Endpoint>| -> Vec<u8> {
            let octets = chosen.iter().map(|endpoint| match endpoint.address {
                std::net::IpAddr::V4(address) => address.octets()[3],
                std::net::IpAddr::V6(_) => unreachable!("the cases are IPv4"),
            });
            octets.collect()
        };
        assert_eq!(last(cluster(&all, &here)), expect_cluster, "cluster");
        assert_eq!(last(local(&all, &here)), expect_local, "local");
    }

    #[test]
    fn ready_before_draining_and_each_set_falls_back_alone() {
        check(&["1 ready @here", "2 ready @there"], &[1, 2], &[1]);
        check(&["1 draining @here", "2 ready @there"], &[2], &[1]);
        check(&["1 draining @here", "2 draining @there", "3 dead @here"], &[1, 2], &[1]);
        check(&["1 @here", "2 dead @here"], &[], &[]);
        check(&["1 ready"], &[1], &[]);
    }

    #[test]
    fn hints_count_only_when_complete_and_for_us() {
        check(&["1 ready zeast", "2 ready zwest"], &[1], &[]);
        check(&["1 ready zeast", "2 ready"], &[1, 2], &[]);
        check(&["1 ready zwest", "2 ready zwest"], &[1, 2], &[]);
        check(&["1 ready zeast nthere", "2 ready zwest nhere"], &[2], &[]);
        check(&["1 ready zeast nthere", "2 ready zwest nthere"], &[1], &[]);
        check(&["1 draining zwest", "2 draining zeast"], &[1, 2], &[]);
    }
}
