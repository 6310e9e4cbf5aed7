//! Objects in, resources and problems out: each folder of `testdata` holds an `in.yaml` and the `out.txt` that must follow
//! from it. With `UPDATE=1` in the environment the outputs are written instead of compared.
//!
//! An input whose first line is `# cluster` comes from a cluster, which has completed its objects already; all others are
//! manifests.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use api::resource::{Key, Kind as ResourceKind, Resource, service::Service, settings::Settings};
use gateway::{
    emulate::{Held, Rules, emulate},
    ipam::pool::PortRange,
    model::{
        derive::{Derive, Derived},
        endpoint::Reach,
        service::Policy,
        world::{Config, Dirty, Ownership, World},
    },
    problem::ByObject,
    snapshot::store::Change,
    watch::{
        manifest::parse::parse,
        object::{Event, Kind, Object, ObjectKey},
    },
};
use proptest::prelude::*;

#[test]
fn resources_and_problems_are_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut cases: Vec<_> =
        fs::read_dir(&folder).expect("testdata").map(|entry| entry.expect("an entry").path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let mut different = Vec::new();
    for case in cases {
        let input = fs::read_to_string(case.join("in.yaml")).expect("in.yaml");
        let output = derive(&input);
        let path = case.join("out.txt");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(path, output).expect("writes");
        } else if fs::read_to_string(&path).expect("out.txt") != output {
            different.push(format!("{}:\n{output}", case.display()));
        }
    }
    assert!(different.is_empty(), "differs; look, and run again with UPDATE=1:\n{}", different.join("\n"));
}

/// What people write by mistake, or on purpose.
const NASTY: [&str; 16] = [
    "-1",
    "0",
    "65536",
    "99999999999999999999",
    "null",
    "~",
    "''",
    "[]",
    "{}",
    "true",
    "1.5",
    "None",
    "::1",
    "300.1.1.1",
    "\u{202e}",
    "[{}]",
];

