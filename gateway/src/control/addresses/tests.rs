use std::net::IpAddr;

use api::resource::settings::Settings;
use k8s_openapi::{
    api::core::v1::{LoadBalancerStatus, ServicePort, ServiceSpec, ServiceStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};

use super::*;
use crate::{
    ipam::load_balancer::memory::ingress,
    model::{
        endpoint::Reach,
        service::Policy,
        world::{Config, Dirty, Ownership},
    },
    status::{election::Election, fixture::ApiServer, lease::Timing},
    watch::object::{Event, Object},
};

/// A world with Services, and who assigns them addresses.
struct Fixture {
    world: World,
    addresses: Addresses,
    desired: watch::Receiver<Arc<Desired>>,
}

fn fixture(pool: &str, leadership: Leadership) -> Fixture {
    let world = World::new(Config {
        settings: Settings { cluster_domain: "cluster.local".to_owned(), service_cidrs: vec![], node_ports: (1, 2) },
        ownership: Ownership::Labelled,
        reach: Reach::Cluster,
        policy: Policy::default(),
    });
    let classes = Classes { named: Some(crate::LOAD_BALANCER_CLASS.into()), unnamed: false };
    let pool = Pool::of_networks("default", &[pool.parse().expect("a network")]);
    let (addresses, desired) = Addresses::new(classes, Some(pool), leadership);
    Fixture { world, addresses, desired }
}

fn service(name: &str, created: i64, address: Option<&str>) -> Service {
    let spec = ServiceSpec {
        type_: Some("LoadBalancer".to_owned()),
        load_balancer_class: Some(crate::LOAD_BALANCER_CLASS.to_owned()),
        cluster_ips: Some(vec!["10.96.0.1".to_owned()]),
        ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
        ..ServiceSpec::default()
    };
    let addresses: Vec<IpAddr> = address.iter().map(|text| text.parse().expect("an address")).collect();
    let load_balancer = LoadBalancerStatus { ingress: Some(ingress(&addresses)) };
    Service {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            creation_timestamp: Some(Time(Timestamp::from_second(created).expect("in range"))),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: Some(ServiceStatus { load_balancer: Some(load_balancer), ..ServiceStatus::default() }),
    }
}

impl Fixture {
    fn apply(&mut self, service: Service) {
        let mut dirty = Dirty::default();
        self.world.apply(Event::Apply(Object::from(service).trimmed()), &mut dirty);
        assert!(dirty.load_balancers, "it has to do with addresses");
    }

    /// What is to be written, as `name=addresses`, after an assignment.
    fn wanted(&mut self) -> Vec<String> {
        self.addresses.assign(&self.world);
        let text = |(key, change): (&ObjectKey, &Change)| {
            let addresses: Vec<_> = change.addresses.iter().map(IpAddr::to_string).collect();
            format!("{}={}{}", key.name, addresses.join(","), if change.release { " released" } else { "" })
        };
        self.desired.borrow().iter().map(text).collect()
    }
}

#[test]
fn an_address_is_to_be_written_until_it_is_seen_and_the_oldest_is_served_first() {
    let mut fixture = fixture("192.0.2.0/31", Leadership::always());
    fixture.apply(service("a", 30, None));
    fixture.apply(service("b", 20, None));
    fixture.apply(service("c", 10, None));
    assert_eq!(fixture.wanted(), ["b=192.0.2.1", "c=192.0.2.0"]);
    let refused = fixture.addresses.assign(&fixture.world);
    let refused: Vec<_> = refused.iter().map(|(key, problems)| format!("{key}: {}", problems[0].reason)).collect();
    assert_eq!(refused, ["Service default/a: LOAD_BALANCER_IP_EXHAUSTED"]);
    fixture.apply(service("c", 10, Some("192.0.2.0")));
    assert_eq!(fixture.wanted(), ["b=192.0.2.1"]);
    fixture.apply(service("b", 20, Some("192.0.2.1")));
    assert_eq!(fixture.wanted(), Vec::<String>::new());
    // One that is gone makes room for one that waits.
    fixture.world.apply(Event::Delete(ObjectKey::new(Kind::Service, "default", "c")), &mut Dirty::default());
    assert_eq!(fixture.wanted(), ["a=192.0.2.0"]);
}

#[test]
fn a_service_that_is_being_deleted_keeps_its_address_and_loses_the_finalizer() {
    let mut fixture = fixture("192.0.2.0/31", Leadership::always());
    let mut deleted = service("a", 0, Some("192.0.2.1"));
    deleted.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    deleted.metadata.finalizers = Some(vec!["example.com/other".to_owned(), LOAD_BALANCER_CLEANUP.to_owned()]);
    fixture.apply(deleted.clone());
    assert_eq!(fixture.wanted(), ["a=192.0.2.1 released"]);
    // Those of others' class are theirs to release.
    deleted.spec.as_mut().expect("has one").load_balancer_class = Some("example.com/other".to_owned());
    fixture.apply(deleted);
    assert_eq!(fixture.wanted(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn who_begins_to_lead_believes_the_status_and_not_what_it_would_have_granted() {
    let (election, mut leadership) =
        Election::new(ApiServer::new().client(), "default", "portico-gateway", "this", Timing::DEFAULT);
    let mut fixture = fixture("192.0.2.0/30", leadership.clone());
    fixture.apply(service("a", 10, None));
    assert_eq!(fixture.wanted(), ["a=192.0.2.0"], "this would be granted");
    // The leader has granted another one.
    fixture.apply(service("a", 10, Some("192.0.2.3")));
    assert_eq!(fixture.wanted(), Vec::<String>::new());
    let (_trigger, drain) = runtime::drain::channel();
    tokio::spawn(election.run(drain));
    leadership.gained().await;
    fixture.addresses.turned().await;
    fixture.apply(service("b", 20, None));
    assert_eq!(fixture.wanted(), ["b=192.0.2.0"]);
    // It leads, so what it granted is held although nobody has seen it yet.
    fixture.apply(service("older", 0, None));
    assert_eq!(fixture.wanted(), ["b=192.0.2.0", "older=192.0.2.1"]);
}
