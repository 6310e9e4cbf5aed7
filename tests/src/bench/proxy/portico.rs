//! Portico's manifests: one node, and per scenario a NodePort Service with the backends as its endpoints.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Proxy, Start, write};
use crate::bench::scenario::{BACKENDS, Scenario};

/// Writes the manifests to a directory of their own, because Portico reads and watches the whole of it.
pub fn configure(dir: &Path) -> Result<Start> {
    let manifests = dir.join("manifests");
    fs::create_dir_all(&manifests).with_context(|| format!("create {}", manifests.display()))?;
    for (name, object) in objects() {
        write(&manifests, &format!("{name}.json"), &object.to_string())?;
    }
    let manifests = manifests.display().to_string();
    let args = [
        "standalone",
        "--manifests",
        &manifests,
        "--workers",
        "1",
        "--dns-listen",
        "off",
        "--access-log",
        "off",
        "--log-level",
        "warn",
    ];
    Ok(Start { args: args.map(str::to_owned).into(), version: &["--version"] })
}

fn objects() -> Vec<(String, Value)> {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "bench" },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": Proxy::Portico.ip() }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    let mut objects = vec![("node".to_owned(), node)];
    for scenario in Scenario::ALL {
        let name = format!("{scenario:?}").to_lowercase();
        objects.push((format!("{name}-service"), service(&name, scenario)));
        objects.push((format!("{name}-endpoints"), endpoints(&name, scenario)));
    }
    objects
}

/// A Service without a selector: its endpoints are given beside it.
fn service(name: &str, scenario: Scenario) -> Value {
    let mut port = json!({
        "name": "bench",
        "protocol": protocol(scenario),
        "port": scenario.backend_port(),
        "nodePort": scenario.proxy_port(),
    });
    match scenario {
        Scenario::Http => port["appProtocol"] = "http".into(),
        Scenario::Grpc => port["appProtocol"] = "kubernetes.io/h2c".into(),
        Scenario::Tcp | Scenario::Download | Scenario::Udp => {}
    }
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": { "portico.dev/balancing": "client-hash" },
        },
        "spec": { "type": "NodePort", "ports": [port] },
    })
}

fn endpoints(name: &str, scenario: Scenario) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-1"),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "bench", "protocol": protocol(scenario), "port": scenario.backend_port() }],
        "endpoints": BACKENDS.map(|address| json!({ "addresses": [address], "conditions": { "ready": true } })),
    })
}

fn protocol(scenario: Scenario) -> &'static str {
    if scenario == Scenario::Udp { "UDP" } else { "TCP" }
}
