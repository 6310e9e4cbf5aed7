//! Whole lists: what a node serves, from which endpoints, and what it says of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use agent::{
    balance::eligible,
    health::service,
    table::{Candidates, Family, Origin, Table, Target},
};
use api::resource::service::{Service, ServicePort, ServiceType};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    node::{Node, time},
    traffic::transport,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Sets {
    service: String,
    #[serde(default)]
    port: String,
    protocol: String,
    cluster: Option<Value>,
    local: Option<Value>,
    reachable: Option<Vec<String>>,
    any_in_cluster: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoLocal {
    internal: usize,
    external: usize,
}

pub(super) fn family(name: &str) -> Result<Family, String> {
    Family::ALL.into_iter().find(|family| family.label() == name).ok_or_else(|| format!("there is no family {name}"))
}

/// Lists are sets, also within rows.
pub(super) fn same(what: &str, expected: &[Value], found: &[Value]) -> Result<(), String> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Array(items) => {
                let mut items: Vec<Value> = items.iter().map(sorted).collect();
                items.sort_by_key(Value::to_string);
                Value::Array(items)
            }
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), sorted(value))).collect(),
            other => other.clone(),
        }
    }
    let lines = |rows: &[Value]| rows.iter().map(|row| sorted(row).to_string()).collect::<Vec<_>>();
    same_set(what, &lines(expected), &lines(found))
}

pub(super) fn same_set(what: &str, expected: &[String], found: &[String]) -> Result<(), String> {
    let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    if set(found).len() != found.len() {
        return Err(format!("{what}: something stands twice: {found:?}"));
    }
    let (expected, found) = (set(expected), set(found));
    if expected == found {
        return Ok(());
    }
    let missing: Vec<_> = expected.difference(&found).collect();
    let unexpected: Vec<_> = found.difference(&expected).collect();
    Err(format!("{what}: missing {missing:?}, unexpected {unexpected:?}"))
}

/// The targets of a service port, one for each family it is served in.
fn targets<'a>(table: &'a Table, service: &'a Service, port: &'a ServicePort) -> impl Iterator<Item = &'a Arc<Target>> {
    let addresses = service.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port.port.get()));
    addresses.filter_map(|address| table.frontend(address, port.transport)?.target.as_ref())
}

/// Checks the sets that policies choose from.
pub(super) fn endpoints(node: &Node, table: &Table, expected: &Sets) -> Result<(), String> {
    let failed = |reason: String| format!("endpoints of {} port {:?}: {reason}", expected.service, expected.port);
    let transport = transport(&expected.protocol)?;
    let service = node.resources().services().find(|service| service.name.to_string() == expected.service);
    let service = service.ok_or_else(|| failed("there is no such Service".to_owned()))?;
    let port = service.ports.iter().find(|port| port.name == expected.port && port.transport == transport);
    let port = port.ok_or_else(|| failed("there is no such port".to_owned()))?;
    let targets: Vec<&Arc<Target>> = targets(table, service, port).collect();
    let list = |sets: Vec<&Candidates>| {
        let addresses = sets.iter().flat_map(|set| &set.backends).map(|backend| backend.address.to_string());
        addresses.collect::<BTreeSet<_>>().into_iter().collect::<Vec<String>>()
    };
    let check = |name: &str, expected: &Value, used: bool, found: Vec<String>| match (expected, used) {
        (Value::Null, false) => Ok(()),
        (Value::Null, true) => Err(failed(format!("{name} is used: {found:?}"))),
        (_, false) => Err(failed(format!("{name} is not used"))),
        (expected, true) => {
            let expected: Vec<String> = serde_json::from_value(expected.clone()).map_err(|error| error.to_string())?;
            same_set(name, &expected, &found).map_err(failed)
        }
    };
    let (cluster, local) = (|target: &&Arc<Target>| target.uses_cluster(), |target: &&Arc<Target>| target.uses_local());
    check(
        "cluster",
        expected.cluster.as_ref().unwrap_or(&Value::Null),
        targets.iter().any(cluster),
        list(targets.iter().map(|target| &target.cluster).collect()),
    )?;
    check(
        "local",
        expected.local.as_ref().unwrap_or(&Value::Null),
        targets.iter().any(local),
        list(targets.iter().map(|target| &target.local).collect()),
    )?;
    if let Some(reachable) = &expected.reachable {
        let found = list(targets.iter().flat_map(|target| [&target.cluster, &target.local]).collect());
        same_set("reachable", reachable, &found).map_err(failed)?;
    }
    let any = targets.iter().any(|target| target.any_endpoint);
    match expected.any_in_cluster {
        Some(expected) if expected != any => Err(failed(format!("anyInCluster is {any}"))),
        _ => Ok(()),
    }
}

