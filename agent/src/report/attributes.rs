//! What a record says, as attributes: spans, log records and log lines all have their names and values from here.
//!
//! Names follow the OpenTelemetry semantic conventions 1.44; what these do not know is under `portico.`. Addresses under
//! `network.` are those of the socket, those under `client.` belong to whoever sent the request through any trusted hop.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    method,
    outcome::Outcome,
    record::{Attempt, ClientSource, ConnectionRecord, Downstream, RequestRecord},
    url,
    verdict::{self, rpc_status},
    via::Via,
};
use crate::table::{Balance, HashKey, Target};

/// User agents are cut here, in bytes.
const USER_AGENT: usize = 256;

/// Somebody who writes attributes down.
pub trait Visit {
    /// A text from outside.
    fn text(&mut self, key: &'static str, value: &str);
    /// A name that is held elsewhere as well.
    fn shared(&mut self, key: &'static str, value: &Arc<str>) {
        self.text(key, value);
    }
    /// One of a closed set of words.
    fn word(&mut self, key: &'static str, value: &'static str) {
        self.text(key, value);
    }
    /// A number.
    fn number(&mut self, key: &'static str, value: i64);
    /// A number of seconds.
    fn seconds(&mut self, key: &'static str, value: f64);
    /// A truth.
    fn flag(&mut self, key: &'static str, value: bool);
    /// An address.
    fn address(&mut self, key: &'static str, value: IpAddr) {
        self.text(key, &value.to_string());
    }
}

/// A request, as its server sees it.
pub fn request(record: &RequestRecord, visit: &mut impl Visit) {
    let downstream = &*record.downstream;
    visit.word("http.request.method", method::label(&record.method));
    if method::label(&record.method) == "_OTHER" {
        visit.text("http.request.method_original", record.method.as_str());
    }
    visit.word("url.scheme", scheme(downstream.tls));
    visit.text("url.path", record.uri.path());
    if let Some(query) = record.uri.query() {
        let mut shown = String::with_capacity(query.len());
        url::push_query(query, &mut shown);
        visit.text("url.query", &shown);
    }
    let authority = record.authority.as_ref().map(|value| value.as_bytes());
    let authority = authority.or_else(|| record.uri.authority().map(|authority| authority.as_str().as_bytes()));
    if let Some((address, port)) = authority.and_then(|authority| url::server(authority, downstream.tls)) {
        visit.text("server.address", &address);
        visit.number("server.port", port.into());
    }
    client(record.client, record.client_source, visit);
    if record.untrusted_chain {
        visit.flag("portico.client.untrusted_chain", true);
    }
    sockets(downstream, "tcp", visit);
    visit.word("network.protocol.version", protocol_version(record.http2));
    if let Some(agent) = &record.user_agent {
        let agent = agent.as_bytes();
        visit.text("user_agent.original", &String::from_utf8_lossy(&agent[..agent.len().min(USER_AGENT)]));
    }
    if record.status != 0 {
        visit.number("http.response.status_code", record.status.into());
    }
    if let Some(error) = verdict::request_error(record) {
        visit.text("error.type", &error);
    }
    if record.grpc {
        rpc(record, visit);
    }
    if record.outcome != Outcome::Complete {
        visit.word("portico.reason", record.outcome.reason());
    }
    visit.word("portico.listener.kind", downstream.frontend.label());
    target(record.target.as_deref(), visit);
}

/// Sizes of the bodies of a request, which conventions leave to choice: only the log has them.
pub fn request_sizes(record: &RequestRecord, visit: &mut impl Visit) {
    visit.number("http.request.body.size", number(record.received));
    visit.number("http.response.body.size", number(record.sent));
    if let Some(first_byte) = record.first_byte {
        visit.seconds("portico.first_byte.duration", first_byte.as_secs_f64());
    }
}

/// A connection or flow.
pub fn connection(record: &ConnectionRecord, visit: &mut impl Visit) {
    let downstream = &*record.downstream;
    // With no server name, the server is the address that the client dialled.
    match &downstream.server_name {
        Some(name) => visit.text("server.address", name),
        None => visit.address("server.address", downstream.local.ip().to_canonical()),
    }
    visit.number("server.port", downstream.local.port().into());
    client(downstream.client, downstream.client_source, visit);
    sockets(downstream, transport(record.protocol), visit);
    visit.number("portico.connection.bytes_received", number(record.received));
    visit.number("portico.connection.bytes_sent", number(record.sent));
    visit.word("portico.connection.close_reason", record.outcome.reason());
    if let Some(error) = record.outcome.error_type() {
        visit.word("error.type", error);
    }
    visit.word("portico.listener.kind", downstream.frontend.label());
    if !record.entry_node.is_empty() {
        visit.text("portico.hop.entry_node.name", &record.entry_node);
    }
    target(record.target.as_deref(), visit);
}

/// One attempt at a request, as the endpoint's client sees it. `resend` is how many came before.
pub fn request_attempt(record: &RequestRecord, attempt: &Attempt, resend: usize, visit: &mut impl Visit) {
    visit.word("http.request.method", method::label(&record.method));
    if let Some(target) = &record.target {
        let host = format!("{}.{}.svc", target.service.name, target.service.namespace);
        let mut full = format!("http://{host}:{}{}", target.port, record.uri.path());
        if let Some(query) = record.uri.query() {
            full.push('?');
            url::push_query(query, &mut full);
        }
        visit.text("url.full", &full);
        visit.text("server.address", &host);
        visit.number("server.port", target.port.into());
        visit.shared("service.peer.name", &target.service.name);
        visit.shared("service.peer.namespace", &target.service.namespace);
    }
    if resend > 0 {
        visit.number("http.request.resend_count", resend as i64);
    }
    if let Some(status) = attempt.status {
        visit.number("http.response.status_code", status.into());
    }
    if record.grpc {
        rpc(record, visit);
    }
    if let Some(error) = verdict::attempt_error(record, attempt) {
        visit.text("error.type", &error);
    }
    endpoint(attempt, visit);
}

/// One attempt to connect for a connection or flow.
pub fn connection_attempt(record: &ConnectionRecord, attempt: &Attempt, visit: &mut impl Visit) {
    visit.word("network.transport", transport(record.protocol));
    if let Some(target) = &record.target {
        visit.shared("service.peer.name", &target.service.name);
        visit.shared("service.peer.namespace", &target.service.namespace);
    }
    if let Some(error) = connect_error(attempt) {
        visit.word("error.type", error);
    }
    endpoint(attempt, visit);
}

/// What became of the last attempt, beside what the request or connection says itself: one log record tells all.
pub fn last_attempt(attempts: &[Attempt], visit: &mut impl Visit) {
    let Some(last) = attempts.last() else { return };
    visit.number("portico.upstream.attempts", attempts.len() as i64);
    visit.address("portico.upstream.address", last.backend.address.ip().to_canonical());
    visit.number("portico.upstream.port", last.backend.address.port().into());
    visit.seconds("portico.upstream.duration", last.took.as_secs_f64());
    if let Some(connected) = last.connected.filter(|_| !last.reused) {
        visit.seconds("portico.upstream.connect.duration", connected.as_secs_f64());
    }
    backend(last, visit);
}

/// Why an attempt did not get as far as a connection; what came after that is no matter of connecting.
pub fn connect_error(attempt: &Attempt) -> Option<&'static str> {
    if attempt.connected.is_some() { None } else { attempt.outcome.error_type().or(Some("_OTHER")) }
}

/// `network.transport` of a protocol of a [`ConnectionRecord`].
pub fn transport(protocol: &str) -> &'static str {
    if protocol == "udp" { "udp" } else { "tcp" }
}

/// `url.scheme`.
pub fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// `network.protocol.version`.
pub fn protocol_version(http2: bool) -> &'static str {
    if http2 { "2" } else { "1.1" }
}

/// The full method of a gRPC call, `package.Service/Method`. A client can send any path, so one that its server does not
/// implement counts as unknown.
pub fn rpc_method(record: &RequestRecord) -> Option<&str> {
    let path = record.uri.path();
    let is_known = verdict::grpc_status(record) != Some(12) && path.len() > 1;
    is_known.then(|| path.trim_start_matches('/'))
}

fn rpc(record: &RequestRecord, visit: &mut impl Visit) {
    visit.word("rpc.system.name", "grpc");
    match rpc_method(record) {
        Some(method) => visit.text("rpc.method", method),
        None => {
            visit.word("rpc.method", "_OTHER");
            visit.text("rpc.method_original", record.uri.path().trim_start_matches('/'));
        }
    }
    if let Some(status) = verdict::grpc_status(record) {
        visit.word("rpc.status_code", rpc_status(status));
    }
}

fn client(client: SocketAddr, source: ClientSource, visit: &mut impl Visit) {
    visit.address("client.address", client.ip().to_canonical());
    // A proxy that names somebody by address alone leaves the port at 0.
    if client.port() != 0 {
        visit.number("client.port", client.port().into());
    }
    visit.word("portico.client.address_source", source.label());
}

fn sockets(downstream: &Downstream, transport: &'static str, visit: &mut impl Visit) {
    let (peer, local) = (downstream.peer.ip().to_canonical(), downstream.local.ip().to_canonical());
    visit.address("network.peer.address", peer);
    visit.number("network.peer.port", downstream.peer.port().into());
    visit.address("network.local.address", local);
    visit.number("network.local.port", downstream.local.port().into());
    visit.word("network.transport", transport);
    visit.word("network.type", if peer.is_ipv4() { "ipv4" } else { "ipv6" });
}

fn target(target: Option<&Target>, visit: &mut impl Visit) {
    let Some(target) = target else { return };
    visit.shared("portico.backend.service.name", &target.service.name);
    visit.shared("portico.backend.service.namespace", &target.service.namespace);
    visit.number("portico.backend.service.port", target.port.into());
    let key_source = match &target.balance {
        Balance::Hash(HashKey::Client) => "client_ip",
        Balance::Hash(HashKey::Header(_)) => "header",
        Balance::Hash(HashKey::Cookie(_)) => "cookie",
        Balance::LeastRequest | Balance::Random | Balance::RoundRobin => "none",
    };
    visit.word("portico.affinity.key_source", key_source);
}

fn endpoint(attempt: &Attempt, visit: &mut impl Visit) {
    visit.address("network.peer.address", attempt.backend.address.ip().to_canonical());
    visit.number("network.peer.port", attempt.backend.address.port().into());
    backend(attempt, visit);
}

fn backend(attempt: &Attempt, visit: &mut impl Visit) {
    let backend = &attempt.backend;
    let names = [
        ("portico.backend.pod.name", &backend.pod),
        ("portico.backend.node.name", &backend.node),
        ("portico.backend.zone", &backend.zone),
    ];
    for (key, value) in names {
        if !value.is_empty() {
            visit.text(key, value);
        }
    }
    visit.word("portico.backend.locality", backend.locality.label());
    match attempt.via {
        Via::Direct => {}
        Via::Hop => visit.text("portico.hop.exit_node.name", &backend.node),
        Via::Bypassed(bypass) => visit.word("portico.hop.bypass", bypass.label()),
    }
}

/// Attribute values are signed; a count that large does not occur.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
