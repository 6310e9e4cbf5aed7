//! What the cases of others do not say. Those are run by the crate `tests`.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{LoadBalancerStatus, Service, ServicePort, ServiceSpec, ServiceStatus};
use proptest::prelude::*;

use super::*;
use crate::{
    ipam::load_balancer::{
        memory::{Memory, Wanted, in_status, ingress},
        request::{ADDRESS_POOL, ALLOW_SHARED_IP, Classes, LOAD_BALANCER_IPS},
    },
    watch::{
        address_pool::AddressPoolSpec,
        object::{ANNOTATION_PREFIX, Kind},
    },
};

/// Services by name, as the API server has them, and who assigns.
#[derive(Default)]
struct Cluster {
    services: BTreeMap<ObjectKey, Service>,
    pools: Vec<Pool>,
    memory: Memory,
    wanted: BTreeMap<ObjectKey, Wanted>,
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::Service, "default", name)
}

fn pool(name: &str, addresses: &[&str]) -> Pool {
    let addresses = addresses.iter().map(|text| (*text).to_owned()).collect();
    let spec = AddressPoolSpec { addresses, auto_assign: true, ..AddressPoolSpec::default() };
    Pool::parse(name, &spec, &mut |problem| panic!("{problem}"))
}

fn service(cluster_ips: &[&str], port: i32, annotations: &[(&str, &str)]) -> Service {
    let text = |(name, value): &(&str, &str)| (format!("{ANNOTATION_PREFIX}{name}"), (*value).to_owned());
    let mut service = Service {
        spec: Some(ServiceSpec {
            type_: Some("LoadBalancer".to_owned()),
            load_balancer_class: Some(crate::LOAD_BALANCER_CLASS.to_owned()),
            cluster_ips: Some(cluster_ips.iter().map(|address| (*address).to_owned()).collect()),
            ports: Some(vec![ServicePort { port, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    service.metadata.annotations = Some(annotations.iter().map(text).collect());
    service
}

fn prefers_dual(mut service: Service) -> Service {
    service.spec.as_mut().expect("has one").ip_family_policy = Some("PreferDualStack".to_owned());
    service
}

impl Cluster {
    fn with(pools: Vec<Pool>) -> Self {
        Self { pools, ..Self::default() }
    }

    /// Applies a Service, keeping its status, and assigns.
    fn apply(&mut self, name: &str, mut service: Service) {
        service.status = self.services.get(&key(name)).and_then(|before| before.status.clone());
        self.services.insert(key(name), service);
        self.look();
    }

    fn look(&mut self) {
        self.assign();
        for (key, wanted) in self.wanted.clone() {
            self.observe(&key, &wanted.addresses);
        }
    }

    fn assign(&mut self) {
        let classes = Classes { named: Some(crate::LOAD_BALANCER_CLASS.into()), unnamed: false };
        self.wanted = self.memory.assign(&classes, &self.pools, &NamespaceLabels::new(), &self.services);
    }

    fn observe(&mut self, key: &ObjectKey, addresses: &[IpAddr]) {
        let load_balancer = LoadBalancerStatus { ingress: Some(ingress(addresses)) };
        let status = ServiceStatus { load_balancer: Some(load_balancer), ..ServiceStatus::default() };
        self.services.get_mut(key).expect("is there").status = Some(status);
    }

    fn addresses(&self, name: &str) -> Vec<String> {
        in_status(&self.services[&key(name)]).iter().map(IpAddr::to_string).collect()
    }

    fn refusal(&self, name: &str) -> String {
        let refusal = self.wanted[&key(name)].refusal.as_ref().expect("was refused");
        refusal.problem().to_string()
    }
}

#[test]
fn of_two_that_cannot_share_any_more_the_one_that_did_not_change_keeps_the_address() {
    let mut cluster = Cluster::with(vec![pool("p", &["10.0.0.0/31"])]);
    let shared = |port, key| service(&["10.96.0.1"], port, &[(ALLOW_SHARED_IP, key), (LOAD_BALANCER_IPS, "10.0.0.0")]);
    cluster.apply("a", shared(80, "x"));
    cluster.apply("b", shared(443, "x"));
    assert_eq!((cluster.addresses("a"), cluster.addresses("b")), (vec!["10.0.0.0".into()], vec!["10.0.0.0".into()]));
    // `a` comes first by name, but it is the one that changes its key, and then its port.
    cluster.apply("a", shared(80, "y"));
    assert_eq!((cluster.addresses("a"), cluster.addresses("b")), (vec![], vec!["10.0.0.0".to_owned()]));
    assert!(cluster.refusal("a").contains("10.0.0.0, which belongs to Service default/b"), "{}", cluster.refusal("a"));
    cluster.apply("a", shared(443, "x"));
    assert_eq!((cluster.addresses("a"), cluster.addresses("b")), (vec![], vec!["10.0.0.0".to_owned()]));
    // Once alone, it may have any key.
    cluster.services.remove(&key("b"));
    cluster.apply("a", shared(443, "z"));
    assert_eq!(cluster.addresses("a"), ["10.0.0.0"]);
}

#[test]
fn who_prefers_two_families_gains_the_second_from_its_own_pool_only() {
    let mut cluster = Cluster::with(vec![pool("v4", &["10.0.0.0/31"])]);
    let dual = || prefers_dual(service(&["10.96.0.1", "fd96::1"], 80, &[]));
    cluster.apply("a", dual());
    assert_eq!(cluster.addresses("a"), ["10.0.0.0"]);
    cluster.pools = vec![pool("other", &["10.1.0.0/31", "fd00::/127"]), pool("v4", &["10.0.0.0/31"])];
    cluster.look();
    assert_eq!(cluster.addresses("a"), ["10.0.0.0"], "it stays where it is");
    cluster.apply("b", dual());
    assert_eq!(cluster.addresses("b"), ["10.1.0.0", "fd00::"], "a pool with both comes before one with one");
    cluster.pools = vec![pool("v4", &["10.0.0.0/31", "fd01::/127"]), pool("other", &["10.1.0.0/31", "fd00::/127"])];
    cluster.look();
    assert_eq!(cluster.addresses("a"), ["10.0.0.0", "fd01::"]);
}

#[test]
fn a_service_that_gives_up_a_family_keeps_the_other() {
    let mut cluster = Cluster::with(vec![pool("p", &["10.0.0.0/30", "fd00::/126"])]);
    cluster.apply("first", service(&["10.96.0.9"], 80, &[]));
    cluster.apply("second", service(&["10.96.0.1", "fd96::1"], 80, &[]));
    assert_eq!(cluster.addresses("second"), ["10.0.0.1", "fd00::"]);
    cluster.services.remove(&key("first"));
    cluster.apply("second", service(&["10.96.0.1"], 80, &[]));
    assert_eq!(cluster.addresses("second"), ["10.0.0.1"]);
    cluster.apply("second", service(&["10.96.0.1", "fd96::1"], 80, &[]));
    assert_eq!(cluster.addresses("second"), ["10.0.0.1", "fd00::"]);
}

#[test]
fn a_grant_that_is_not_yet_seen_in_the_status_is_held_nevertheless() {
    let mut cluster = Cluster::with(vec![pool("p", &["10.0.0.0/31"])]);
    cluster.services.insert(key("b"), service(&["10.96.0.1"], 80, &[]));
    cluster.assign();
    // Before the write is seen, somebody arrives who would come first.
    cluster.services.insert(key("a"), service(&["10.96.0.2"], 80, &[]));
    cluster.assign();
    let address = |name: &str| cluster.wanted[&key(name)].addresses[0].to_string();
    assert_eq!((address("b"), address("a")), ("10.0.0.0".to_owned(), "10.0.0.1".to_owned()));
}

#[test]
fn after_a_restart_the_status_is_what_everybody_holds() {
    let mut cluster = Cluster::with(vec![pool("p", &["10.0.0.0/29"])]);
    cluster.services.insert(key("a"), service(&["10.96.0.1"], 80, &[]));
    cluster.services.insert(key("b"), service(&["10.96.0.2"], 80, &[]));
    cluster.observe(&key("b"), &[Ipv4Addr::new(10, 0, 0, 0).into()]);
    cluster.look();
    assert_eq!((cluster.addresses("a"), cluster.addresses("b")), (vec!["10.0.0.1".into()], vec!["10.0.0.0".into()]));
}

#[test]
fn what_is_of_another_class_or_type_is_not_touched_unless_it_was_ours() {
    let mut cluster = Cluster::with(vec![pool("p", &["10.0.0.0/31"])]);
    let mut other = service(&["10.96.0.1"], 80, &[]);
    other.spec.as_mut().expect("has one").load_balancer_class = Some("example.com/other".to_owned());
    cluster.services.insert(key("other"), other.clone());
    cluster.observe(&key("other"), &[Ipv4Addr::new(192, 0, 2, 1).into()]);
    other.spec.as_mut().expect("has one").load_balancer_class = None;
    cluster.services.insert(key("none"), other);
    cluster.apply("ours", service(&["10.96.0.2"], 80, &[]));
    assert_eq!(cluster.wanted.keys().cloned().collect::<Vec<_>>(), [key("ours")]);
    assert_eq!(cluster.addresses("ours"), ["10.0.0.0"]);
    // The API server takes the class away together with the type.
    let mut plain = service(&["10.96.0.2"], 80, &[]);
    let spec = plain.spec.as_mut().expect("has one");
    (spec.type_, spec.load_balancer_class) = (Some("ClusterIP".to_owned()), None);
    plain.status = cluster.services[&key("ours")].status.clone();
    cluster.services.insert(key("ours"), plain);
    for _ in 0..2 {
        // The wish stays until it is seen to be fulfilled.
        cluster.assign();
        assert_eq!(cluster.wanted[&key("ours")].addresses, Vec::<IpAddr>::new());
    }
    cluster.look();
    cluster.look();
    assert!(cluster.wanted.is_empty(), "{:?}", cluster.wanted);
}

#[test]
fn refusals_name_what_is_wrong_and_what_would_be_right() {
    let mut cluster = Cluster::with(vec![pool("p", &["10.0.0.0/32"])]);
    cluster.apply("a", service(&["10.96.0.1"], 80, &[]));
    for (annotations, expected) in [
        (vec![(LOAD_BALANCER_IPS, "nobody")], "portico.dev/load-balancer-ips: \"nobody\" is not an IP address"),
        (vec![(LOAD_BALANCER_IPS, "10.0.0.0,10.0.0.1")], "asks for two addresses of one family"),
        (vec![(LOAD_BALANCER_IPS, "10.9.0.0")], "asks for 10.9.0.0, which no address pool has"),
        (vec![(LOAD_BALANCER_IPS, "fd00::1")], "asks for fd00::1, but needs IPv4"),
        (vec![(LOAD_BALANCER_IPS, "10.0.0.0")], "which belongs to Service default/a; to share it both need the same"),
        (vec![(ADDRESS_POOL, "q")], "asks for the address pool q, which does not exist"),
        (
            vec![(ADDRESS_POOL, "q"), (LOAD_BALANCER_IPS, "10.0.0.0")],
            "and for the address pool q, which does not have it",
        ),
        (vec![], "no IPv4 address is free in the address pool p"),
    ] {
        cluster.apply("b", service(&["10.96.0.2"], 443, &annotations));
        assert!(cluster.refusal("b").contains(expected), "{}", cluster.refusal("b"));
        assert_eq!(cluster.addresses("b"), Vec::<String>::new());
    }
}

/// A Service at random: its ports, key, request and families.
fn any_service() -> impl Strategy<Value = Service> {
    let key = prop::option::of(prop::sample::select(vec!["x", "y"]));
    let asked = prop::option::of(0u8..6);
    (0i32..3, key, asked, any::<bool>(), any::<bool>()).prop_map(|(port, key, asked, dual, prefers)| {
        let asked = asked.map(|last| format!("10.0.0.{last}"));
        let mut annotations = vec![];
        annotations.extend(key.map(|key| (ALLOW_SHARED_IP, key)));
        annotations.extend(asked.as_deref().map(|asked| (LOAD_BALANCER_IPS, asked)));
        let cluster_ips: &[&str] = if dual { &["10.96.0.1", "fd96::1"] } else { &["10.96.0.1"] };
        let service = service(cluster_ips, 80 + port, &annotations);
        if prefers { prefers_dual(service) } else { service }
    })
}

proptest! {
    /// Whoever comes, changes and goes: nobody shares against the rules, what was granted stays, and a restart changes nothing.
    #[test]
    fn grants_are_exclusive_stable_and_survive_a_restart(
        changes in prop::collection::vec((0usize..6, prop::option::of(any_service())), 1..30),
    ) {
        let pools = vec![pool("p", &["10.0.0.0/30", "fd00::/127"]), pool("q", &["10.0.0.4/31", "fd01::/127"])];
        let mut cluster = Cluster::with(pools);
        for (number, service) in changes {
            let name = format!("s{number}");
            let before: BTreeMap<_, _> = cluster.services.iter().map(|(key, service)| (key.clone(), in_status(service))).collect();
            match service {
                Some(service) => cluster.apply(&name, service),
                None => {
                    cluster.services.remove(&key(&name));
                    cluster.look();
                }
            }
            for (owner, service) in &cluster.services {
                let held = in_status(service);
                if *owner != key(&name) && !before[owner].is_empty() {
                    prop_assert!(before[owner].iter().all(|address| held.contains(address)), "{} moved", owner);
                }
                let terms = |service: &Service| Request::of("default", service).expect("is right").expect("has a ClusterIP").terms;
                for (other, rival) in cluster.services.range(..owner.clone()) {
                    let shared = in_status(rival).iter().any(|address| held.contains(address));
                    prop_assert!(!shared || terms(service).allow(&terms(rival)), "{} and {}", owner, other);
                }
            }
            let granted = cluster.wanted.clone();
            cluster.look();
            prop_assert_eq!(&cluster.wanted, &granted, "looking again changes nothing");
            let memory = std::mem::take(&mut cluster.memory);
            cluster.look();
            prop_assert_eq!(&cluster.wanted, &granted, "nor does a restart");
            cluster.memory = memory;
        }
    }
}
