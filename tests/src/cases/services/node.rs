//! One node and the control plane it listens to, without a network between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use agent::{
    apply::{
        compile::{Compiler, Here, NodePortAddresses},
        resources::Resources,
    },
    table::{Table, certificate::TlsContext},
};
use api::{
    delta::{Changed, Changes, version::Version},
    resource::{Key, Resource, settings::Settings},
};
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
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Asked, Case, Cluster, Gone};

/// Addresses of a node that the case gives none of this family: frontends are asked of both.
const ADDRESSES: [&str; 2] = ["192.0.2.250", "2001:db8:ffff::250"];

/// The state of a case.
pub(super) struct Node {
    world: World,
    derive: Derive,
    /// What the control plane has published; equal content is not sent again.
    published: BTreeMap<Key, (Version, Resource)>,
    resources: Resources,
    compiler: Compiler,
    table: Arc<Table>,
    /// Objects as they were applied last, by kind, namespace and name.
    objects: BTreeMap<ObjectKey, Value>,
    /// Services that a case leaves out because only slices matter to it.
    implied: BTreeSet<String>,
    /// The node that is asked, unless the case has an object for it.
    implied_node: Option<String>,
    started: SystemTime,
}

// === impl Node ===

impl Node {
    pub(super) fn new(case: &Case) -> Result<Self, String> {
        let name = case.node.as_ref().map(|node| node.name.clone()).unwrap_or_default();
        let node_port_addresses = match &case.cluster.node_port_addresses {
            Some(ranges) => NodePortAddresses::Within(networks(ranges)?),
            None => NodePortAddresses::All,
        };
        let here = Here { node: name, node_port_addresses, http_port: None };
        let tls = TlsContext::new().map_err(|error| error.to_string())?;
        let started = match &case.proxy_started {
            Some(text) => time(text)?,
            None => SystemTime::UNIX_EPOCH,
        };
        let mut node = Self {
            world: World::new(config(&case.cluster)?),
            derive: Derive::default(),
            published: BTreeMap::new(),
            resources: Resources::default(),
            compiler: Compiler::new(here, tls),
            table: Arc::default(),
            objects: BTreeMap::new(),
            implied: BTreeSet::new(),
            implied_node: case.node.as_ref().map(|node| node.name.clone()),
            started,
        };
        for kind in Kind::ALL {
            node.world.apply(Event::Reset(kind, vec![]), &mut Dirty::default());
        }
        if let Some(asked) = &case.node {
            node.apply_one(&object_of(asked, &case.cluster))?;
        }
        Ok(node)
    }

