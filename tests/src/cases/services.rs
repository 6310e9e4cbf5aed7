//! What a node must do with given Services, EndpointSlices and Nodes: the way of a case through the code that runs in
//! production, from objects over resources and their bytes to the table of a node. README.md beside the cases says what
//! their fields mean.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{Document, Suite, Test};

mod affinity;
mod node;
mod proxy_health;
mod rows;
mod traffic;

use node::Node;

/// The suite.
pub const SUITE: Suite = Suite { name: "services", tests };

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    #[serde(rename = "name")]
    _name: IgnoredAny,
    #[serde(rename = "source")]
    _source: Option<IgnoredAny>,
    #[serde(rename = "derivation")]
    _derivation: Option<IgnoredAny>,
    #[serde(rename = "description")]
    _description: Option<IgnoredAny>,
    node: Option<Asked>,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    steps: Vec<Step>,
    #[serde(default)]
    expect: Expect,
    proxy_started: Option<String>,
    health_timeout_seconds: Option<u64>,
    #[serde(default)]
    health_steps: Vec<proxy_health::Step>,
}

/// The node that is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    name: String,
    zone: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Cluster {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(default, rename = "serviceCIDRs")]
    service_cidrs: Vec<String>,
    node_port_addresses: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Step {
    #[serde(default)]
    delete: Vec<Gone>,
    #[serde(default)]
    apply: Vec<Value>,
    #[serde(default)]
    expect: Expect,
    proxy_healthy: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gone {
    kind: String,
    #[serde(default)]
    namespace: String,
    name: String,
}

/// What must hold; only what is present is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Expect {
    endpoints: Option<Vec<rows::Sets>>,
    flows: Option<Vec<traffic::Flow>>,
    frontends: Option<BTreeMap<String, Vec<Value>>>,
    endpoint_table: Option<Vec<Value>>,
    health_check_node_ports: Option<Vec<Value>>,
    no_local_endpoints: Option<rows::NoLocal>,
    load_balancer_nodes: Option<Vec<Value>>,
    trigger_times: Option<BTreeMap<String, Vec<String>>>,
    connections: Option<Vec<affinity::Connection>>,
    established_udp_flows: Option<Vec<traffic::Established>>,
}

fn tests(documents: Vec<Document>) -> Result<Vec<Test>, String> {
    let test = |document: Document| {
        let case: Case = document.typed()?;
        Ok(Test { name: document.name, run: Box::new(move || run(&case)) })
    };
    documents.into_iter().map(test).collect()
}

fn run(case: &Case) -> Result<(), String> {
    let mut node = Node::new(case)?;
    node.apply(&case.objects)?;
    let mut proxy_healthy = true;
    for (index, step) in case.steps.iter().enumerate() {
        step.delete.iter().try_for_each(|gone| node.delete(gone))?;
        node.apply(&step.apply)?;
        proxy_healthy = step.proxy_healthy.unwrap_or(proxy_healthy);
        check(&mut node, &step.expect, proxy_healthy).map_err(|reason| format!("step {}: {reason}", index + 1))?;
    }
    check(&mut node, &case.expect, proxy_healthy)?;
    match case.health_timeout_seconds {
        Some(timeout) => proxy_health::run(&mut node, timeout, &case.health_steps),
        None if case.health_steps.is_empty() => Ok(()),
        None => Err("healthSteps without healthTimeoutSeconds".to_owned()),
    }
}

fn check(node: &mut Node, expect: &Expect, proxy_healthy: bool) -> Result<(), String> {
    let table = node.table();
    if let Some(sets) = &expect.endpoints {
        sets.iter().try_for_each(|sets| rows::endpoints(node, &table, sets))?;
    }
    if let Some(flows) = &expect.flows {
        flows.iter().try_for_each(|flow| traffic::flow(&table, flow))?;
    }
    for (family, expected) in expect.frontends.iter().flatten() {
        let found = rows::frontends(node, &table, rows::family(family)?)?;
        rows::same(&format!("frontends of {family}"), expected, &found)?;
    }
    if let Some(expected) = &expect.endpoint_table {
        rows::same("endpointTable", expected, &rows::endpoint_table(node, &table))?;
    }
    if let Some(expected) = &expect.health_check_node_ports {
        rows::same("healthCheckNodePorts", expected, &rows::health_checks(&table, proxy_healthy)?)?;
    }
    if let Some(expected) = &expect.no_local_endpoints {
        rows::no_local_endpoints(&table, expected)?;
    }
    if let Some(expected) = &expect.load_balancer_nodes {
        rows::same("loadBalancerNodes", expected, &node.load_balancer_nodes())?;
    }
    if let Some(flows) = &expect.established_udp_flows {
        flows.iter().try_for_each(|flow| traffic::established(&table, flow))?;
    }
    if let Some(expected) = &expect.trigger_times {
        rows::trigger_times(node, expected)?;
    }
    match &expect.connections {
        Some(connections) => affinity::run(node, connections),
        None => Ok(()),
    }
}
