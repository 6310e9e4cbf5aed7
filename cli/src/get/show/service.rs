//! Services.

use super::super::age;
use super::{Key, NONE, join, metadata, or_none, some};
use api::proto::discovery::{
    AppProtocol, Balancing, BalancingPolicy, ClientAddress, Service, ServicePort, ServiceType, TrafficPolicy, Transport,
};
use api::proto::inspect::Object;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// The cells and the document of a Service.
pub fn show(key: &Key, object: &Object, service: &Service, now: SystemTime) -> (Vec<String>, Value) {
    let cells = vec![
        type_name(service.r#type()).into(),
        cluster_ip(service),
        external_ip(service),
        ports(&service.ports),
        age::since(object.create_time.as_ref(), now),
        protocols(&service.ports),
        policy(service.external_traffic_policy()).unwrap_or(NONE).into(),
        policy(service.internal_traffic_policy()).unwrap_or(NONE).into(),
        match service.affinity_seconds {
            0 => "None".into(),
            seconds => format!("ClientIP/{}", age::human(Duration::from_secs(seconds.into()))),
        },
        service.balancing.as_ref().and_then(balancing).map_or_else(|| NONE.into(), |text| or_none(&text)),
    ];
    (cells, document(key, object, service))
}

fn document(key: &Key, object: &Object, service: &Service) -> Value {
    let mut metadata = metadata(key, object.create_time.as_ref());
    metadata["annotations"] = annotations(service);
    let cluster_ips = match service.r#type() {
        ServiceType::Headless => vec!["None".to_owned()],
        _ => service.cluster_ips.clone(),
    };
    let affinity = (service.r#type() != ServiceType::ExternalName).then_some(if service.affinity_seconds > 0 {
        "ClientIP"
    } else {
        "None"
    });
    let timeout = some(service.affinity_seconds).map(|seconds| json!({"clientIP": {"timeoutSeconds": seconds}}));
    let ingress: Vec<Value> = service.load_balancer_ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": type_name(service.r#type()),
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "externalIPs": service.external_ips,
            "externalName": service.external_name,
            "externalTrafficPolicy": policy(service.external_traffic_policy()),
            "internalTrafficPolicy": policy(service.internal_traffic_policy()),
            "healthCheckNodePort": some(service.health_check_node_port),
            "loadBalancerClass": service.load_balancer_class,
            "loadBalancerSourceRanges": service.source_ranges,
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
            "sessionAffinity": affinity,
            "sessionAffinityConfig": timeout,
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// What Kubernetes has no field for is written as the annotations that ask for it.
fn annotations(service: &Service) -> Value {
    let client_address = match service.client_address() {
        ClientAddress::Unspecified => None,
        ClientAddress::Keep => Some("keep"),
        ClientAddress::Pool => Some("pool"),
    };
    json!({
        "portico.dev/balancing": service.balancing.as_ref().and_then(balancing),
        "portico.dev/client-address": client_address,
        "portico.dev/local-overflow": service.local_overflow.then_some("true"),
        "portico.dev/tls-secret": service.tls_secret,
    })
}

fn port(port: &ServicePort) -> Value {
    json!({
        "name": port.name,
        "protocol": transport(port.transport()),
        "port": port.port,
        "nodePort": some(port.node_port),
        "appProtocol": match port.app_protocol() {
            AppProtocol::Unspecified => None,
            AppProtocol::Http if port.terminate_tls => Some("https"),
            AppProtocol::Http => Some("http"),
            AppProtocol::Http2 => Some("kubernetes.io/h2c"),
            AppProtocol::Grpc => Some("grpc"),
            AppProtocol::Tls => Some("https"),
        },
    })
}

/// The name in `spec.type`. A headless Service is of type ClusterIP and has none.
fn type_name(kind: ServiceType) -> &'static str {
    match kind {
        ServiceType::Unspecified => "<unknown>",
        ServiceType::ClusterIp | ServiceType::Headless => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

fn cluster_ip(service: &Service) -> String {
    match service.r#type() {
        ServiceType::Headless => "None".into(),
        _ => service.cluster_ips.first().map_or_else(|| NONE.into(), Clone::clone),
    }
}

/// As kubectl: the target of an ExternalName, what a load balancer was given before `externalIPs`, and `<pending>` for
/// one that waits.
fn external_ip(service: &Service) -> String {
    match service.r#type() {
        ServiceType::ExternalName => or_none(&service.external_name),
        ServiceType::LoadBalancer => {
            let all = [&service.load_balancer_ips[..], &service.external_ips[..]].concat();
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        _ => join(&service.external_ips),
    }
}

fn ports(ports: &[ServicePort]) -> String {
    let text = |port: &ServicePort| {
        let transport = transport(port.transport());
        match port.node_port {
            0 => format!("{}/{transport}", port.port),
            node_port => format!("{}:{node_port}/{transport}", port.port),
        }
    };
    join(&ports.iter().map(text).collect::<Vec<_>>())
}

/// What each port speaks, in the order of the ports; `+tls` where TLS is terminated in front of it.
fn protocols(ports: &[ServicePort]) -> String {
    let text = |port: &ServicePort| {
        let protocol = match port.app_protocol() {
            AppProtocol::Unspecified => transport(port.transport()).to_lowercase(),
            AppProtocol::Http => "http".into(),
            AppProtocol::Http2 => "http2".into(),
            AppProtocol::Grpc => "grpc".into(),
            AppProtocol::Tls => "tls".into(),
        };
        if port.terminate_tls { protocol + "+tls" } else { protocol }
    };
    join(&ports.iter().map(text).collect::<Vec<_>>())
}

/// The name in `protocol`.
pub fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Unspecified => "<unknown>",
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
        Transport::Sctp => "SCTP",
    }
}

fn policy(policy: TrafficPolicy) -> Option<&'static str> {
    match policy {
        TrafficPolicy::Unspecified => None,
        TrafficPolicy::Cluster => Some("Cluster"),
        TrafficPolicy::Local => Some("Local"),
    }
}

/// The value of the annotation that asks for it; `None` for the default.
fn balancing(balancing: &Balancing) -> Option<String> {
    let name = match balancing.policy() {
        BalancingPolicy::Unspecified => return None,
        BalancingPolicy::LeastRequest => "least-request",
        BalancingPolicy::Random => "random",
        BalancingPolicy::RoundRobin => "round-robin",
        BalancingPolicy::ClientHash => "client-hash",
        BalancingPolicy::HeaderHash => "header-hash",
        BalancingPolicy::CookieHash => "cookie-hash",
    };
    Some(if balancing.key.is_empty() { name.into() } else { format!("{name}:{}", balancing.key) })
}
