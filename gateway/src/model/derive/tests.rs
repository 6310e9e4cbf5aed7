//! Deriving what changed must give what deriving everything gives, whatever the order of events.

use std::collections::BTreeMap;

use api::resource::settings::Settings;
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{self, Node, Pod, PodSpec, PodStatus, Secret, Service, ServiceSpec},
        discovery::v1::{self as discovery, EndpointConditions, EndpointPort},
        networking::v1::{ServiceCIDR, ServiceCIDRSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proptest::prelude::*;

use super::*;
use crate::{
    emulate::slices::{SERVICE_NAME, SERVICE_PROXY_NAME},
    model::{
        endpoint::Reach,
        service::Policy,
        world::{Config, Ownership},
    },
    watch::object::{Event, Object},
};

fn config() -> Config {
    Config {
        settings: Settings { cluster_domain: "cluster.local".to_owned(), service_cidrs: vec![], node_ports: (1, 2) },
        ownership: Ownership::AllButForeign,
        reach: Reach::Cluster,
        policy: Policy::default(),
    }
}

fn metadata(name: impl ToString) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_string()), namespace: Some("default".to_owned()), ..Default::default() }
}

fn labels<const N: usize>(pairs: [(&str, String); N]) -> Option<BTreeMap<String, String>> {
    Some(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Services of three names, of each kind that matters, with and without a Secret.
fn service() -> impl Strategy<Value = Object> {
    (0..3u8, 0..4u8, 0..3u8).prop_map(|(name, kind, secret)| {
        let mut metadata = metadata(format!("s{name}"));
        if kind == 3 {
            metadata.labels = labels([(SERVICE_PROXY_NAME, "other".to_owned())]);
        }
        if secret > 0 {
            metadata.annotations = labels([("portico.dev/tls-secret", format!("c{secret}"))]);
        }
        let spec = ServiceSpec {
            type_: (kind == 2).then(|| "ExternalName".to_owned()),
            cluster_ip: Some(if kind == 1 { "None".to_owned() } else { format!("10.96.0.{}", name + 1) }),
            ports: Some(vec![v1::ServicePort {
                port: 443,
                app_protocol: Some("https".to_owned()),
                ..Default::default()
            }]),
            ..Default::default()
        };
        Service { metadata, spec: Some(spec), status: None }.into()
    })
}

/// Slices of four names that may move between Services, with addresses that repeat.
fn slice() -> impl Strategy<Value = Object> {
    (0..4u8, 0..4u8, any::<bool>(), proptest::collection::vec((1..5u8, 0..3u8), 0..4), 1..3i32).prop_map(
        |(name, owner, headless, endpoints, port)| {
            let mut metadata = metadata(format!("e{name}"));
            let mut pairs = labels([(SERVICE_NAME, format!("s{owner}"))]).unwrap_or_default();
            if headless {
                pairs.insert(HEADLESS.to_owned(), String::new());
            }
            metadata.labels = Some(pairs);
            let endpoint = |(address, condition): (u8, u8)| discovery::Endpoint {
                addresses: vec![format!("10.0.0.{address}")],
                conditions: Some(EndpointConditions {
                    ready: Some(condition == 0),
                    serving: None,
                    terminating: Some(condition == 2),
                }),
                ..Default::default()
            };
            EndpointSlice {
                metadata,
                address_type: "IPv4".to_owned(),
                endpoints: Some(endpoints.into_iter().map(endpoint).collect()),
                ports: Some(vec![EndpointPort { name: Some(String::new()), port: Some(port), ..Default::default() }]),
            }
            .into()
        },
    )
}

fn pod() -> impl Strategy<Value = Object> {
    (0..3u8, 1..4u8, any::<bool>(), any::<bool>()).prop_map(|(name, address, host, annotated)| {
        let mut metadata = metadata(format!("p{name}"));
        metadata.annotations = annotated.then(|| labels([("portico.dev/unknown", String::new())])).flatten();
        Pod {
            metadata,
            spec: Some(PodSpec { host_network: Some(host), ..Default::default() }),
            status: Some(PodStatus { pod_ip: Some(format!("10.0.0.{address}")), ..Default::default() }),
        }
        .into()
    })
}

fn secret() -> impl Strategy<Value = Object> {
    (1..3u8, any::<bool>()).prop_map(|(name, good)| {
        let (certificate, key) = pem();
        let data = [("tls.crt", certificate), ("tls.key", if good { key } else { String::new() })];
        let data = data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect();
        Secret { metadata: metadata(format!("c{name}")), data: Some(data), ..Default::default() }.into()
    })
}

fn pem() -> (String, String) {
    static MADE: std::sync::OnceLock<(String, String)> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["web.example.com".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
    .clone()
}

fn node() -> impl Strategy<Value = Object> {
    (0..2u8, any::<bool>()).prop_map(|(name, zoned)| {
        let mut metadata = ObjectMeta { name: Some(format!("n{name}")), ..Default::default() };
        metadata.labels = zoned.then(|| labels([("topology.kubernetes.io/zone", "z".to_owned())])).flatten();
        Node { metadata, ..Default::default() }.into()
    })
}

fn range() -> impl Strategy<Value = Object> {
    (0..2u8, 0..3u8).prop_map(|(name, range)| {
        let spec = ServiceCIDRSpec { cidrs: Some(vec![format!("10.{range}.0.0/16")]) };
        let metadata = ObjectMeta { namespace: None, ..metadata(format!("r{name}")) };
        ServiceCIDR { metadata, spec: Some(spec), status: None }.into()
    })
}

fn event() -> impl Strategy<Value = Event> {
    let object = || prop_oneof![3 => service(), 4 => slice(), 2 => pod(), 2 => secret(), 1 => node(), 1 => range()];
    prop_oneof![
        6 => object().prop_map(Event::Apply),
        3 => object().prop_map(|object| Event::Delete(object.key())),
        1 => proptest::collection::vec(slice(), 0..3).prop_map(|slices| Event::Reset(object::Kind::EndpointSlice, slices)),
        1 => proptest::collection::vec(service(), 0..3).prop_map(|services| Event::Reset(object::Kind::Service, services)),
        1 => proptest::collection::vec(pod(), 0..3).prop_map(|pods| Event::Reset(object::Kind::Pod, pods)),
    ]
}

type Published = (BTreeMap<Key, Resource>, BTreeMap<ObjectKey, Vec<Problem>>);

fn publish(derived: Derived, (resources, problems): &mut Published) {
    for change in derived.changes {
        match change {
            Change::Set(resource) => resources.insert(resource.key(), resource),
            Change::Remove(key) => resources.remove(&key),
        };
    }
    for (object, found) in derived.problems {
        if found.is_empty() {
            problems.remove(&object);
        } else {
            problems.insert(object, found);
        }
    }
}

fn listed() -> World {
    let mut world = World::new(config());
    for kind in object::Kind::ALL {
        assert!(kind == object::Kind::Endpoints || world.missing().contains(&kind));
        world.apply(Event::Reset(kind, vec![]), &mut Dirty::default());
    }
    world
}

proptest! {
    #[test]
    fn what_changed_and_everything_give_the_same(
        batches in proptest::collection::vec(proptest::collection::vec(event(), 1..6), 1..20),
    ) {
        let mut world = listed();
        let mut derive = Derive::default();
        let mut published = Published::default();
        for batch in batches {
            let mut dirty = Dirty::default();
            for event in batch {
                world.apply(event, &mut dirty);
            }
            let synced = world.synced().expect("all was listed");
            publish(derive.derive(synced, &dirty), &mut published);
            let mut scratch = Published::default();
            publish(Derive::default().derive(synced, &Dirty::default()), &mut scratch);
            prop_assert_eq!(&published, &scratch);
        }
    }

    #[test]
    fn applying_what_is_known_touches_nothing(events in proptest::collection::vec(event(), 1..30)) {
        let mut world = listed();
        let mut applied: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for event in events {
            if let Event::Apply(object) = &event {
                applied.insert(object.key(), object.clone());
                world.apply(event, &mut Dirty::default());
            }
        }
        let mut dirty = Dirty::default();
        for object in applied.into_values() {
            world.apply(Event::Apply(object), &mut dirty);
        }
        prop_assert!(dirty.is_empty(), "{:?}", dirty);
    }
}

#[test]
fn nothing_is_derived_before_every_kind_was_listed() {
    let mut world = World::new(config());
    for kind in [object::Kind::Service, object::Kind::Pod, object::Kind::Node, object::Kind::Secret] {
        world.apply(Event::Reset(kind, vec![]), &mut Dirty::default());
    }
    assert!(world.synced().is_none());
    assert_eq!(
        world.missing(),
        [object::Kind::EndpointSlice, object::Kind::Namespace, object::Kind::AddressPool, object::Kind::ServiceCIDR]
    );
}

#[test]
fn ranges_of_cluster_ips_are_those_of_all_objects() {
    let mut world = listed();
    let mut derive = Derive::default();
    let range = |name: &str, cidrs: &[&str]| {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..Default::default() };
        let spec = ServiceCIDRSpec { cidrs: Some(cidrs.iter().map(|cidr| (*cidr).to_owned()).collect()) };
        Object::from(ServiceCIDR { metadata, spec: Some(spec), status: None })
    };
    let more = range("more", &["10.1.0.0/16", "10.96.0.0/16"]);
    let steps = [
        (Event::Apply(range("kubernetes", &["10.96.0.0/16", "fd96::/112"])), "10.96.0.0/16 fd96::/112"),
        (Event::Apply(more.clone()), "10.1.0.0/16 10.96.0.0/16 fd96::/112"),
        (Event::Delete(more.key()), "10.96.0.0/16 fd96::/112"),
    ];
    for (event, expected) in steps {
        let mut dirty = Dirty::default();
        world.apply(event, &mut dirty);
        let derived = derive.derive(world.synced().expect("all was listed"), &dirty);
        let settings = derived.changes.iter().find_map(|change| match change {
            Change::Set(Resource::Settings(settings)) => Some(&settings.service_cidrs),
            _ => None,
        });
        let ranges: Vec<String> = settings.expect("settings").iter().map(ToString::to_string).collect();
        assert_eq!(ranges.join(" "), expected);
    }
}

#[test]
fn only_an_endpoint_that_takes_no_connections_any_more_is_urgent() {
    let mut world = listed();
    let slice = |ready: &[u8]| {
        let endpoint =
            |address: &u8| discovery::Endpoint { addresses: vec![format!("10.0.0.{address}")], ..Default::default() };
        let mut metadata = metadata("e");
        metadata.labels = labels([(SERVICE_NAME, "s".to_owned())]);
        let endpoints = Some(ready.iter().map(endpoint).collect());
        Event::Apply(EndpointSlice { metadata, address_type: "IPv4".to_owned(), endpoints, ports: None }.into())
    };
    for (ready, urgent) in [(&[1][..], false), (&[1, 2], false), (&[2, 3], true), (&[2, 3], false), (&[], true)] {
        let mut dirty = Dirty::default();
        world.apply(slice(ready), &mut dirty);
        assert_eq!(dirty.urgent, urgent, "{ready:?}");
    }
}

#[test]
fn a_secret_that_breaks_keeps_its_last_good_content() {
    let mut world = listed();
    let mut derive = Derive::default();
    let mut published = Published::default();
    let secret = |key: &str| {
        let data = [("tls.crt", pem().0), ("tls.key", key.to_owned())];
        let data = data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect();
        Object::from(Secret { metadata: metadata("c"), data: Some(data), ..Default::default() })
    };
    let mut service_metadata = metadata("s");
    service_metadata.annotations = labels([("portico.dev/tls-secret", "c".to_owned())]);
    let port = v1::ServicePort { port: 443, app_protocol: Some("https".to_owned()), ..Default::default() };
    let spec = ServiceSpec { cluster_ip: Some("10.96.0.1".to_owned()), ports: Some(vec![port]), ..Default::default() };
    let service = Service { metadata: service_metadata, spec: Some(spec), status: None };
    let mut step = |event: Event| {
        let mut dirty = Dirty::default();
        world.apply(event, &mut dirty);
        publish(derive.derive(world.synced().expect("all was listed"), &dirty), &mut published);
        let certificate = published.0.get(&Key::new(Kind::Certificate, "default/c")).cloned();
        (certificate, published.1.values().flatten().map(|problem| problem.message.clone()).collect::<Vec<_>>())
    };
    let (certificate, problems) = step(Event::Apply(service.into()));
    assert_eq!((certificate, problems.len()), (None, 1));
    let (good, problems) = step(Event::Apply(secret(&pem().1)));
    assert!(good.is_some() && problems.is_empty(), "{problems:?}");
    let (kept, problems) = step(Event::Apply(secret("no key")));
    assert_eq!(kept, good);
    assert!(problems[0].ends_with("; its last good content is still served"), "{problems:?}");
    let (gone, _) = step(Event::Delete(secret("").key()));
    assert_eq!(gone, None);
}
