//! One Service object to one Service resource (S2).

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16, time::Duration};

use api::resource::{
    name::NamespacedName,
    service::{AppProtocol, Service, ServicePort, ServiceType, TrafficPolicy, Transport},
};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self, ServiceSpec};

use super::annotation::{self, Annotations, Protocol};
use crate::problem::Problem;

/// What of Services is a matter of configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Networks of which `spec.externalIPs` may be (S10.2). None by default: any user of a namespace could otherwise
    /// claim any address.
    pub external_ips: Vec<IpNet>,
}

/// The resource of a Service. What cannot be served is reported, and the rest is served.
pub fn derive(
    name: &NamespacedName,
    object: &v1::Service,
    policy: &Policy,
    report: &mut dyn FnMut(Problem),
) -> Service {
    let none = ServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&none);
    let annotations = annotation::of_service(object.metadata.annotations.as_ref(), report);
    let kind = kind(object);
    let proxied = !matches!(kind, ServiceType::Headless | ServiceType::ExternalName);
    let cluster_ips = if proxied { cluster_ips(spec) } else { vec![] };
    // Without a ClusterIP a Service is not served at all, neither at nodes (S2.1).
    let proxied = proxied && !cluster_ips.is_empty();
    let external_ips = if proxied { external_ips(spec, policy, report) } else { vec![] };
    let load_balancer_ips = if proxied && kind == ServiceType::LoadBalancer { ingress(object, report) } else { vec![] };
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let external_local = is_local(&spec.external_traffic_policy)
        && match kind {
            ServiceType::NodePort | ServiceType::LoadBalancer => true,
            ServiceType::ClusterIp => !external_ips.is_empty(),
            ServiceType::ExternalName | ServiceType::Headless => false,
        };
    let to_policy = |local: bool| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let health_check = spec.health_check_node_port.and_then(|port| number(port.into()));
    let mut ports = ports(spec, &annotations, report);
    if !proxied || kind == ServiceType::ClusterIp {
        ports.iter_mut().for_each(|port| port.node_port = None);
    }
    if annotations.tls_secret.is_some() && !ports.iter().any(|port| port.terminate_tls) {
        let message = "portico.dev/tls-secret terminates no TLS: set appProtocol of a TCP port to https, tls or kubernetes.io/wss";
        report(Problem::new("UNUSED_TLS_SECRET", message));
    }
    Service {
        kind,
        cluster_ips,
        external_ips,
        source_ranges: if proxied { source_ranges(spec, report) } else { vec![] },
        load_balancer_ips,
        ports,
        internal_policy: to_policy(is_local(&spec.internal_traffic_policy)),
        external_policy: to_policy(external_local),
        affinity: if kind == ServiceType::Headless { None } else { affinity(spec) },
        balancing: annotations.balancing,
        tls_secret: annotations.tls_secret.map(|secret| NamespacedName::new(name.namespace.clone(), secret)),
        health_check_node_port: health_check.filter(|_| kind == ServiceType::LoadBalancer && external_local),
        external_name: match kind {
            ServiceType::ExternalName => spec.external_name.clone().unwrap_or_default(),
            _ => String::new(),
        },
        client_address: annotations.client_address,
        local_overflow: annotations.local_overflow,
        load_balancer_class: spec.load_balancer_class.clone().unwrap_or_default(),
        name: name.clone(),
    }
}

/// What DNS says of a Service that another proxy serves (S19): its ClusterIPs, ports and external name.
pub fn derive_names(name: &NamespacedName, object: &v1::Service) -> Service {
    // Its annotations and addresses are for its own proxy to judge, so there is nothing to report.
    let mut service = derive(name, object, &Policy::default(), &mut |_| {});
    for port in &mut service.ports {
        *port = ServicePort { node_port: None, protocol: AppProtocol::Opaque, terminate_tls: false, ..port.clone() };
    }
    // What DNS does not say is left out, so that its changes are none here.
    Service {
        cluster_ips: service.cluster_ips,
        external_ips: service.external_ips,
        ports: service.ports,
        external_name: service.external_name,
        ..Service::new(service.name, service.kind)
    }
}

/// Name of the Secret that terminates TLS for a Service, if it names one.
pub fn tls_secret(name: &NamespacedName, object: &v1::Service) -> Option<NamespacedName> {
    let annotations = annotation::of_service(object.metadata.annotations.as_ref(), &mut |_| {});
    annotations.tls_secret.map(|secret| NamespacedName::new(name.namespace.clone(), secret))
}

/// The type of a Service, with headless ones told apart.
pub fn kind(object: &v1::Service) -> ServiceType {
    let Some(spec) = &object.spec else { return ServiceType::ClusterIp };
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceType::ExternalName;
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return ServiceType::Headless;
    }
    match spec.type_.as_deref() {
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        _ => ServiceType::ClusterIp,
    }
}

/// The ClusterIP of each family: those listed belong to the families listed, place by place; without families it is the
/// one ClusterIP, of whichever family (S2.2).
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let parse = |address: &String| address.parse::<IpAddr>().ok();
    let families: Vec<&String> = spec.ip_families.iter().flatten().collect();
    let listed: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
    if families.is_empty() || listed.is_empty() {
        let of_family = |address: &IpAddr| families.is_empty() || is_of(families[0], *address);
        return spec
            .cluster_ip
            .iter()
            .chain(listed.first().copied())
            .find_map(parse)
            .filter(of_family)
            .into_iter()
            .collect();
    }
    let pairs = families.into_iter().zip(listed);
    pairs.filter_map(|(family, address)| parse(address).filter(|address| is_of(family, *address))).collect()
}

