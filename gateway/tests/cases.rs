//! Cases from Kubernetes' own tests: what a node must serve for given objects, as far as the control plane decides it.
//! Each document of `cases/*.yaml` names its source.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use api::resource::{Key, Kind as ResourceKind, Resource, service::ServiceType, settings::Settings};
use gateway::{
    model::{
        derive::Derive,
        endpoint::Reach,
        service::Policy,
        world::{Config, Dirty, Ownership, World},
    },
    snapshot::store::Change,
    watch::{
        manifest::parse::parse,
        object::{Event, Kind, Object, ObjectKey},
    },
};
use serde_json::{Map, Value, json};

#[test]
fn endpoint_slices() {
    run("endpoint-slices.yaml", 12);
}

#[test]
fn frontends() {
    run("frontends.yaml", 12);
}

#[test]
fn nodes_of_load_balancers() {
    run("lb-nodes.yaml", 4);
}

fn run(file: &str, count: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(file);
    let text = fs::read_to_string(path).expect("the file is there");
    let options = serde_saphyr::options! { strict_booleans: true };
    let cases: Vec<Value> = serde_saphyr::from_multiple_with_options(&text, options).expect("the file parses");
    assert_eq!(cases.len(), count, "every case is run");
    for case in cases {
        Case::new(&case).run(&case);
    }
}

struct Case {
    name: String,
    node: String,
    world: World,
    derive: Derive,
    resources: BTreeMap<Key, Resource>,
    /// Services that a case leaves out because only slices matter to it.
    implied: BTreeSet<String>,
}

impl Case {
    fn new(case: &Value) -> Self {
        let network = |text: &str| text.parse().expect("a network");
        let mut world = World::new(Config {
            settings: Settings {
                cluster_domain: "cluster.local".to_owned(),
                service_cidrs: vec![],
                node_ports: (1, 2),
            },
            ownership: Ownership::AllButForeign,
            reach: Reach::Cluster,
            policy: Policy { external_ips: vec![network("0.0.0.0/0"), network("::/0")] },
        });
        for kind in Kind::ALL {
            world.apply(Event::Reset(kind, vec![]), &mut Dirty::default());
        }
        Self {
            name: case["name"].as_str().expect("a name").to_owned(),
            node: case["node"]["name"].as_str().unwrap_or_default().to_owned(),
            world,
            derive: Derive::default(),
            resources: BTreeMap::new(),
            implied: BTreeSet::new(),
        }
    }

