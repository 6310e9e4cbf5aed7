//! Resources in, table out.

use std::time::{Duration, SystemTime};

use api::{
    delta::{Changed, Changes, version::Version},
    resource::{
        Key, Kind, Resource,
        endpoint::{Endpoint, EndpointPort},
        hop_keys::{HopKey, HopKeys},
        node::Node,
        service::{Balancing, TrafficPolicy},
    },
};
use proptest::prelude::*;

use super::{target::balance, *};
use crate::{
    report::outcome::Outcome,
    table::{Balance, Candidates, HashKey, verdict::ClientKind},
};

fn compiler() -> Compiler {
    let here = Here {
        node: "node-a".to_owned(),
        node_port_addresses: NodePortAddresses::All,
        http_port: NonZeroU16::new(8080),
    };
    Compiler::new(here, TlsContext::new().expect("the system has randomness"))
}

fn node(name: &str, last: u8) -> Resource {
    Resource::Node(Node {
        name: name.to_owned(),
        internal_addresses: vec![[127, 0, 1, last].into()],
        external_addresses: vec![],
        region: String::new(),
        zone: "east".to_owned(),
        pod_cidrs: vec![],
        leaving: false,
        excluded_from_load_balancers: false,
    })
}

fn port(name: &str, number: u16, node_port: u16, protocol: AppProtocol) -> ServicePort {
    ServicePort {
        name: name.to_owned(),
        transport: Transport::Tcp,
        port: NonZeroU16::new(number).expect("not zero"),
        node_port: NonZeroU16::new(node_port),
        protocol,
        terminate_tls: false,
    }
}

fn service(name: &str, last: u8) -> Service {
    Service {
        cluster_ips: vec![[127, 96, 0, last].into()],
        ports: vec![port("http", 80, 30_000 + u16::from(last), AppProtocol::Http)],
        ..Service::new(NamespacedName::new("default", name), ServiceType::NodePort)
    }
}

fn endpoint(service: &str, last: u8, node: &str) -> Endpoint {
    Endpoint {
        ports: vec![EndpointPort {
            name: "http".to_owned(),
            transport: Transport::Tcp,
            port: NonZeroU16::new(8080).expect("not zero"),
        }],
        node: node.to_owned(),
        ..Endpoint::new(NamespacedName::new("default", service), [127, 1, 0, last].into())
    }
}

fn changed(resource: &Resource) -> Changed {
    let body = resource.encode();
    Changed { key: resource.key(), version: Version::of(&body), body: body.into() }
}

fn set(resources: impl IntoIterator<Item = Resource>) -> Changes {
    Changes { set: resources.into_iter().map(|resource| changed(&resource)).collect(), removed: vec![] }
}

fn table(resources: impl IntoIterator<Item = Resource>) -> Table {
    let mut held = Resources::default();
    let (rejections, dirty) = held.apply(set(resources));
    assert_eq!(rejections, []);
    compiler().compile(&held, &dirty)
}

fn backends(table: &Table, address: &str) -> Vec<String> {
    let frontend = table.frontend(address.parse().expect("an address"), Transport::Tcp).expect("a frontend");
    let target = frontend.target.as_ref().expect("a target");
    target.cluster.backends.iter().map(|backend| backend.address.to_string()).collect()
}

#[test]
fn a_service_answers_at_all_its_addresses() {
    let mut web = service("web", 1);
    web.load_balancer_ips = vec![[127, 97, 0, 1].into()];
    let endpoint = endpoint("web", 5, "node-b");
    let table = table([
        node("node-a", 1),
        node("node-b", 2),
        Resource::Service(Box::new(web)),
        Resource::Endpoint(Box::new(endpoint)),
    ]);
    for address in ["127.96.0.1:80", "127.0.1.1:30001", "127.97.0.1:80"] {
        assert_eq!(backends(&table, address), ["127.1.0.5:8080"], "{address}");
    }
    assert!(table.frontend(([127, 0, 1, 2], 30_001).into(), Transport::Tcp).is_none(), "another node's address");
    let shared = table.frontend(([127, 0, 1, 1], 8080).into(), Transport::Tcp).expect("the shared port");
    assert!(shared.target.is_none());
}

