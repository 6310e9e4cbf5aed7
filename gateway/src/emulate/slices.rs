//! EndpointSlices from selectors and Pods, and from Endpoints written by hand.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{
            self, Container, EndpointAddress, EndpointSubset, Endpoints, Pod, Service, ServicePort, ServiceSpec,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::Services;
use crate::watch::object::{Kind, Object, ObjectKey};

/// Label that names the Service of a slice (S3.1).
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that says who writes a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of slices whose Service is headless (S1.3).
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that keeps Endpoints from being mirrored.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Label that hands a Service and its slices to another proxy (S1.2).
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// All slices that the cluster's controllers would write for these Services.
pub fn all(services: &Services, objects: &BTreeMap<ObjectKey, Object>) -> Vec<Object> {
    let pods = Pods::new(objects);
    let mut slices = Vec::new();
    for (key, service) in services.iter() {
        let Some(spec) = &service.spec else { continue };
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        match spec.selector.as_ref().filter(|selector| !selector.is_empty()) {
            Some(selector) => {
                slices.extend(selected(key, service, spec, pods.matching(&key.namespace, selector), &pods))
            }
            None => {
                let of = ObjectKey::new(Kind::Endpoints, key.namespace.clone(), key.name.clone());
                if let Some(Object::Endpoints(endpoints)) = objects.get(&of) {
                    slices.extend(mirrored(key, service, endpoints, &pods));
                }
            }
        }
    }
    slices.into_iter().map(Object::from).collect()
}

/// Pods by namespace and label, so that a selector looks at those it may match only.
struct Pods<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Arc<Pod>>>,
    zones: HashMap<&'a str, &'a str>,
}

// === impl Pods ===

impl<'a> Pods<'a> {
    fn new(objects: &'a BTreeMap<ObjectKey, Object>) -> Self {
        let mut by_label: HashMap<_, Vec<_>> = HashMap::new();
        let mut zones = HashMap::new();
        for (key, object) in objects {
            match object {
                Object::Pod(pod) => {
                    for (label, value) in pod.metadata.labels.iter().flatten() {
                        by_label.entry((&*key.namespace, label.as_str(), value.as_str())).or_default().push(pod);
                    }
                }
                Object::Node(node) => {
                    if let Some(zone) = node.metadata.labels.iter().flatten().find(|(label, _)| *label == ZONE) {
                        zones.insert(&*key.name, zone.1.as_str());
                    }
                }
                _ => {}
            }
        }
        Self { by_label, zones }
    }

    fn with_label<'s>(&'s self, namespace: &'s str, label: &'s str, value: &'s str) -> &'s [&'s Arc<Pod>] {
        self.by_label.get(&(namespace, label, value)).map_or(&[], Vec::as_slice)
    }

    fn matching<'s>(&'s self, namespace: &'s str, selector: &'s BTreeMap<String, String>) -> Vec<&'s Arc<Pod>> {
        let candidates = selector.iter().map(|(label, value)| self.with_label(namespace, label, value));
        let Some(fewest) = candidates.min_by_key(|pods| pods.len()) else { return vec![] };
        let matches = |pod: &&Arc<Pod>| {
            let labels = pod.metadata.labels.as_ref();
            selector.iter().all(|(label, value)| labels.and_then(|labels| labels.get(label)) == Some(value))
        };
        fewest.iter().copied().filter(matches).collect()
    }

    fn zone(&self, node: Option<&str>) -> Option<String> {
        node.and_then(|node| self.zones.get(node)).map(|zone| (*zone).to_owned())
    }
}

/// Label that names the zone of a Node.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// What the endpoints of one slice have in common: whether they are IPv4, and (name, protocol, number) of each port.
type Group = (bool, Vec<(String, String, i32)>);

/// The slices of a Service with a selector: one for each family and each set of port numbers that Pods resolve to.
fn selected(
    key: &ObjectKey,
    service: &Service,
    spec: &ServiceSpec,
    matching: Vec<&Arc<Pod>>,
    pods: &Pods<'_>,
) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for pod in matching {
        let Some(status) = &pod.status else { continue };
        // A Pod that has run to its end keeps its address in the status, and may share it with another by now.
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            continue;
        }
        let listed = status.pod_ips.iter().flatten().map(|address| address.ip.as_str());
        let mut addresses: Vec<IpAddr> =
            listed.chain(status.pod_ip.as_deref()).filter_map(|address| address.parse().ok()).collect();
        addresses.sort();
        addresses.dedup();
        for is_ipv4 in [true, false] {
            let family = if is_ipv4 { "IPv4" } else { "IPv6" };
            if !spec.ip_families.iter().flatten().any(|wanted| wanted == family) {
                continue;
            }
            let Some(address) = addresses.iter().find(|address| address.is_ipv4() == is_ipv4) else { continue };
            let ports = spec.ports.iter().flatten().filter_map(|port| {
                let number = target_port(port, pod)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((port.name.clone().unwrap_or_default(), protocol, number))
            });
            groups.entry((is_ipv4, ports.collect())).or_default().push(endpoint(pod, *address, service, spec, pods));
        }
    }
    let mut count = BTreeMap::new();
    let slice = |((is_ipv4, ports), mut endpoints): (Group, Vec<Endpoint>)| {
        endpoints.sort_by(|one, other| one.addresses.cmp(&other.addresses));
        let index = count.entry(is_ipv4).and_modify(|count| *count += 1).or_insert(0);
        let app_protocol = |name: &str| {
            let of = |port: &&ServicePort| port.name.as_deref().unwrap_or_default() == name;
            spec.ports.iter().flatten().find(of).and_then(|port| port.app_protocol.clone())
        };
        let ports = ports.into_iter().map(|(name, protocol, number)| EndpointPort {
            app_protocol: app_protocol(&name),
            name: Some(name),
            port: Some(number),
            protocol: Some(protocol),
        });
        let ports = ports.collect();
        made(key, service, is_ipv4, &index.to_string(), "endpointslice-controller.k8s.io", ports, endpoints)
    };
    groups.into_iter().map(slice).collect()
}