/// What the node serves in a family. Every address of a row is looked up in the table, and the table must hold no more.
pub(super) fn frontends(node: &Node, table: &Table, family: Family) -> Result<Vec<Value>, String> {
    let (mut rows, mut claimed) = (Vec::new(), BTreeSet::new());
    for service in node.resources().services() {
        let proxied = !matches!(service.kind, ServiceType::Headless | ServiceType::ExternalName);
        for port in service.ports.iter().filter(|_| proxied) {
            let Some(target) = targets(table, service, port).find(|target| target.family == family) else { continue };
            let mut served = |addresses: &[IpAddr], number: u16| -> Vec<String> {
                let ours = addresses.iter().map(|address| SocketAddr::new(*address, number)).filter(|address| {
                    let frontend = table.frontend(*address, port.transport);
                    let found = frontend.and_then(|frontend| frontend.target.as_ref());
                    found.is_some_and(|found| Arc::ptr_eq(found, target))
                });
                let ours: Vec<SocketAddr> = ours.collect();
                claimed.extend(ours.iter().map(|address| (*address, port.transport)));
                ours.iter().map(|address| address.ip().to_string()).collect()
            };
            let number = port.port.get();
            let cluster_ips = served(&service.cluster_ips, number);
            let external_ips = served(&service.external_ips, number);
            let load_balancer_ips = served(&service.load_balancer_ips, number);
            let node_port = port.node_port.filter(|port| !served(&table.node_port_addresses, port.get()).is_empty());
            let health = table.health_checks.iter().find(|check| check.service == service.name);
            let ranges: Vec<String> = target.source_ranges.iter().map(ToString::to_string).collect();
            let list = |items: Vec<String>| (!items.is_empty()).then(|| json!(items));
            let mut row = Map::from_iter([
                ("service".to_owned(), json!(service.name.to_string())),
                ("port".to_owned(), json!(&*target.port_name)),
                ("protocol".to_owned(), json!(target.transport.as_str())),
                ("clusterIP".to_owned(), json!(cluster_ips.first())),
                ("servicePort".to_owned(), json!(target.port)),
            ]);
            let optional = [
                ("nodePort", node_port.map(|port| json!(port))),
                ("externalIPs", list(external_ips)),
                ("loadBalancerIPs", list(load_balancer_ips)),
                ("sourceRanges", list(ranges)),
                ("healthCheckNodePort", health.map(|check| json!(check.port))),
            ];
            row.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
            if !node.is_implied(&service.name.to_string()) {
                rows.push(Value::Object(row));
            }
        }
    }
    let of_family = table.frontends.keys().filter(|destination| Family::of(destination.address.ip()) == family);
    match of_family.clone().find(|destination| !claimed.contains(&(destination.address, destination.transport))) {
        Some(stray) => Err(format!("{} {} belongs to no Service", stray.transport.as_str(), stray.address)),
        None => Ok(rows),
    }
}

/// The endpoints by port name and protocol, as the agent holds them.
pub(super) fn endpoint_table(node: &Node, table: &Table) -> Vec<Value> {
    let mut ports: BTreeMap<(String, String, &str), Vec<Value>> = BTreeMap::new();
    for service in node.resources().services() {
        for endpoint in node.resources().endpoints(&service.name) {
            for port in &endpoint.ports {
                let key = (service.name.to_string(), port.name.clone(), port.transport.as_str());
                ports.entry(key).or_default().push(json!({
                    "endpoint": SocketAddr::new(endpoint.address, port.port.get()).to_string(),
                    "local": eligible::is_local(endpoint, &table.location),
                    "ready": endpoint.ready,
                    "serving": endpoint.serving,
                    "terminating": endpoint.terminating,
                }));
            }
        }
    }
    let row = |((service, port, protocol), endpoints)| json!({"service": service, "port": port, "protocol": protocol, "endpoints": Value::Array(endpoints)});
    ports.into_iter().map(row).collect()
}

/// Every health-check node port and its answer.
pub(super) fn health_checks(table: &Table, proxy_healthy: bool) -> Result<Vec<Value>, String> {
    let row = |check| {
        let answer = service::answer(check, Family::Ipv4, proxy_healthy);
        let body: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        if body["localEndpoints"] != json!(answer.weight) {
            return Err(format!("the header says {}, the body {body}", answer.weight));
        }
        let name = format!(
            "{}/{}",
            body["service"]["namespace"].as_str().unwrap_or_default(),
            body["service"]["name"].as_str().unwrap_or_default()
        );
        Ok(json!({
            "service": name,
            "port": check.port,
            "status": answer.status,
            "localEndpoints": body["localEndpoints"],
            "serviceProxyHealthy": body["serviceProxyHealthy"],
        }))
    };
    table.health_checks.iter().map(row).collect()
}

/// Checks how many service ports have endpoints, but none here.
pub(super) fn no_local_endpoints(table: &Table, expected: &NoLocal) -> Result<(), String> {
    let sum = |from: Origin| -> usize {
        Family::ALL.into_iter().map(|family| table.without_local_endpoints(family, from)).sum()
    };
    let (internal, external) = (sum(Origin::Internal), sum(Origin::External));
    if (internal, external) == (expected.internal, expected.external) {
        return Ok(());
    }
    Err(format!("noLocalEndpoints: internal {internal}, external {external}"))
}

/// Checks which trigger times are observed once everything is programmed.
pub(super) fn trigger_times(node: &mut Node, expected: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
    let sorted = |mut times: Vec<SystemTime>| {
        times.sort();
        times
    };
    let expected: BTreeMap<String, Vec<SystemTime>> = expected
        .iter()
        .filter(|(_, times)| !times.is_empty())
        .map(|(service, times)| {
            Ok((service.clone(), sorted(times.iter().map(|text| time(text)).collect::<Result<_, String>>()?)))
        })
        .collect::<Result<_, String>>()?;
    let found: BTreeMap<String, Vec<SystemTime>> =
        node.take_triggers().into_iter().map(|(service, times)| (service, sorted(times))).collect();
    if expected == found { Ok(()) } else { Err(format!("triggerTimes: {found:?} instead of {expected:?}")) }
}
