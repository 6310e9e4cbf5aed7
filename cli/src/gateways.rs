//! Finds gateways for an agent: the ready endpoints of their Service, from the Kubernetes API. It works before any Service
//! and any name does, which an agent that brings these about must not depend on.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    path::Path,
};

use agent::config::access::GatewayService;
use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;

/// The port of the Service that agents connect to.
const PORT: &str = "discovery";

/// A client of the cluster, with the credentials of this file, or those of the Pod or the user.
///
/// # Errors
/// When there are none, or they cannot be used.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).context("--kubeconfig")?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.context("--kubeconfig")?
        }
        None => {
            let missing = "no cluster to look for --gateway-service in; give --kubeconfig, or run in a Pod";
            kube::Config::infer().await.context(missing)?
        }
    };
    Client::try_from(config).context("the credentials of the cluster cannot be used")
}

/// Publishes the URLs of the Service's ready endpoints, now and whenever they change, until nobody listens. While the API
/// server is away the last ones stay.
pub async fn follow(client: Client, service: GatewayService, replicas: watch::Sender<Vec<String>>) {
    let slices = Api::<EndpointSlice>::namespaced(client, &service.namespace);
    let only = watcher::Config::default().labels(&format!("kubernetes.io/service-name={}", service.name));
    let mut events = watcher(slices, only).default_backoff().boxed();
    let mut listed = BTreeMap::<String, EndpointSlice>::new();
    let mut relisted = BTreeMap::new();
    let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => relisted.clear(),
            Ok(watcher::Event::InitApply(slice)) => drop(relisted.insert(name(&slice), slice)),
            Ok(watcher::Event::InitDone) => listed = std::mem::take(&mut relisted),
            Ok(watcher::Event::Apply(slice)) => drop(listed.insert(name(&slice), slice)),
            Ok(watcher::Event::Delete(slice)) => drop(listed.remove(&name(&slice))),
            Err(error) => {
                let service = format!("{}/{}", service.namespace, service.name);
                tracing::warn!(service, %error, "cannot watch the endpoints of the gateways; the last ones stay in use");
                continue;
            }
        }
        let urls = urls(listed.values(), service.scheme);
        replicas.send_if_modified(|before| {
            let differs = *before != urls;
            if differs {
                tracing::info!(gateways = ?urls, "gateways");
                *before = urls;
            }
            differs
        });
        if replicas.is_closed() {
            return;
        }
    }
}

/// One URL for each replica. A replica with addresses of both families is one all the same: it would otherwise be told
/// everything twice.
fn urls<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, scheme: &str) -> Vec<String> {
    let mut by_replica = BTreeMap::<String, (IpAddr, i32)>::new();
    for slice in slices {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let port = ports.iter().find(|port| port.name.as_deref() == Some(PORT)).and_then(|port| port.port);
        let Some(port) = port else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
            let Some(address) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()) else {
                continue;
            };
            let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
            match by_replica.entry(uid.unwrap_or_else(|| address.to_string())) {
                Entry::Occupied(mut entry) if address.is_ipv4() => drop(entry.insert((address, port))),
                Entry::Occupied(_) => {}
                Entry::Vacant(entry) => drop(entry.insert((address, port))),
            }
        }
    }
    let url = |(address, port): (IpAddr, i32)| match address {
        IpAddr::V4(address) => format!("{scheme}://{address}:{port}"),
        IpAddr::V6(address) => format!("{scheme}://[{address}]:{port}"),
    };
    let mut urls: Vec<String> = by_replica.into_values().map(url).collect();
    urls.sort();
    urls
}

/// Whether it takes connections; unknown counts as ready (discovery/v1).
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(json: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json).expect("a slice")
    }

    #[test]
    fn every_ready_replica_is_one_url() {
        let ports = serde_json::json!([{"name": "health", "port": 1}, {"name": "discovery", "port": 18000}]);
        let four = slice(serde_json::json!({
            "metadata": {"name": "a"}, "addressType": "IPv4", "ports": ports,
            "endpoints": [
                {"addresses": ["10.0.0.2"], "targetRef": {"uid": "u2"}},
                {"addresses": ["10.0.0.1"], "targetRef": {"uid": "u1"}, "conditions": {"ready": true}},
                {"addresses": ["10.0.0.3"], "targetRef": {"uid": "u3"}, "conditions": {"ready": false}},
            ],
        }));
        let six = slice(serde_json::json!({
            "metadata": {"name": "b"}, "addressType": "IPv6", "ports": ports,
            "endpoints": [
                {"addresses": ["fd00::1"], "targetRef": {"uid": "u1"}},
                {"addresses": ["fd00::4"], "targetRef": {"uid": "u4"}},
            ],
        }));
        let other = slice(serde_json::json!({
            "metadata": {"name": "c"}, "addressType": "IPv4", "ports": [{"name": "health", "port": 1}],
            "endpoints": [{"addresses": ["10.0.0.9"]}],
        }));
        let expected = ["https://10.0.0.1:18000", "https://10.0.0.2:18000", "https://[fd00::4]:18000"];
        for slices in [[&four, &six, &other], [&six, &other, &four]] {
            assert_eq!(urls(slices.into_iter(), "https"), expected);
        }
        assert!(urls([].into_iter(), "https").is_empty());
    }
}