#[test]
fn other_nodes_may_ask_for_the_endpoints_of_this_one_once_there_are_keys() {
    let mut held = Resources::default();
    let mut compiler =
        compiler().with_hop(NonZeroU16::new(18_082).expect("not zero"), Arc::new(State::new(SystemTime::now())));
    let mut compile = |resources: Vec<Resource>| {
        let (rejections, dirty) = held.apply(set(resources));
        assert_eq!(rejections, []);
        compiler.compile(&held, &dirty)
    };
    // Hints that name other zones only, and what does not serve any more.
    let hinted = Endpoint { hint_zones: vec!["west".to_owned()], ..endpoint("web", 5, "node-a") };
    let draining = Endpoint { ready: false, terminating: true, ..endpoint("web", 6, "node-a") };
    let gone = Endpoint { ready: false, serving: false, terminating: true, ..endpoint("web", 7, "node-a") };
    let elsewhere = Endpoint { hint_zones: vec!["east".to_owned()], ..endpoint("web", 8, "node-b") };
    let host_network = Endpoint { address: [127, 0, 1, 1].into(), ..endpoint("web", 9, "node-a") };
    let endpoints = [hinted, draining, gone, elsewhere, host_network];
    let resources = [node("node-a", 1), node("node-b", 2), Resource::Service(Box::new(service("web", 1)))];
    let endpoints = endpoints.into_iter().map(|endpoint| Resource::Endpoint(Box::new(endpoint)));
    let without = compile(resources.into_iter().chain(endpoints).collect());
    let port: SocketAddr = ([127, 0, 1, 1], 18_082).into();
    assert!(without.hop.is_none() && without.frontend(port, Transport::Tcp).is_none());

    let keys = HopKeys { current: HopKey([1; 32]), accepted: vec![] };
    let table = compile(vec![Resource::HopKeys(keys)]);
    assert_eq!(table.frontend(port, Transport::Tcp).expect("the port").kind, FrontendKind::Hop);
    let hop = table.hop.expect("there are keys");
    let mut exits: Vec<String> = hop.exits.keys().map(|exit| exit.endpoint.to_string()).collect();
    exits.sort();
    assert_eq!(exits, ["127.1.0.5:8080", "127.1.0.6:8080"]);
    assert_eq!(hop.agents().collect::<Vec<_>>(), [([127, 0, 1, 2], 18_082).into()]);
}

#[test]
fn a_node_that_is_not_there_has_no_node_ports_but_serves() {
    let table = table([
        Resource::Service(Box::new(service("web", 1))),
        Resource::Endpoint(Box::new(endpoint("web", 5, "node-b"))),
    ]);
    assert_eq!(table.frontends.len(), 1);
    assert_eq!(backends(&table, "127.96.0.1:80"), ["127.1.0.5:8080"]);
}

#[test]
fn verdicts_follow_policy_and_source() {
    let mut web = service("web", 1);
    web.external_policy = TrafficPolicy::Local;
    web.source_ranges = vec!["10.0.0.0/8".parse().expect("a network")];
    let table = table([
        node("node-a", 1),
        Resource::Service(Box::new(web)),
        Resource::Endpoint(Box::new(endpoint("web", 5, "node-b"))),
    ]);
    let frontend = table.frontend(([127, 0, 1, 1], 30_001).into(), Transport::Tcp).expect("a frontend");
    let target = frontend.target.as_ref().expect("a target");
    let check = |kind, client: [u8; 4], inside| {
        let from = || if inside { ClientKind::Pod } else { ClientKind::External };
        target.verdict(kind, client.into(), from).candidates().map(|candidates| candidates.backends.len())
    };
    assert_eq!(check(FrontendKind::NodePort, [192, 0, 2, 1], false), Err(Outcome::NoLocalEndpoints));
    assert_eq!(check(FrontendKind::NodePort, [192, 0, 2, 1], true), Ok(1), "short circuit (S5.3)");
    assert_eq!(check(FrontendKind::ClusterIp, [192, 0, 2, 1], false), Ok(1));
    assert_eq!(check(FrontendKind::LoadBalancer, [192, 0, 2, 1], true), Err(Outcome::SourceRange));
    assert_eq!(check(FrontendKind::LoadBalancer, [10, 0, 0, 1], false), Err(Outcome::NoLocalEndpoints));
}

