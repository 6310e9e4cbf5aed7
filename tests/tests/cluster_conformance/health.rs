//! What load balancers are told of a node: the health-check node port of each Service that has one (S12).

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tests::{probe, sandbox::plan::Role};
use tokio::time::timeout;

use crate::{
    lab::Lab,
    matrix::{ENTRY, OTHER, Policy, Service, State},
    report::Row,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Asks both nodes about each Service, by both families, from outside.
pub async fn observe(lab: &Lab, services: &[Service]) -> Vec<Row> {
    let mut rows = Vec::new();
    for service in services {
        let Some(port) = lab.health_port(service) else {
            assert_eq!(service.external, Policy::Cluster, "{} has a health-check port", service.name);
            continue;
        };
        for node in [ENTRY, OTHER] {
            for address in Role::Node(node).addresses() {
                let to = SocketAddr::new(address, port);
                let asked = timeout(PATIENCE, ask(to)).await.unwrap_or_else(|_| Ok("silence".to_owned()));
                let seen = asked.unwrap_or_else(|error| format!("{error:#}"));
                let expected = expected(service, node);
                let question = format!("{}: health of node-{node} at {address}", service.name);
                rows.push(Row { question, rule: "S12 health check", agrees: seen == expected, expected, seen });
            }
        }
    }
    rows
}

/// S12.2 to S12.5: ready endpoints of this node, whatever else there is.
fn expected(service: &Service, node: u8) -> String {
    let here = service.endpoints.iter().filter(|endpoint| endpoint.node == node && endpoint.state == State::Ready);
    let count = here.count();
    let status = if count > 0 { 200 } else { 503 };
    let name = &service.name;
    format!("{status} application/json nosniff weight {count} default/{name} {count} local, proxy healthy true")
}

async fn ask(to: SocketAddr) -> Result<String> {
    let stream = probe::connect(&Role::Client.namespace(), to)?.await.context("cannot connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driven = tokio::spawn(connection);
    let request = Request::get("/").header("host", to.to_string()).body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body: Value = serde_json::from_slice(&body.collect().await?.to_bytes()).context("the body is no JSON")?;
    drop(sender);
    driven.await??;
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(format!(
        "{} {} {} weight {} {}/{} {} local, proxy healthy {}",
        head.status.as_u16(),
        header("content-type"),
        header("x-content-type-options"),
        header("x-load-balancing-endpoint-weight"),
        text(&body["service"]["namespace"]),
        text(&body["service"]["name"]),
        text(&body["localEndpoints"]),
        text(&body["serviceProxyHealthy"]),
    ))
}
