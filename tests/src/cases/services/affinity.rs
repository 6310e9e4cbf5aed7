//! Which endpoint each of several connections gets (S8).

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use agent::balance::{
    choose::{Chooser, Client},
    flow::FlowHash,
    pick::{Load, LoadBound},
    pin::Pins,
};
use gateway::watch::object::Kind;
use serde::Deserialize;
use serde_json::Value;

use super::{node::Node, traffic::transport};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Connection {
    /// Seconds since the first one could be made.
    #[serde(default)]
    at: u64,
    from: Option<SocketAddr>,
    to: Option<SocketAddr>,
    protocol: Option<String>,
    remember: Option<String>,
    same_as: Option<String>,
    different_from: Option<String>,
    any_of: Option<Vec<SocketAddr>>,
    remove_endpoint: Option<String>,
}

/// Makes the connections, one after the other, by what a worker of the node remembers.
pub(super) fn run(node: &mut Node, connections: &[Connection]) -> Result<(), String> {
    let began = Instant::now();
    let pins = Pins::new(1_024, began);
    let mut remembered: BTreeMap<String, SocketAddr> = BTreeMap::new();
    for (index, connection) in connections.iter().enumerate() {
        let failed = |reason: String| format!("connection {}: {reason}", index + 1);
        let known = |name: &String, remembered: &BTreeMap<String, SocketAddr>| {
            remembered.get(name).copied().ok_or_else(|| failed(format!("nothing is remembered as {name}")))
        };
        if let Some(name) = &connection.remove_endpoint {
            remove(node, known(name, &remembered)?).map_err(failed)?;
        }
        let (Some(from), Some(to)) = (connection.from, connection.to) else { continue };
        let now = began + Duration::from_secs(connection.at);
        let chosen = choose(node, &pins, now, from, to, connection.protocol.as_deref()).map_err(failed)?;
        if let Some(name) = &connection.same_as {
            let expected = known(name, &remembered)?;
            if chosen != expected {
                return Err(failed(format!("goes to {chosen}, not to {expected}")));
            }
        }
        if let Some(name) = &connection.different_from
            && known(name, &remembered)? == chosen
        {
            return Err(failed(format!("goes to {chosen} again")));
        }
        if connection.any_of.as_ref().is_some_and(|any_of| !any_of.contains(&chosen)) {
            return Err(failed(format!("goes to {chosen}")));
        }
        if let Some(name) = &connection.remember {
            remembered.insert(name.clone(), chosen);
        }
    }
    Ok(())
}

fn choose(
    node: &Node,
    pins: &Pins,
    now: Instant,
    from: SocketAddr,
    to: SocketAddr,
    protocol: Option<&str>,
) -> Result<SocketAddr, String> {
    let table = node.table();
    let transport = transport(protocol.unwrap_or("TCP"))?;
    let frontend = table.frontend(to, transport).ok_or_else(|| format!("nothing answers at {to}"))?;
    let target = frontend.target.as_ref().ok_or_else(|| format!("{to} has no Service"))?;
    let verdict = table.verdict(from.ip(), to, transport);
    let candidates = verdict.candidates().map_err(|outcome| format!("refused: {}", outcome.reason()))?;
    let turn = Cell::new(0);
    let chooser = Chooser { pins, turn: &turn, bound: LoadBound { percent: None }, now };
    let client = Client { address: from.ip(), hash: FlowHash::of_client(from.ip()) };
    let chosen = chooser.choose(target, candidates, client, |_| Load::default(), &[]);
    chosen.map(|backend| backend.address).ok_or_else(|| "there is no endpoint".to_owned())
}

/// Takes an endpoint out of every slice.
fn remove(node: &mut Node, gone: SocketAddr) -> Result<(), String> {
    let address = gone.ip().to_string();
    for mut slice in node.objects(Kind::EndpointSlice) {
        let Some(endpoints) = slice["endpoints"].as_array_mut() else { continue };
        let before = endpoints.len();
        endpoints.retain(|endpoint| endpoint["addresses"][0] != Value::String(address.clone()));
        if endpoints.len() < before {
            node.apply(&[slice])?;
        }
    }
    Ok(())
}
