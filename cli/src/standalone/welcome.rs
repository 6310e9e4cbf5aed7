//! What standalone prints once it serves: the Services, and a line to try for each of them.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use api::proto::{
    discovery::{AppProtocol, Service, ServicePort, ServiceType, Transport},
    inspect::{
        ListObjectsRequest, Object, ObjectKind, inspect_service_client::InspectServiceClient, object::Kind as Content,
    },
    node::NodeServingState,
};

use crate::get;

/// How often the gateway is asked whether all agents serve.
const ASK: Duration = Duration::from_millis(100);

/// Waits until every agent serves, then prints. A gateway that does not answer yet is asked again; what is wrong is in
/// the log.
pub async fn greet(directory: PathBuf, health: SocketAddr, http_port: Option<NonZeroU16>) {
    let mut interval = tokio::time::interval(ASK);
    loop {
        interval.tick().await;
        let Ok((services, nodes)) = ask(health).await else { continue };
        if nodes.is_empty() {
            continue;
        }
        let text = render(&directory.display().to_string(), &services, &nodes, http_port);
        // Whoever closed our output does not want to read it.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
        return;
    }
}

/// Services, and the addresses of nodes once all agents serve.
async fn ask(health: SocketAddr) -> Result<(Vec<Object>, Vec<IpAddr>), Box<dyn std::error::Error + Send + Sync>> {
    let mut inspect = InspectServiceClient::connect(format!("http://{health}")).await?;
    let mut list = async |kind: ObjectKind| {
        let request = ListObjectsRequest { kind: kind as i32, ..ListObjectsRequest::default() };
        inspect.list_objects(request).await.map(|response| response.into_inner().objects)
    };
    let nodes = list(ObjectKind::Node).await?;
    let agents = list(ObjectKind::Agent).await?;
    let serves = |object: &Object| match &object.kind {
        Some(Content::Agent(agent)) => agent.connected && agent.state() == NodeServingState::Serving,
        _ => false,
    };
    let serving = agents.iter().filter(|agent| serves(agent)).count();
    if serving < nodes.len() {
        return Ok((vec![], vec![]));
    }
    let addresses = nodes.into_iter().filter_map(|object| match object.kind {
        Some(Content::Node(state)) => state.node?.internal_addresses.first()?.parse().ok(),
        _ => None,
    });
    let addresses = addresses.collect();
    Ok((list(ObjectKind::Service).await?, addresses))
}

fn render(directory: &str, services: &[Object], nodes: &[IpAddr], http_port: Option<NonZeroU16>) -> String {
    let mut text = get::services_table(services, false, SystemTime::now());
    text.push_str("\nTry:\n");
    let lines: Vec<(String, String)> = services
        .iter()
        .filter_map(|object| match &object.kind {
            Some(Content::Service(service)) => Some((service.name.clone(), line(service, nodes, http_port)?)),
            _ => None,
        })
        .collect();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, line) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:width$}   {line}");
    }
    let _ = writeln!(text, "\nManifests: {directory} (watched: edit them and see). Stop: Ctrl-C.");
    text
}

/// A command that reaches a Service; `None` if nothing of it can be reached.
fn line(service: &Service, nodes: &[IpAddr], http_port: Option<NonZeroU16>) -> Option<String> {
    let http = |port: &&ServicePort| {
        port.transport() == Transport::Tcp
            && matches!(port.app_protocol(), AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc)
    };
    let node = *nodes.first()?;
    let by_name = |port: NonZeroU16| {
        let url = SocketAddr::new(node, port.get());
        format!("curl -H 'Host: {}.{}' http://{url}/", service.name, service.namespace)
    };
    if matches!(service.r#type(), ServiceType::Headless | ServiceType::ExternalName) {
        return http_port.map(by_name);
    }
    let port = service.ports.iter().find(http).or_else(|| service.ports.first())?;
    let address = |ip: &String| Some(SocketAddr::new(ip.parse().ok()?, u16::try_from(port.port).ok()?));
    let node_port = u16::try_from(port.node_port).ok().filter(|port| *port > 0);
    let address = match service.r#type() {
        ServiceType::LoadBalancer => service.load_balancer_ips.first().and_then(address),
        ServiceType::NodePort => node_port.map(|port| SocketAddr::new(node, port)),
        _ => None,
    };
    let address = address.or_else(|| {
        service
            .cluster_ips
            .first()
            .and_then(|ip| Some(SocketAddr::new(ip.parse().ok()?, u16::try_from(port.port).ok()?)))
    })?;
    let scheme = if port.terminate_tls { "-k https" } else { "http" };
    Some(match (port.app_protocol(), port.transport()) {
        (AppProtocol::Http, _) => format!("curl {scheme}://{address}/"),
        (AppProtocol::Http2 | AppProtocol::Grpc, _) => format!("curl --http2-prior-knowledge {scheme}://{address}/"),
        (AppProtocol::Tls, _) => format!("curl -k https://{address}/"),
        (_, Transport::Udp) => format!("echo hello | nc -u -w1 {} {}", address.ip(), address.port()),
        _ => format!("echo hello | nc -N {} {}", address.ip(), address.port()),
    })
}