    fn run(mut self, case: &Value) {
        self.apply(&case["objects"]);
        for step in case["steps"].as_array().into_iter().flatten() {
            for gone in step["delete"].as_array().into_iter().flatten() {
                let kind = gone["kind"].as_str().expect("a kind");
                let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind).expect("a known kind");
                let text = |name: &str| gone[name].as_str().unwrap_or_default().to_owned();
                self.event(Event::Delete(ObjectKey::new(kind, text("namespace"), text("name"))));
            }
            self.apply(&step["apply"]);
            self.check(&step["expect"]);
        }
        self.check(&case["expect"]);
    }

    fn apply(&mut self, objects: &Value) {
        for object in objects.as_array().into_iter().flatten() {
            let parsed = parse(object.to_string().as_bytes()).expect("an object of a case parses");
            for (_, object) in parsed.objects {
                self.imply_service(&object);
                self.event(Event::Apply(object.trimmed()));
            }
        }
    }

    fn imply_service(&mut self, object: &Object) {
        let Object::EndpointSlice(slice) = object else { return };
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|labels| labels.get("kubernetes.io/service-name")) else { return };
        let namespace = object.key().namespace;
        let known = Key::new(ResourceKind::Service, format!("{namespace}/{name}"));
        if name.is_empty() || self.resources.contains_key(&known) {
            return;
        }
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": &*namespace},
            "spec": {"clusterIP": "172.30.255.254", "ports": [{"port": 1}]},
        });
        self.implied.insert(format!("{namespace}/{name}"));
        let parsed = parse(service.to_string().as_bytes()).expect("a Service");
        parsed.objects.into_iter().for_each(|(_, object)| self.event(Event::Apply(object)));
    }

    fn event(&mut self, event: Event) {
        let mut dirty = Dirty::default();
        self.world.apply(event, &mut dirty);
        let synced = self.world.synced().expect("all was listed");
        for change in self.derive.derive(synced, &dirty).changes {
            match change {
                Change::Set(resource) => self.resources.insert(resource.key(), resource),
                Change::Remove(key) => self.resources.remove(&key),
            };
        }
    }

    fn check(&self, expect: &Value) {
        if let Some(expected) = expect.get("endpointTable") {
            assert_eq!(self.endpoint_table(), rows(expected), "{}", self.name);
        }
        for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
            if let Some(expected) = expect.get("frontends").and_then(|frontends| frontends.get(family)) {
                assert_eq!(self.frontends(is_ipv4), rows(expected), "{} {family}", self.name);
            }
        }
        if let Some(expected) = expect.get("loadBalancerNodes") {
            let nodes = self.resources.values().filter_map(|resource| match resource {
                Resource::Node(node) if !node.leaving && !node.excluded_from_load_balancers => Some(json!(node.name)),
                _ => None,
            });
            assert_eq!(nodes.map(|name| name.to_string()).collect::<BTreeSet<_>>(), rows(expected), "{}", self.name);
        }
    }

    fn endpoint_table(&self) -> BTreeSet<String> {
        let mut table: BTreeMap<(String, String, &str), Vec<Value>> = BTreeMap::new();
        for resource in self.resources.values() {
            let Resource::Endpoint(endpoint) = resource else { continue };
            for port in &endpoint.ports {
                let address = std::net::SocketAddr::new(endpoint.address, port.port.get());
                let key = (endpoint.service.to_string(), port.name.clone(), port.transport.as_str());
                table.entry(key).or_default().push(json!({
                    "endpoint": address.to_string(),
                    "local": !endpoint.node.is_empty() && endpoint.node == self.node,
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                }));
            }
        }
        let row = |((service, port, protocol), endpoints): ((String, String, &str), Vec<Value>)| json!({"service": service, "port": port, "protocol": protocol, "endpoints": endpoints});
        rows(&table.into_iter().map(row).collect())
    }

    fn frontends(&self, is_ipv4: bool) -> BTreeSet<String> {
        let mut found = Vec::new();
        for resource in self.resources.values() {
            let Resource::Service(service) = resource else { continue };
            let proxied = !matches!(service.kind, ServiceType::Headless | ServiceType::ExternalName);
            if !proxied || self.implied.contains(&service.name.to_string()) {
                continue;
            }
            let of_family = |addresses: &[IpAddr]| -> Vec<String> {
                addresses.iter().filter(|ip| ip.is_ipv4() == is_ipv4).map(ToString::to_string).collect()
            };
            let Some(cluster_ip) = of_family(&service.cluster_ips).into_iter().next() else { continue };
            for port in &service.ports {
                let ranges = service.source_ranges.iter().filter(|range| range.addr().is_ipv4() == is_ipv4);
                let mut row = Map::from_iter([
                    ("service".to_owned(), json!(service.name.to_string())),
                    ("port".to_owned(), json!(port.name)),
                    ("protocol".to_owned(), json!(port.transport.as_str())),
                    ("clusterIP".to_owned(), json!(cluster_ip)),
                    ("servicePort".to_owned(), json!(port.port)),
                ]);
                let optional = [
                    ("nodePort", port.node_port.map(|port| json!(port))),
                    ("externalIPs", list(of_family(&service.external_ips))),
                    ("loadBalancerIPs", list(of_family(&service.load_balancer_ips))),
                    ("sourceRanges", list(ranges.map(ToString::to_string).collect())),
                    ("healthCheckNodePort", service.health_check_node_port.map(|port| json!(port))),
                ];
                row.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
                found.push(Value::Object(row));
            }
        }
        rows(&Value::Array(found))
    }
}

fn list(items: Vec<String>) -> Option<Value> {
    (!items.is_empty()).then(|| json!(items))
}

/// Lists are sets in these cases, so rows are compared in a form in which lists are sorted.
fn rows(value: &Value) -> BTreeSet<String> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Array(items) => {
                let mut items: Vec<Value> = items.iter().map(sorted).collect();
                items.sort_by_key(Value::to_string);
                Value::Array(items)
            }
            Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| (name.clone(), sorted(value)))
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .collect(),
            other => other.clone(),
        }
    }
    let rows: Vec<String> = value.as_array().expect("a list").iter().map(|row| sorted(row).to_string()).collect();
    let set: BTreeSet<String> = rows.iter().cloned().collect();
    assert_eq!(set.len(), rows.len(), "a row stands twice: {rows:?}");
    set
}
