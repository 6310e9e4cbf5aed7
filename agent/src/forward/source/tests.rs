use std::{num::NonZeroU16, sync::Arc, time::SystemTime};

use api::resource::{
    hop_keys::{HopKey, HopKeys},
    name::NamespacedName,
    service::{AppProtocol, Transport},
    workload::Workload,
};

use super::*;
use crate::{
    hop::{State, seal::Keys},
    table::{Family, Location, Map, hop::Hop},
};

fn table() -> Table {
    let workload = |address: IpAddr, node: &str| {
        let pod = NamespacedName::new("default", "pod");
        (address, Arc::new(Workload { address, pod, node: node.to_owned() }))
    };
    Table {
        location: Location {
            node: "here".to_owned(),
            addresses: vec![[192, 168, 0, 1].into()],
            pod_cidrs: vec!["10.1.0.0/16".parse().expect("a range")],
            ..Location::default()
        },
        workloads: Arc::new(
            [workload([10, 1, 0, 1].into(), "here"), workload([10, 1, 1, 1].into(), "there")].into_iter().collect(),
        ),
        ..Table::default()
    }
}

fn target(client_address: ClientAddress, protocol: AppProtocol, external_local: bool) -> Target {
    Target {
        protocol,
        client_address,
        any_endpoint: true,
        external: true,
        external_local,
        ..Target::new(NamespacedName::new("default", "web"), 80, Transport::Tcp, Family::Ipv4)
    }
}

fn backend(address: &str, locality: Locality) -> Backend {
    Backend { locality, ..Backend::new(address.parse().expect("an address")) }
}

fn check(kind: FrontendKind, target: &Target, client: &str, backend: &Backend, kept: bool) {
    let client: SocketAddr = client.parse().expect("an address");
    let expected = Way::Direct(if kept { Source::Client(client) } else { Source::Node });
    assert_eq!(choose(&table(), target, kind, client, backend), expected, "{kind:?} {client} {backend:?}");
}

const POD: &str = "10.1.0.1:5000";
const POD_ELSEWHERE: &str = "10.1.1.1:5000";
const NODE: &str = "192.168.0.1:5000";
const OUTSIDE: &str = "203.0.113.1:5000";

#[test]
fn requests_keep_the_rows_of_s6() {
    use FrontendKind::{ClusterIp, LoadBalancer, NodePort};
    let (cluster, local) =
        (target(ClientAddress::Auto, AppProtocol::Http, false), target(ClientAddress::Auto, AppProtocol::Http, true));
    let (here, there) = (backend("10.1.0.9:80", Locality::Node), backend("10.1.1.9:80", Locality::Zone));
    for target in [&cluster, &local] {
        check(ClusterIp, target, POD, &here, true);
        check(ClusterIp, target, POD, &there, true);
        check(ClusterIp, target, NODE, &here, false);
        check(ClusterIp, target, OUTSIDE, &here, false);
    }
    for kind in [NodePort, LoadBalancer] {
        for client in [POD, NODE, OUTSIDE] {
            check(kind, &cluster, client, &here, false);
        }
        check(kind, &local, OUTSIDE, &here, true);
        check(kind, &local, POD, &here, true);
        check(kind, &local, POD, &there, true);
        check(kind, &local, NODE, &here, false);
    }
}

#[test]
fn connections_keep_every_client_but_those_of_the_node() {
    use FrontendKind::{ClusterIp, LoadBalancer, NodePort};
    let here = backend("10.1.0.9:80", Locality::Node);
    for external_local in [false, true] {
        let target = target(ClientAddress::Auto, AppProtocol::Opaque, external_local);
        for kind in [ClusterIp, NodePort, LoadBalancer] {
            check(kind, &target, POD, &here, true);
            check(kind, &target, OUTSIDE, &here, true);
            check(kind, &target, NODE, &here, false);
        }
    }
}

#[test]
fn an_endpoint_that_reaches_itself_sees_the_node() {
    let target = target(ClientAddress::Keep, AppProtocol::Opaque, true);
    check(FrontendKind::ClusterIp, &target, POD, &backend("10.1.0.1:80", Locality::Node), false);
}