#[test]
fn what_did_not_change_is_shared() {
    let mut held = Resources::default();
    let mut compiler = compiler();
    let all = [
        node("node-a", 1),
        Resource::Service(Box::new(service("web", 1))),
        Resource::Service(Box::new(service("db", 2))),
    ];
    let (_, dirty) = held.apply(set(all));
    let before = compiler.compile(&held, &dirty);
    let (_, dirty) = held.apply(set([Resource::Endpoint(Box::new(endpoint("web", 5, "node-b")))]));
    let after = compiler.compile(&held, &dirty);
    let target = |table: &Table, address: &str| {
        let address = address.parse().expect("an address");
        table.frontend(address, Transport::Tcp).and_then(|frontend| frontend.target.clone()).expect("a target")
    };
    assert!(Arc::ptr_eq(&target(&before, "127.96.0.2:80"), &target(&after, "127.96.0.2:80")));
    assert!(!Arc::ptr_eq(&target(&before, "127.96.0.1:80"), &target(&after, "127.96.0.1:80")));
}

#[test]
fn a_resource_under_another_name_is_refused_and_the_last_good_one_stays() {
    let mut held = Resources::default();
    let mut compiler = compiler();
    let web = Resource::Service(Box::new(service("web", 1)));
    let (_, dirty) = held.apply(set([web.clone()]));
    compiler.compile(&held, &dirty);
    let mut wrong = changed(&Resource::Service(Box::new(service("other", 9))));
    wrong.key = web.key();
    let garbage = Changed { key: Key::new(Kind::Service, "default/x"), version: Version::of(b"x"), body: "x".into() };
    let (rejections, dirty) = held.apply(Changes { set: vec![wrong, garbage], removed: vec![] });
    assert_eq!(rejections.len(), 2);
    assert!(rejections[0].message.contains("default/other"), "{}", rejections[0].message);
    let table = compiler.compile(&held, &dirty);
    assert_eq!(table.frontends.len(), 1);
    assert!(table.frontend(([127, 96, 0, 1], 80).into(), Transport::Tcp).is_some());
}

#[test]
fn annotation_and_affinity_decide_the_balance() {
    let mut web = service("web", 1);
    let http = web.ports[0].clone();
    let raw = port("raw", 81, 0, AppProtocol::Opaque);
    assert_eq!((balance(&web, &http), balance(&web, &raw)), (Balance::LeastRequest, Balance::Random));
    web.balancing = Some(Balancing::HeaderHash("x-user".to_owned()));
    let header = Balance::Hash(HashKey::Header(http::HeaderName::from_static("x-user")));
    assert_eq!((balance(&web, &http), balance(&web, &raw)), (header, Balance::Hash(HashKey::Client)));
    web.affinity = Some(Duration::from_secs(10_800));
    assert_eq!(balance(&web, &http), Balance::Hash(HashKey::Client));
}

