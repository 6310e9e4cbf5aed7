//! The defaults that the API server fills in (S2.10), and what it would refuse.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{ClientIPConfig, Service, ServicePort, SessionAffinityConfig},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::problem::Problem;

/// Completes a Service but for its addresses and node ports. Ports that the API server would refuse are reported and
/// left out; the rest is served.
pub fn service(service: &mut Service, service_cidrs: &[IpNet], report: &mut dyn FnMut(Problem)) {
    service.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let spec = service.spec.get_or_insert_with(Default::default);
    let kind = spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind.as_str()) {
        let message = format!(
            "spec.type {kind:?} is none of ClusterIP, NodePort, LoadBalancer, ExternalName; served as ClusterIP"
        );
        report(Problem::new("INVALID_TYPE", message));
        *kind = "ClusterIP".to_owned();
    }
    let is_external_name = kind == "ExternalName";
    let is_load_balancer = kind == "LoadBalancer";
    if is_external_name && spec.external_name.as_deref().unwrap_or_default().is_empty() {
        report(Problem::new("INVALID_EXTERNAL_NAME", "spec.externalName is empty; give a DNS name"));
    }
    spec.ports = spec.ports.take().map(|ports| valid_ports(ports, report));
    let affinity = spec.session_affinity.get_or_insert_with(|| "None".to_owned());
    if affinity == "ClientIP" {
        let config = spec.session_affinity_config.get_or_insert_with(SessionAffinityConfig::default);
        let client_ip = config.client_ip.get_or_insert_with(ClientIPConfig::default);
        let timeout = client_ip.timeout_seconds.get_or_insert(10_800);
        if !(1..=86_400).contains(timeout) {
            let message = format!("sessionAffinityConfig.clientIP.timeoutSeconds {timeout} is not within 1 and 86400");
            report(Problem::new("INVALID_AFFINITY", message));
            *timeout = (*timeout).clamp(1, 86_400);
        }
    } else if affinity != "None" {
        report(Problem::new("INVALID_AFFINITY", format!("sessionAffinity {affinity:?} is neither None nor ClientIP")));
        *affinity = "None".to_owned();
    }
    for (field, policy) in [
        ("internalTrafficPolicy", &mut spec.internal_traffic_policy),
        ("externalTrafficPolicy", &mut spec.external_traffic_policy),
    ] {
        let policy = policy.get_or_insert_with(|| "Cluster".to_owned());
        if policy != "Cluster" && policy != "Local" {
            report(Problem::new("INVALID_TRAFFIC_POLICY", format!("{field} {policy:?} is neither Cluster nor Local")));
            *policy = "Cluster".to_owned();
        }
    }
    if is_load_balancer {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    if !is_external_name {
        spec.ip_family_policy.get_or_insert_with(|| "SingleStack".to_owned());
        if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
            spec.ip_families = Some(families(spec, service_cidrs));
        }
    }
}

fn valid_ports(ports: Vec<ServicePort>, report: &mut dyn FnMut(Problem)) -> Vec<ServicePort> {
    let several = ports.len() > 1;
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut valid = Vec::with_capacity(ports.len());
    for (index, mut port) in ports.into_iter().enumerate() {
        let protocol = port.protocol.get_or_insert_with(|| "TCP".to_owned()).clone();
        let name = port.name.clone().unwrap_or_default();
        let mut refuse = |field: &str, what: String| {
            let message = format!("spec.ports[{index}].{field} {what}; the port is not served");
            report(Problem::new("INVALID_PORT", message));
        };
        if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str()) {
            refuse("protocol", format!("{protocol:?} is none of TCP, UDP, SCTP"));
        } else if !(1..=65_535).contains(&port.port) {
            refuse("port", format!("{} is not within 1 and 65535", port.port));
        } else if several && name.is_empty() {
            refuse("name", "is missing; with several ports each needs a name".to_owned());
        } else if !names.insert(name.clone()) {
            refuse("name", format!("{name:?} was used before"));
        } else if !numbers.insert((port.port, protocol.clone())) {
            refuse("port", format!("{} of {protocol} was used before", port.port));
        } else {
            let number = port.port;
            port.target_port.get_or_insert(IntOrString::Int(number));
            valid.push(port);
        }
    }
    valid
}

/// The families of a Service that does not name them: those of its addresses, else those that the ranges offer.
fn families(spec: &k8s_openapi::api::core::v1::ServiceSpec, service_cidrs: &[IpNet]) -> Vec<String> {
    let name = |is_ipv4: bool| if is_ipv4 { "IPv4".to_owned() } else { "IPv6".to_owned() };
    let mut families: Vec<String> = Vec::new();
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    for address in addresses.filter_map(|address| address.parse::<std::net::IpAddr>().ok()) {
        let family = name(address.is_ipv4());
        if !families.contains(&family) {
            families.push(family);
        }
    }
    let single = spec.ip_family_policy.as_deref() == Some("SingleStack");
    let offered = if service_cidrs.is_empty() {
        vec![name(true)]
    } else {
        service_cidrs.iter().map(|network| name(network.addr().is_ipv4())).collect()
    };
    for family in offered {
        if families.is_empty() || (!single && !families.contains(&family)) {
            families.push(family);
        }
    }
    families
}

/// Completes a hand-written EndpointSlice.
pub fn slice(mut slice: Arc<EndpointSlice>) -> Arc<EndpointSlice> {
    let unnamed = |port: &k8s_openapi::api::discovery::v1::EndpointPort| port.name.is_none() || port.protocol.is_none();
    if slice.ports.iter().flatten().any(unnamed) {
        for port in Arc::make_mut(&mut slice).ports.iter_mut().flatten() {
            port.name.get_or_insert_with(String::new);
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }
    slice
}