fn is_of(family: &str, address: IpAddr) -> bool {
    match family {
        "IPv4" => address.is_ipv4(),
        "IPv6" => address.is_ipv6(),
        _ => false,
    }
}

fn external_ips(spec: &ServiceSpec, policy: &Policy, report: &mut dyn FnMut(Problem)) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in spec.external_ips.iter().flatten() {
        match text.parse::<IpAddr>() {
            Ok(address) if policy.external_ips.iter().any(|network| network.contains(&address)) => {
                addresses.push(address)
            }
            Ok(address) => report(Problem::new(
                "EXTERNAL_IP_NOT_ALLOWED",
                format!("spec.externalIPs: {address} is not served; allow its network with --external-ips"),
            )),
            Err(_) => report(invalid_address("spec.externalIPs", text)),
        }
    }
    addresses
}

/// The addresses that nodes answer themselves: those with an `ip`, unless the load balancer proxies (S2.5).
fn ingress(object: &v1::Service, report: &mut dyn FnMut(Problem)) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut addresses = Vec::new();
    for ingress in status.iter().flat_map(|status| status.ingress.iter().flatten()) {
        let Some(text) = ingress.ip.as_deref().filter(|_| matches!(ingress.ip_mode.as_deref(), None | Some("VIP")))
        else {
            continue;
        };
        match text.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => report(invalid_address("status.loadBalancer.ingress", text)),
        }
    }
    addresses
}

fn source_ranges(spec: &ServiceSpec, report: &mut dyn FnMut(Problem)) -> Vec<IpNet> {
    let mut ranges = BTreeSet::new();
    for text in spec.load_balancer_source_ranges.iter().flatten() {
        // White space around a range is common, and allowed (S2.4).
        match text.trim().parse::<IpNet>() {
            Ok(range) => {
                ranges.insert(range.trunc());
            }
            Err(_) => report(Problem::new(
                "INVALID_SOURCE_RANGE",
                format!("spec.loadBalancerSourceRanges: {text:?} is not a network such as 10.0.0.0/8"),
            )),
        }
    }
    ranges.into_iter().collect()
}

fn invalid_address(field: &str, text: &str) -> Problem {
    Problem::new("INVALID_ADDRESS", format!("{field}: {text:?} is not an IP address"))
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(10_800);
    Some(Duration::from_secs(seconds.clamp(1, 86_400) as u64))
}

fn ports(spec: &ServiceSpec, annotations: &Annotations, report: &mut dyn FnMut(Problem)) -> Vec<ServicePort> {
    let mut keys = BTreeSet::new();
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let mut refuse =
            |reason, what: &str| report(Problem::new(reason, format!("spec.ports[{index}] {what}; it is not served")));
        let transport = match port.protocol.as_deref() {
            None | Some("TCP") => Transport::Tcp,
            Some("UDP") => Transport::Udp,
            Some("SCTP") => {
                refuse("UNSUPPORTED_PROTOCOL", "speaks SCTP, which is not proxied");
                Transport::Sctp
            }
            Some(_) => {
                refuse("INVALID_PORT", "has a protocol that is none of TCP, UDP, SCTP");
                continue;
            }
        };
        let Some(number_) = number(port.port.into()) else {
            refuse("INVALID_PORT", "has a number that is not within 1 and 65535");
            continue;
        };
        let name = port.name.clone().unwrap_or_default();
        if !keys.insert((name.clone(), transport)) {
            refuse("INVALID_PORT", "has the name of an earlier port");
            continue;
        }
        let (protocol, terminate_tls) = match transport {
            Transport::Tcp => speaks(port.app_protocol.as_deref(), annotations),
            Transport::Udp | Transport::Sctp => (AppProtocol::Opaque, false),
        };
        let node_port = port.node_port.and_then(|port| number(port.into()));
        ports.push(ServicePort { name, transport, port: number_, node_port, protocol, terminate_tls });
    }
    ports
}

/// What a TCP port speaks, and whether TLS is terminated before that (S17.2).
fn speaks(app_protocol: Option<&str>, annotations: &Annotations) -> (AppProtocol, bool) {
    let inner = |otherwise: AppProtocol| match annotations.protocol {
        Some(Protocol::Http) => AppProtocol::Http,
        Some(Protocol::Http2) => AppProtocol::Http2,
        Some(Protocol::Grpc) => AppProtocol::Grpc,
        Some(Protocol::Tcp) => AppProtocol::Opaque,
        Some(Protocol::Tls) | None => otherwise,
    };
    let tls = |inside: AppProtocol| match &annotations.tls_secret {
        Some(_) => (inner(inside), true),
        None => (AppProtocol::Tls, false),
    };
    match app_protocol.map(str::to_ascii_lowercase).as_deref() {
        Some("http" | "kubernetes.io/ws") => (AppProtocol::Http, false),
        Some("kubernetes.io/h2c" | "http2") => (AppProtocol::Http2, false),
        Some("grpc") => (AppProtocol::Grpc, false),
        Some("https" | "kubernetes.io/wss") => tls(AppProtocol::Http),
        Some("tls") => tls(AppProtocol::Opaque),
        Some(_) => (AppProtocol::Opaque, false),
        None if annotations.protocol == Some(Protocol::Tls) => tls(AppProtocol::Opaque),
        None => (inner(AppProtocol::Opaque), false),
    }
}

fn number(port: i64) -> Option<NonZeroU16> {
    u16::try_from(port).ok().and_then(NonZeroU16::new)
}
