//! Single connections and flows.

use std::net::{IpAddr, SocketAddr};

use agent::{
    forward::udp,
    table::{Table, verdict::Verdict},
};
use api::resource::service::Transport;
use serde::{Deserialize, de::IgnoredAny};

use super::rows;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Flow {
    #[serde(default)]
    name: String,
    from: From,
    to: To,
    result: String,
    endpoints: Option<Vec<String>>,
    #[serde(rename = "clientIPPreserved")]
    client_ip_preserved: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    /// For the reader: what the client is follows from its address.
    #[serde(rename = "kind")]
    _kind: Option<IgnoredAny>,
    ip: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    ip: IpAddr,
    port: u16,
    #[serde(default = "tcp")]
    protocol: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Established {
    client: SocketAddr,
    to: SocketAddr,
    endpoint: Option<SocketAddr>,
    keep: bool,
}

fn tcp() -> String {
    "TCP".to_owned()
}

/// A protocol as objects name it.
pub(super) fn transport(text: &str) -> Result<Transport, String> {
    let all = [Transport::Tcp, Transport::Udp, Transport::Sctp];
    all.into_iter().find(|known| known.as_str() == text).ok_or_else(|| format!("there is no protocol {text}"))
}

/// Checks what becomes of the first packet of a connection.
pub(super) fn flow(table: &Table, flow: &Flow) -> Result<(), String> {
    let (client, address) = (flow.from.ip, SocketAddr::new(flow.to.ip, flow.to.port));
    let transport = transport(&flow.to.protocol)?;
    let kind = table.client_kind(client);
    let failed = |reason: String| format!("flow {:?}: {reason}", flow.name);
    let verdict = table.verdict(client, address, transport);
    let result = match verdict {
        Verdict::Forward(_) => "forward",
        Verdict::Reject(_) => "reject",
        Verdict::Drop(_) => "drop",
        Verdict::Unhandled => "unhandled",
    };
    if result != flow.result {
        return Err(failed(format!("{verdict:?} instead of {}", flow.result)));
    }
    let Verdict::Forward(candidates) = verdict else { return Ok(()) };
    let endpoints: Vec<SocketAddr> = candidates.backends.iter().map(|backend| backend.address).collect();
    if let Some(expected) = &flow.endpoints {
        let found: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        rows::same_set("endpoints", expected, &found).map_err(failed)?;
    }
    let Some(preserved) = flow.client_ip_preserved else { return Ok(()) };
    let frontend = table.frontend(address, transport).ok_or_else(|| failed("there is no frontend".to_owned()))?;
    let target = frontend.target.as_ref().ok_or_else(|| failed("there is no target".to_owned()))?;
    // An endpoint that reaches itself is a case of its own, which others beside it do not show.
    let mut others = endpoints.iter().filter(|endpoint| endpoint.ip() != client || endpoints.len() == 1);
    match others.find(|endpoint| target.keeps_client(frontend.kind, client, kind, endpoint.ip()) != preserved) {
        Some(endpoint) => Err(failed(format!("the client's address is kept: {}, to {endpoint}", !preserved))),
        None => Ok(()),
    }
}

/// Checks whether a UDP flow outlives the table.
pub(super) fn established(table: &Table, flow: &Established) -> Result<(), String> {
    let stays = udp::stays(table, flow.to, flow.endpoint);
    if stays == flow.keep {
        return Ok(());
    }
    Err(format!("the flow of {} to {} by {:?} stays: {stays}", flow.client, flow.to, flow.endpoint))
}
