use std::{net::SocketAddr, sync::Arc};

use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, Transport},
};

use super::*;
use crate::table::{Backend, Candidates, Family, Frontend, Location};

const CLIENT_ADDRESS: &str = "10.97.0.1:80";

/// A port with `cluster` endpoints, of which `local` are on this node.
fn target(cluster: u8, local: u8) -> Target {
    Target {
        cluster: candidates(cluster),
        local: candidates(local),
        any_endpoint: cluster > 0,
        external: true,
        ..Target::new(NamespacedName::new("default", "web"), 80, Transport::Tcp, Family::Ipv4)
    }
}

fn candidates(count: u8) -> Candidates {
    let backend = |last| Arc::new(Backend::new(SocketAddr::from(([10, 1, 0, last], 8080))));
    Candidates::new((1..=count).map(backend))
}

fn location() -> Location {
    Location {
        node: "here".to_owned(),
        addresses: ["192.168.0.1", "fd00::1"].map(|address| address.parse().expect("an address")).to_vec(),
        pod_cidrs: ["10.1.0.0/24", "10.1.1.0/24", "fd01::/64"].map(|range| range.parse().expect("a range")).to_vec(),
        ..Location::default()
    }
}

fn destination(address: &str) -> Destination {
    Destination { address: address.parse().expect("an address"), transport: Transport::Tcp }
}

fn ruleset(kind: FrontendKind, address: &str, target: Option<Target>) -> Ruleset {
    let frontend = Frontend { kind, target: target.map(Arc::new) };
    Ruleset::new(&Table {
        location: location(),
        frontends: [(destination(address), frontend)].into_iter().collect(),
        ..Table::default()
    })
}

#[test]
fn verdicts_are_those_of_the_specification() {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    let external = [ExternalIp, LoadBalancer, NodePort];
    let check = |kinds: &[FrontendKind], change: fn(&mut Target), endpoints: (u8, u8), expected: Option<Action>| {
        for kind in kinds {
            let mut target = target(endpoints.0, endpoints.1);
            change(&mut target);
            let found = ruleset(*kind, CLIENT_ADDRESS, Some(target));
            assert_eq!(found.services.get(&destination(CLIENT_ADDRESS)).copied(), expected, "{kind:?} {endpoints:?}");
        }
    };
    let all = [ClusterIp, ExternalIp, LoadBalancer, NodePort];
    check(&all, |_| {}, (2, 0), Some(Action::Catch));
    check(&all, |_| {}, (0, 0), Some(Action::Refuse));
    // An HTTP port answers 503, and says why.
    check(&all, |target| target.protocol = AppProtocol::Http, (0, 0), Some(Action::Catch));
    let internal_local = |target: &mut Target| target.internal_local = true;
    check(&[ClusterIp], internal_local, (2, 0), Some(Action::Drop));
    check(&[ClusterIp], internal_local, (2, 1), Some(Action::Catch));
    check(&external, internal_local, (2, 0), Some(Action::Catch));
    let external_local = |target: &mut Target| target.external_local = true;
    check(&[ClusterIp], external_local, (2, 0), Some(Action::Catch));
    check(&external, external_local, (2, 0), Some(Action::CatchInside));
    check(&external, external_local, (2, 1), Some(Action::Catch));
    check(&external, external_local, (0, 0), Some(Action::Refuse));
    let overflow = |target: &mut Target| (target.external_local, target.local_overflow) = (true, true);
    check(&external, overflow, (2, 0), Some(Action::Catch));
}

#[test]
fn sctp_is_refused_where_it_would_be_served() {
    let address = Destination { transport: Transport::Sctp, ..destination(CLIENT_ADDRESS) };
    let check = |change: fn(&mut Target), expected| {
        let mut target = Target { transport: Transport::Sctp, ..target(2, 0) };
        change(&mut target);
        let frontend = Frontend { kind: FrontendKind::NodePort, target: Some(Arc::new(target)) };
        let table =
            Table { location: location(), frontends: [(address, frontend)].into_iter().collect(), ..Table::default() };
        assert_eq!(Ruleset::new(&table).services, [(address, expected)].into());
    };
    check(|_| {}, Action::Refuse);
    check(|target| target.external_local = true, Action::Refuse);
    check(|target| target.any_endpoint = false, Action::Refuse);
}

#[test]
fn the_shared_port_has_a_socket_of_its_own() {
    assert_eq!(ruleset(FrontendKind::Route, "192.168.0.1:8080", None).count(), 0);
}

#[test]
fn ranges_guard_load_balancer_addresses() {
    let guarded = |kind, address: &str, ranges: &[&str]| {
        let mut target = target(0, 0);
        target.source_ranges = ranges.iter().map(|range| range.parse().expect("a range")).collect();
        ruleset(kind, address, Some(target))
    };
    let check = |address: &str, ranges: &[&str], expected: &[&str]| {
        let found = guarded(FrontendKind::LoadBalancer, address, ranges);
        let destination = destination(address);
        let admitted: Vec<String> = found.admitted.iter().map(|(_, range)| range.to_string()).collect();
        assert_eq!(admitted, expected, "{address} {ranges:?}");
        let verdict = if expected.is_empty() { Action::Refuse } else { Action::Guard };
        assert_eq!(found.services[&destination], verdict);
        // Without endpoints, those who are admitted are refused, and others get silence (S7.3).
        assert_eq!(found.guarded.get(&destination), (!expected.is_empty()).then_some(&Action::Refuse));
    };
    check("10.97.0.1:80", &["10.0.0.0/8", "10.1.0.0/16"], &["10.0.0.0/8"]);
    check("10.97.0.1:80", &[], &[]);
    check("[fd02::1]:80", &["fd00::/8"], &["fd00::/8"]);
    check("10.97.0.1:80", &["172.16.0.0/17", "172.16.128.0/17"], &["172.16.0.0/16"]);
    let other = guarded(FrontendKind::ExternalIp, "10.97.0.1:80", &["10.0.0.0/8"]);
    assert_eq!(other.admitted.len(), 0);
}

#[test]
fn pods_and_the_node_are_inside() {
    let inside: Vec<String> =
        ruleset(FrontendKind::Route, "192.168.0.1:80", None).inside.iter().map(IpNet::to_string).collect();
    assert_eq!(inside, ["10.1.0.0/23", "192.168.0.1/32", "fd00::1/128", "fd01::/64"]);
}

#[test]
fn a_node_that_is_admitted_may_dial_the_address_itself() {
    // S7.4.
    let mut target = target(1, 0);
    target.source_ranges = ["192.168.0.0/24".parse().expect("a range")].into();
    target.own_sources = [[10, 97, 0, 1].into()].into();
    let found = ruleset(FrontendKind::LoadBalancer, "10.97.0.1:80", Some(target));
    let admitted: Vec<String> = found.admitted.iter().map(|(_, range)| range.to_string()).collect();
    assert_eq!(admitted, ["10.97.0.1/32", "192.168.0.0/24"]);
}
