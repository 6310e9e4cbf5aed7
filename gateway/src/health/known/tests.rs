use std::time::Duration;

use super::*;
use crate::{
    health::fixture::{endpoint, node, place, serve, service, set},
    snapshot::store::Change,
};

const START: SystemTime = SystemTime::UNIX_EPOCH;

fn after(seconds: u64) -> SystemTime {
    START + Duration::from_secs(seconds)
}

fn name(service: &str) -> NamespacedName {
    NamespacedName::new("default", service)
}

/// Name, ready, serving and since when, for each node.
fn local(known: &Known, service: &str) -> Vec<(String, u32, u32, u64)> {
    let seconds = |since: SystemTime| since.duration_since(START).unwrap().as_secs();
    let local = &known.services[&name(service)].local;
    local.iter().map(|(node, it)| (node.to_string(), it.local.ready, it.local.serving, seconds(it.since))).collect()
}

#[test]
fn endpoints_are_counted_by_node_and_the_time_moves_only_when_the_phase_does() {
    let store = Store::new();
    let mut known = Known::default();
    store.commit([
        set(node("n1")),
        set(node("n2")),
        serve(service("web", TrafficPolicy::Local)),
        place(endpoint("web", 1, "n1")),
        place(endpoint("web", 2, "n2")),
    ]);
    let touched = known.update(&store, START);
    assert_eq!(touched.services, [name("web")].into());
    assert_eq!(touched.nodes, ["n1".into(), "n2".into()].into());
    assert_eq!(local(&known, "web"), [("n1".into(), 1, 1, 0), ("n2".into(), 1, 1, 0)]);

    store.commit([place(endpoint("web", 3, "n1"))]);
    known.update(&store, after(1));
    assert_eq!(local(&known, "web")[0], ("n1".into(), 2, 2, 0), "more of the same is no other phase");

    let terminating = |last| Endpoint { ready: false, terminating: true, ..endpoint("web", last, "n1") };
    store.commit([place(terminating(1)), place(terminating(3))]);
    known.update(&store, after(2));
    assert_eq!(local(&known, "web")[0], ("n1".into(), 0, 2, 2));

    store.commit([Change::Remove(terminating(1).key()), Change::Remove(terminating(3).key())]);
    known.update(&store, after(3));
    assert_eq!(local(&known, "web"), [("n1".into(), 0, 0, 3), ("n2".into(), 1, 1, 0)]);
    assert_eq!(known.services[&name("web")].serving, 1);

    assert_eq!(known.update(&store, after(4)), Touched::default(), "nothing was committed");
}

#[test]
fn an_address_with_several_endpoints_counts_once() {
    let store = Store::new();
    let split = Endpoint { split: "b".into(), ..endpoint("web", 1, "n1") };
    store.commit([
        set(node("n1")),
        serve(service("web", TrafficPolicy::Local)),
        place(endpoint("web", 1, "n1")),
        place(split),
    ]);
    let mut known = Known::default();
    known.update(&store, START);
    assert_eq!(local(&known, "web"), [("n1".into(), 1, 1, 0)]);
}

#[test]
fn only_services_that_are_reached_through_nodes_are_known() {
    let of = |name: &str, kind| Service { kind, ..service(name, TrafficPolicy::Cluster) };
    let external = Service { external_ips: vec![[192, 0, 2, 1].into()], ..of("external", ServiceType::ClusterIp) };
    let store = Store::new();
    store.commit([
        serve(of("node-port", ServiceType::NodePort)),
        serve(of("load-balancer", ServiceType::LoadBalancer)),
        serve(of("cluster-ip", ServiceType::ClusterIp)),
        serve(of("headless", ServiceType::Headless)),
        serve(of("external-name", ServiceType::ExternalName)),
        serve(external),
    ]);
    let mut known = Known::default();
    known.update(&store, START);
    let names: Vec<String> = known.services.keys().map(|name| name.name.to_string()).collect();
    assert_eq!(names, ["external", "load-balancer", "node-port"]);

    store.commit([serve(of("node-port", ServiceType::ClusterIp))]);
    assert_eq!(known.update(&store, START).services, [name("node-port")].into());
    assert!(!known.services.contains_key(&name("node-port")));
}

trait Keyed {
    fn key(&self) -> Key;
}

impl Keyed for Endpoint {
    fn key(&self) -> Key {
        Key::new(Kind::Endpoint, self.resource_name())
    }
}