fn endpoint(pod: &Pod, address: IpAddr, service: &Service, spec: &ServiceSpec, pods: &Pods<'_>) -> Endpoint {
    let running = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = (running && !terminating) || spec.publish_not_ready_addresses == Some(true);
    let pod_spec = pod.spec.as_ref();
    let node = pod_spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
    let zone = pods.zone(node.as_deref());
    // In the DNS name of the Service only if the Pod says that it belongs there (S19.5).
    let hostname = pod_spec
        .filter(|spec| spec.subdomain.is_some() && spec.subdomain == service.metadata.name)
        .and_then(|spec| spec.hostname.clone());
    // Topology hints as their controller gives them (S15.1): only where asked for, only to what is ready.
    let hints = match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") if ready => {
            Some(EndpointHints { for_zones: zone_hint(&zone), for_nodes: None })
        }
        Some("PreferSameNode") if ready => {
            let for_nodes = node.iter().map(|node| ForNode { name: node.clone() }).collect();
            Some(EndpointHints { for_zones: zone_hint(&zone), for_nodes: Some(for_nodes) })
        }
        _ => None,
    };
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(running || spec.publish_not_ready_addresses == Some(true)),
            terminating: Some(terminating),
        }),
        hints,
        hostname,
        node_name: node,
        target_ref: Some(v1::ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        zone,
        ..Default::default()
    }
}

fn zone_hint(zone: &Option<String>) -> Option<Vec<ForZone>> {
    zone.as_ref().map(|zone| vec![ForZone { name: zone.clone() }])
}

/// The Ready condition. A manifest that has an address but no conditions is taken at its word: the Pod runs.
fn is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    match &status.conditions {
        Some(conditions) => conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        None => matches!(status.phase.as_deref(), None | Some("Running")),
    }
}

/// The number to dial for a Service port at one Pod; `None` if the Pod has no port of the name (S3.5).
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let spec = pod.spec.as_ref()?;
            // Init containers that keep running are sidecars, whose ports count.
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let find = |container: &Container| {
                let ports = container.ports.iter().flatten();
                let of = |port: &&v1::ContainerPort| {
                    port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
                };
                ports.into_iter().find(of).map(|port| port.container_port)
            };
            spec.containers.iter().chain(sidecars).find_map(find)
        }
    }
}

/// The slices of Endpoints written by hand for a Service without a selector: one for each subset and family.
fn mirrored(key: &ObjectKey, service: &Service, endpoints: &Endpoints, pods: &Pods<'_>) -> Vec<EndpointSlice> {
    let labels = endpoints.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(SKIP_MIRROR)).is_some_and(|value| value == "true") {
        return vec![];
    }
    let mut slices = Vec::new();
    for (index, subset) in endpoints.subsets.iter().flatten().enumerate() {
        for is_ipv4 in [true, false] {
            let addresses = subset_endpoints(subset, is_ipv4, pods);
            if addresses.is_empty() {
                continue;
            }
            let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            });
            let suffix = format!("mirrored-{index}");
            let by = "endpointslicemirroring-controller.k8s.io";
            slices.push(made(key, service, is_ipv4, &suffix, by, ports.collect(), addresses));
        }
    }
    slices
}

fn subset_endpoints(subset: &EndpointSubset, is_ipv4: bool, pods: &Pods<'_>) -> Vec<Endpoint> {
    let all = subset.addresses.iter().flatten().map(|address| (address, true));
    let all = all.chain(subset.not_ready_addresses.iter().flatten().map(|address| (address, false)));
    let of_family =
        |address: &EndpointAddress| address.ip.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4() == is_ipv4);
    let endpoint = |(address, ready): (&EndpointAddress, bool)| Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(ready), terminating: Some(false) }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        zone: pods.zone(address.node_name.as_deref()),
        ..Default::default()
    };
    all.filter(|(address, _)| of_family(address)).map(endpoint).collect()
}

fn made(
    key: &ObjectKey,
    service: &Service,
    is_ipv4: bool,
    suffix: &str,
    by: &str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let family = if is_ipv4 { "ipv4" } else { "ipv6" };
    // The controllers copy the labels of the Service.
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), key.name.to_string());
    labels.insert(MANAGED_BY.to_owned(), by.to_owned());
    if service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    EndpointSlice {
        metadata: ObjectMeta {
            // No object of a file can be named so: names hold no underscore.
            name: Some(format!("{}_{family}_{suffix}", key.name)),
            namespace: Some(key.namespace.to_string()),
            labels: Some(labels),
            ..Default::default()
        },
        address_type: if is_ipv4 { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}
