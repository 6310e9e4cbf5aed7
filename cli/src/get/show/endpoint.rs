//! The endpoints of one Service.

use super::super::age;
use super::service::transport;
use super::{Key, join, metadata, or_none};
use api::proto::discovery::{Endpoint, EndpointPort};
use api::proto::inspect::{Object, object};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

/// How many addresses with port a cell holds before it says how many more there are; kubectl's number.
const SHOWN: usize = 3;

/// The cells and the document of the endpoints of one Service; `None` if there are none.
///
/// The document has the fields of an EndpointSlice, but one for all families, and the ports stand with each endpoint:
/// they may differ while a Deployment rolls out.
pub fn show<'a>(
    key: &Key,
    objects: impl Iterator<Item = &'a Object> + Clone,
    now: SystemTime,
) -> Option<(Vec<String>, Value)> {
    let mut endpoints: Vec<&Endpoint> = objects
        .clone()
        .filter_map(|object| match &object.kind {
            Some(object::Kind::Endpoint(endpoint)) => Some(endpoint),
            _ => None,
        })
        .collect();
    if endpoints.is_empty() {
        return None;
    }
    // By number, so that .9 stands before .10; what is not an address comes first and as it is.
    endpoints.sort_by_cached_key(|endpoint| (endpoint.address.parse::<IpAddr>().ok(), endpoint.address.clone()));
    let oldest =
        objects.filter_map(|object| object.create_time.as_ref()).min_by_key(|created| (created.seconds, created.nanos));
    let count =
        |wanted: fn(&Endpoint) -> bool| endpoints.iter().filter(|endpoint| wanted(endpoint)).count().to_string();
    let nodes: BTreeSet<&str> =
        endpoints.iter().map(|endpoint| endpoint.node.as_str()).filter(|node| !node.is_empty()).collect();
    let cells = vec![
        addresses(&endpoints),
        age::since(oldest, now),
        count(|endpoint| !endpoint.ready),
        count(|endpoint| endpoint.terminating),
        or_none(&nodes.into_iter().collect::<Vec<_>>().join(",")),
    ];
    let document = json!({
        "kind": "Endpoints",
        "metadata": metadata(key, oldest),
        "endpoints": endpoints.iter().map(|endpoint| document(endpoint)).collect::<Vec<_>>(),
    });
    Some((cells, document))
}

/// As kubectl: the ready ones with each port, the first three, and how many more.
fn addresses(endpoints: &[&Endpoint]) -> String {
    let ready = endpoints.iter().filter(|endpoint| endpoint.ready);
    let all: Vec<String> = ready
        .flat_map(|endpoint| {
            let socket = |port: &EndpointPort| socket(&endpoint.address, port.port);
            if endpoint.ports.is_empty() {
                vec![or_none(&endpoint.address)]
            } else {
                endpoint.ports.iter().map(socket).collect()
            }
        })
        .collect();
    match all.len().saturating_sub(SHOWN) {
        0 => join(&all),
        more => format!("{} + {more} more...", all[..SHOWN].join(",")),
    }
}

fn socket(address: &str, port: u32) -> String {
    match (address.parse::<IpAddr>(), u16::try_from(port)) {
        (Ok(address), Ok(port)) => SocketAddr::new(address, port).to_string(),
        _ => or_none(&format!("{address}:{port}")),
    }
}

fn document(endpoint: &Endpoint) -> Value {
    let named = |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    let pod = (!endpoint.pod.is_empty())
        .then(|| json!({"kind": "Pod", "name": endpoint.pod, "namespace": endpoint.namespace}));
    let port =
        |port: &EndpointPort| json!({"name": port.name, "protocol": transport(port.transport()), "port": port.port});
    json!({
        "addresses": [endpoint.address],
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
        "hints": {"forZones": named(&endpoint.hint_zones), "forNodes": named(&endpoint.hint_nodes)},
        "hostname": endpoint.hostname,
        "nodeName": endpoint.node,
        "ports": endpoint.ports.iter().map(port).collect::<Vec<_>>(),
        "targetRef": pod,
        "weight": endpoint.weight,
        "zone": endpoint.zone,
    })
}