#[test]
fn names_are_compiled_again_only_when_one_changes() {
    let (mut held, mut compiler) = (Resources::default(), compiler());
    let headless = Service { kind: ServiceType::Headless, cluster_ips: vec![], ..service("db", 2) };
    let mut zone = |change: Changes| {
        let (rejections, dirty) = held.apply(change);
        assert_eq!(rejections, []);
        compiler.compile(&held, &dirty).zone.expect("there was a commit")
    };
    let services = [service("web", 1), headless].map(|service| Resource::Service(Box::new(service)));
    let before = zone(set(services.into_iter().chain([node("node-a", 1)])));
    let of_web = Resource::Endpoint(Box::new(endpoint("web", 5, "node-a")));
    assert!(Arc::ptr_eq(&before, &zone(set([of_web.clone()]))), "a ClusterIP has no names of endpoints");
    assert!(Arc::ptr_eq(&before, &zone(set([node("node-b", 2)]))));
    let of_db = zone(set([Resource::Endpoint(Box::new(endpoint("db", 6, "node-a")))]));
    assert!(!Arc::ptr_eq(&before, &of_db) && of_db.serial > before.serial);
    assert_eq!(of_db.service(b"db", b"default").map(|entry| entry.hosts.len()), Some(1));
    let named = Endpoint { hostname: "front".to_owned(), ..endpoint("web", 5, "node-a") };
    let named = zone(set([Resource::Endpoint(Box::new(named))]));
    assert_eq!(named.names_of([127, 1, 0, 5].into()).len(), 1);
    let removed = Changes { set: vec![], removed: vec![of_web.key(), Key::new(Kind::Service, "default/db")] };
    let removed = zone(removed);
    assert!(removed.names_of([127, 1, 0, 5].into()).is_empty() && removed.service(b"db", b"default").is_none());
    let foreign = zone(set([Resource::ForeignService(Box::new(service("db", 3)))]));
    assert_eq!(foreign.names_of([127, 96, 0, 3].into()).len(), 1);
    let namespace = api::resource::namespace::Namespace { name: "empty".to_owned() };
    assert!(zone(set([Resource::Namespace(namespace)])).has_namespace(b"empty"));
}

/// Name of a target, its endpoints for policy Cluster, and those for policy Local.
type Described = (Option<String>, Vec<SocketAddr>, Vec<SocketAddr>);

/// What a table says, without the identity of its parts.
fn describe(table: &Table) -> BTreeMap<Destination, Described> {
    let addresses = |candidates: &Candidates| candidates.backends.iter().map(|backend| backend.address).collect();
    let describe = |frontend: &Frontend| match &frontend.target {
        Some(target) => (Some(target.display_name()), addresses(&target.cluster), addresses(&target.local)),
        None => (None, vec![], vec![]),
    };
    table.frontends.iter().map(|(destination, frontend)| (*destination, describe(frontend))).collect()
}

fn step() -> impl Strategy<Value = (u8, u8, bool)> {
    (0..3u8, 0..6u8, any::<bool>())
}

proptest! {
    /// Compiling what is dirty equals compiling everything from nothing.
    #[test]
    fn incremental_equals_from_scratch(steps in proptest::collection::vec(step(), 1..40)) {
        let mut held = Resources::default();
        let mut compiler = compiler();
        for (what, index, keep) in steps {
            let name = ["web", "db", "api"][usize::from(index % 3)];
            let resource = match what {
                0 => Resource::Service(Box::new(service(name, index + 1))),
                1 => Resource::Endpoint(Box::new(endpoint(name, index, if index % 2 == 0 { "node-a" } else { "node-b" }))),
                _ => node(if index % 2 == 0 { "node-a" } else { "node-b" }, index + 1),
            };
            let changes =
                if keep { set([resource]) } else { Changes { set: vec![], removed: vec![resource.key()] } };
            let (_, dirty) = held.apply(changes);
            let table = compiler.compile(&held, &dirty);
            let scratch = super::tests::compiler().compile(&held, &Dirty { all: true, ..Dirty::default() });
            prop_assert_eq!(describe(&table), describe(&scratch));
        }
    }
}