#[test]
fn answers_have_to_come_back_here() {
    let target = target(ClientAddress::Keep, AppProtocol::Opaque, true);
    let there = backend("10.1.1.9:80", Locality::Cluster);
    check(FrontendKind::LoadBalancer, &target, OUTSIDE, &there, false);
    check(FrontendKind::ClusterIp, &target, POD_ELSEWHERE, &there, false);
    check(FrontendKind::ClusterIp, &target, POD, &backend("[fd00::1]:80", Locality::Node), false);
}

#[test]
fn the_annotation_decides_where_there_is_a_choice() {
    let here = backend("10.1.0.9:80", Locality::Node);
    let check = |client_address, protocol, kind, client, kept| {
        check(kind, &target(client_address, protocol, false), client, &here, kept);
    };
    use AppProtocol::{Http, Opaque};
    use FrontendKind::{ClusterIp, NodePort};
    check(ClientAddress::Auto, Http, NodePort, OUTSIDE, false);
    check(ClientAddress::Auto, Opaque, NodePort, OUTSIDE, true);
    check(ClientAddress::Pool, Http, ClusterIp, POD, false);
    check(ClientAddress::Keep, Http, ClusterIp, POD, true);
    check(ClientAddress::Pool, Opaque, ClusterIp, POD, false);
    check(ClientAddress::Keep, Opaque, NodePort, OUTSIDE, true);
    check(ClientAddress::Keep, Opaque, NodePort, NODE, false);
}

/// A table from which connections to endpoints of the node `there` can be handed over.
fn table_with_hop() -> Table {
    let keys = HopKeys { current: HopKey([1; 32]), accepted: vec![] };
    let hop = Hop {
        port: NonZeroU16::new(18_082).expect("not zero"),
        keys: Arc::new(Keys::new(&keys)),
        nodes: [("there".into(), [192, 168, 0, 2].into())].into_iter().collect(),
        node_addresses: [[192, 168, 0, 1].into(), [192, 168, 0, 2].into()].into_iter().collect(),
        exits: Map::default(),
        serving: Default::default(),
        state: Arc::new(State::new(SystemTime::now())),
    };
    Table { hop: Some(Arc::new(hop)), ..table() }
}

#[test]
fn the_agent_of_another_node_dials_where_this_one_cannot() {
    let hop = |client: &str| Way::Hop {
        client: client.parse().expect("an address"),
        agent: "192.168.0.2:18082".parse().expect("an address"),
    };
    let (node, direct) = (Way::Direct(Source::Node), Way::Direct(Source::Client(POD.parse().expect("an address"))));
    let at = |address, node: &str| Backend { node: node.into(), ..backend(address, Locality::Cluster) };
    let (there, unknown) = (at("10.1.1.9:80", "there"), at("10.1.2.9:80", "elsewhere"));
    // It has the addresses of its node, so its answers pass every agent by.
    let host_network = at("192.168.0.2:80", "there");
    use FrontendKind::{ClusterIp, NodePort};
    let keep = |kind, client: &str, backend: &Backend, expected| {
        for protocol in [AppProtocol::Opaque, AppProtocol::Http] {
            let target = target(ClientAddress::Keep, protocol, false);
            let client = client.parse().expect("an address");
            assert_eq!(choose(&table_with_hop(), &target, kind, client, backend), expected, "{client} {backend:?}");
        }
    };
    keep(NodePort, OUTSIDE, &there, hop(OUTSIDE));
    keep(ClusterIp, OUTSIDE, &there, hop(OUTSIDE));
    keep(NodePort, POD_ELSEWHERE, &there, hop(POD_ELSEWHERE));
    // Answers to Pods of this node come through it anyway.
    keep(ClusterIp, POD, &there, direct);
    keep(NodePort, NODE, &there, node);
    keep(NodePort, OUTSIDE, &unknown, node);
    keep(NodePort, OUTSIDE, &host_network, node);

    let choose = |target: &Target| {
        let client = OUTSIDE.parse().expect("an address");
        choose(&table_with_hop(), target, NodePort, client, &there)
    };
    assert_eq!(choose(&target(ClientAddress::Auto, AppProtocol::Http, false)), node, "S6");
    assert_eq!(choose(&target(ClientAddress::Auto, AppProtocol::Opaque, false)), hop(OUTSIDE));
    assert_eq!(choose(&target(ClientAddress::Pool, AppProtocol::Opaque, true)), node);
    // Policy Local sends clients to other nodes only where it overflows, and then they are kept as well.
    assert_eq!(choose(&target(ClientAddress::Auto, AppProtocol::Opaque, true)), hop(OUTSIDE));
}