    /// Creates or replaces objects, one after the other.
    pub(super) fn apply(&mut self, objects: &[Value]) -> Result<(), String> {
        for object in objects {
            if object["kind"] == "Node" && self.implied_node.as_deref() == object["metadata"]["name"].as_str() {
                self.implied_node = None;
            }
            self.apply_one(object)?;
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, gone: &Gone) -> Result<(), String> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == gone.kind);
        let kind = kind.ok_or_else(|| format!("there is no kind {} to delete", gone.kind))?;
        let key = ObjectKey::new(kind, gone.namespace.clone(), gone.name.clone());
        self.objects.remove(&key).ok_or_else(|| format!("there is no {} {} to delete", gone.kind, gone.name))?;
        self.event(Event::Delete(key))
    }

    /// Every object of a kind, as it was applied.
    pub(super) fn objects(&self, kind: Kind) -> Vec<Value> {
        self.objects.iter().filter(|(key, _)| key.kind == kind).map(|(_, object)| object.clone()).collect()
    }

    /// The table in force.
    pub(super) fn table(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// What the agent holds.
    pub(super) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Whether a Service is there only because slices name it.
    pub(super) fn is_implied(&self, service: &str) -> bool {
        self.implied.contains(service)
    }

    /// Names of the nodes that an external load balancer may use (S14).
    pub(super) fn load_balancer_nodes(&self) -> Vec<Value> {
        let nodes = self.resources.nodes().filter(|node| self.implied_node.as_deref() != Some(node.name.as_str()));
        nodes.filter(|node| node.takes_external_traffic()).map(|node| json!(node.name)).collect()
    }

    /// The trigger times to observe now that everything is programmed, by Service (S20).
    pub(super) fn take_triggers(&mut self) -> BTreeMap<String, Vec<SystemTime>> {
        let taken = self.resources.take_triggers(self.started);
        taken.into_iter().map(|(service, times)| (service.to_string(), times)).collect()
    }

    fn apply_one(&mut self, value: &Value) -> Result<(), String> {
        let parsed = parse(value.to_string().as_bytes()).map_err(|error| error.to_string())?;
        if let Some(kind) = parsed.others.keys().next() {
            return Err(format!("objects of kind {kind} are not read"));
        }
        for (_, object) in parsed.objects {
            self.objects.insert(object.key(), value.clone());
            self.imply_service(&object)?;
            self.event(Event::Apply(object.trimmed()))?;
        }
        Ok(())
    }

    fn imply_service(&mut self, object: &Object) -> Result<(), String> {
        let Object::EndpointSlice(slice) = object else { return Ok(()) };
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|labels| labels.get("kubernetes.io/service-name")) else { return Ok(()) };
        let namespace = object.key().namespace;
        let known = ObjectKey::new(Kind::Service, namespace.clone(), name.as_str());
        if name.is_empty() || self.objects.contains_key(&known) || self.implied.contains(&format!("{namespace}/{name}"))
        {
            return Ok(());
        }
        self.implied.insert(format!("{namespace}/{name}"));
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": &*namespace},
            "spec": {"clusterIP": "198.51.100.250", "ports": [{"port": 1}]},
        });
        let parsed = parse(service.to_string().as_bytes()).map_err(|error| error.to_string())?;
        parsed.objects.into_iter().try_for_each(|(_, object)| self.event(Event::Apply(object)))
    }

    /// One commit of the control plane, taken over by the agent.
    fn event(&mut self, event: Event) -> Result<(), String> {
        let mut dirty = Dirty::default();
        self.world.apply(event, &mut dirty);
        let synced = self.world.synced().ok_or("not every kind was listed")?;
        let mut changes = Changes::default();
        for change in self.derive.derive(synced, &dirty).changes {
            match change {
                Change::Set(resource) => {
                    let (key, body) = (resource.key(), resource.encode());
                    let version = Version::of(&body);
                    let before = self.published.insert(key.clone(), (version, resource));
                    if before.is_none_or(|(before, _)| before != version) {
                        changes.set.push(Changed { key, version, body: body.into() });
                    }
                }
                Change::Remove(key) => {
                    if self.published.remove(&key).is_some() {
                        changes.removed.push(key);
                    }
                }
            }
        }
        let (rejections, dirty) = self.resources.apply(changes);
        if let Some(rejection) = rejections.first() {
            return Err(format!("{} is refused: {}", rejection.key, rejection.message));
        }
        self.table = Arc::new(self.compiler.compile(&self.resources, &dirty));
        Ok(())
    }
}

fn config(cluster: &Cluster) -> Result<Config, String> {
    Ok(Config {
        settings: Settings {
            cluster_domain: "cluster.local".to_owned(),
            service_cidrs: networks(&cluster.service_cidrs)?,
            node_ports: (30_000, 32_767),
        },
        ownership: Ownership::AllButForeign,
        reach: Reach::Cluster,
        policy: Policy { external_ips: networks(&["0.0.0.0/0".to_owned(), "::/0".to_owned()])? },
    })
}

fn object_of(asked: &Asked, cluster: &Cluster) -> Value {
    let has = |ipv4: bool| asked.addresses.iter().any(|address| address.contains('.') == ipv4);
    let missing = ADDRESSES.into_iter().filter(|address| !has(address.contains('.')));
    let addresses = asked.addresses.iter().map(String::as_str).chain(missing);
    let addresses: Vec<Value> = addresses.map(|address| json!({"type": "InternalIP", "address": address})).collect();
    let labels = asked.zone.iter().map(|zone| ("topology.kubernetes.io/zone".to_owned(), json!(zone)));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": asked.name, "labels": Value::Object(labels.collect())},
        "spec": {"podCIDRs": cluster.pod_cidrs},
        "status": {"addresses": addresses},
    })
}

/// A time as objects have it.
pub(super) fn time(text: &str) -> Result<SystemTime, String> {
    let parsed = text.parse::<prost_types::Timestamp>().ok().and_then(|time| SystemTime::try_from(time).ok());
    parsed.ok_or_else(|| format!("{text:?} is not a time"))
}

fn networks(texts: &[String]) -> Result<Vec<IpNet>, String> {
    texts.iter().map(|text| text.parse().map_err(|_| format!("{text:?} is not a network"))).collect()
}