fn inputs() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let entries = fs::read_dir(folder).expect("testdata");
    entries.map(|entry| fs::read_to_string(entry.expect("an entry").path().join("in.yaml")).expect("in.yaml")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to a manifest, it is either refused with its place, or served as far as it makes sense.
    #[test]
    fn nothing_in_a_manifest_brings_the_gateway_down(
        input in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<prop::sample::Index>()), 1..6),
    ) {
        let inputs = inputs();
        let text = input.get(&inputs);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (at, edit, nasty) in edits {
            let at = at.index(lines.len());
            match edit {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                _ => {
                    // The value behind one of the line's colons.
                    let line = lines[at].clone();
                    let colons: Vec<usize> = line.match_indices(": ").map(|(offset, _)| offset + 2).collect();
                    if let Some(start) = colons.get(nasty.index(colons.len().max(1))) {
                        let end = line[*start..].find([',', '}', ']']).map_or(line.len(), |length| start + length);
                        lines[at] = format!("{}{}{}", &line[..*start], nasty.get(&NASTY), &line[end..]);
                    }
                }
            }
            if lines.is_empty() {
                break;
            }
        }
        match parse(lines.join("\n").as_bytes()) {
            Ok(parsed) => {
                let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
                for (_, object) in parsed.objects {
                    objects.entry(object.key()).or_insert_with(|| object.trimmed());
                }
                for from_cluster in [false, true] {
                    let text = resources(objects.clone(), from_cluster);
                    prop_assert!(text.starts_with("settings default\n"));
                }
            }
            Err(error) => {
                prop_assert!(error.line as usize <= lines.len() + 1, "{error}");
                prop_assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange_to_be_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse(&bytes) {
            prop_assert!(error.line >= 1 && error.column >= 1, "{error}");
        }
    }
}

fn derive(input: &str) -> String {
    let parsed = parse(input.as_bytes()).expect("in.yaml parses");
    let objects = parsed.objects.into_iter().map(|(_, object)| (object.key(), object.trimmed())).collect();
    resources(objects, input.starts_with("# cluster\n"))
}

fn resources(mut objects: BTreeMap<ObjectKey, Object>, from_cluster: bool) -> String {
    let network = |text: &str| text.parse().expect("a network");
    let rules = Rules {
        service_cidrs: vec![network("127.96.0.0/16")],
        node_ports: PortRange::new(30000..=32767),
        load_balancer_pool: vec![network("127.97.0.0/24")],
    };
    let mut problems = ByObject::new();
    if !from_cluster {
        let emulated = emulate(&rules, &objects, &mut Held::default());
        (objects, problems) = (emulated.objects, emulated.problems);
    }
    let mut world = World::new(Config {
        settings: Settings {
            cluster_domain: "cluster.local".to_owned(),
            service_cidrs: rules.service_cidrs,
            node_ports: rules.node_ports.ends(),
        },
        ownership: if from_cluster { Ownership::Labelled } else { Ownership::AllButForeign },
        reach: if from_cluster { Reach::Cluster } else { Reach::Machine },
        policy: Policy { external_ips: vec![network("192.0.2.0/24")] },
    });
    let mut dirty = Dirty::default();
    for kind in Kind::ALL {
        let of_kind = objects.values().filter(|object| object.kind() == kind).cloned().collect();
        world.apply(Event::Reset(kind, of_kind), &mut dirty);
    }
    let derived = Derive::default().derive(world.synced().expect("all was listed"), &dirty);
    render(derived, problems)
}

fn render(derived: Derived, mut problems: ByObject) -> String {
    let mut resources: BTreeMap<Key, Resource> = BTreeMap::new();
    for change in derived.changes {
        match change {
            Change::Set(resource) => resources.insert(resource.key(), resource),
            Change::Remove(key) => resources.remove(&key),
        };
    }
    for (object, found) in derived.problems {
        problems.entry(object).or_default().extend(found);
    }
    let mut text = String::new();
    // Slices say when endpoints changed, and have tests of their own.
    resources.retain(|key, _| key.kind != ResourceKind::Slice);
    for (key, resource) in resources {
        // What an agent would refuse must not be sent.
        let decoded = Resource::decode(key.kind, resource.encode().into()).expect("an agent takes it");
        assert_eq!(decoded.encode(), resource.encode());
        writeln!(text, "{key}").expect("a string takes everything");
        match resource {
            Resource::Service(service) => text += &service_lines(&service),
            Resource::Endpoint(endpoint) => {
                let conditions =
                    [("ready", endpoint.ready), ("serving", endpoint.serving), ("terminating", endpoint.terminating)];
                let conditions: Vec<_> =
                    conditions.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect();
                let ports: Vec<_> = endpoint
                    .ports
                    .iter()
                    .map(|port| format!("{}/{}={}", port.name, port.transport.as_str(), port.port))
                    .collect();
                let facts = [
                    ("conditions", conditions.join(",")),
                    ("ports", ports.join(",")),
                    ("node", endpoint.node),
                    ("zone", endpoint.zone),
                    ("hint_zones", endpoint.hint_zones.join(",")),
                    ("hint_nodes", endpoint.hint_nodes.join(",")),
                    ("pod", endpoint.pod),
                    ("hostname", endpoint.hostname),
                ];
                text += &pairs(&facts);
            }
            Resource::Node(node) => {
                let addresses =
                    |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                let facts = [
                    ("internal", addresses(&node.internal_addresses)),
                    ("external", addresses(&node.external_addresses)),
                    ("region", node.region),
                    ("zone", node.zone),
                    ("leaving", if node.leaving { "yes" } else { "" }.to_owned()),
                    ("excluded", if node.excluded_from_load_balancers { "yes" } else { "" }.to_owned()),
                ];
                text += &pairs(&facts);
            }
            Resource::Certificate(certificate) => {
                text += &pairs(&[("certificates", certificate.chain.len().to_string())]);
            }
            Resource::Workload(workload) => {
                text += &pairs(&[("pod", workload.pod.to_string()), ("node", workload.node)])
            }
            Resource::Namespace(_) => {}
            Resource::ForeignService(service) => text += &service_lines(&service),
            Resource::Slice(_) => {}
            Resource::HopKeys(_) => panic!("keys come from no object"),
            Resource::Settings(settings) => {
                text += &pairs(&[
                    ("domain", settings.cluster_domain),
                    ("node_ports", format!("{:?}", settings.node_ports)),
                ]);
            }
        }
    }
    for (object, found) in problems {
        for problem in found {
            writeln!(text, "problem of {object}\n    {problem}").expect("a string takes everything");
        }
    }
    text
}

fn service_lines(service: &Service) -> String {
    fn list<T: ToString>(items: &[T]) -> String {
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
    let facts = [
        ("type", format!("{:?}", service.kind)),
        ("cluster_ips", list(&service.cluster_ips)),
        ("external_ips", list(&service.external_ips)),
        ("load_balancer_ips", list(&service.load_balancer_ips)),
        ("source_ranges", list(&service.source_ranges)),
        ("policies", format!("{:?}/{:?}", service.internal_policy, service.external_policy)),
        ("affinity", service.affinity.map_or(String::new(), |timeout| format!("{timeout:?}"))),
        ("balancing", service.balancing.as_ref().map_or(String::new(), |balancing| format!("{balancing:?}"))),
        ("tls_secret", service.tls_secret.as_ref().map_or(String::new(), ToString::to_string)),
        ("health_check", service.health_check_node_port.map_or(String::new(), |port| port.to_string())),
        ("external_name", service.external_name.clone()),
        ("client_address", format!("{:?}", service.client_address)),
        ("local_overflow", if service.local_overflow { "yes" } else { "" }.to_owned()),
        ("class", service.load_balancer_class.clone()),
    ];
    let mut text = pairs(&facts);
    for port in &service.ports {
        let node_port = port.node_port.map_or(String::new(), |port| format!(" node_port={port}"));
        let tls = if port.terminate_tls { " inside TLS" } else { "" };
        let (name, transport) = (&port.name, port.transport.as_str());
        writeln!(text, "    port {name:?} {transport} {}{node_port} {:?}{tls}", port.port, port.protocol)
            .expect("a string takes everything");
    }
    text
}

fn pairs(facts: &[(&str, String)]) -> String {
    let given = facts.iter().filter(|(_, value)| !value.is_empty());
    let given: Vec<_> = given.map(|(name, value)| format!("{name}={value}")).collect();
    if given.is_empty() { String::new() } else { format!("    {}\n", given.join(" ")) }
}
