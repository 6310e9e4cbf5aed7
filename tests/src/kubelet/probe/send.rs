//! Sends a single probe, or a hook of a container's life: from the node's network, or as a command in the container.

use std::{net::SocketAddr, time::Duration};

use api::proto::grpc_health::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpStream;

use super::Target;

/// Sends a probe and waits for its outcome.
///
/// # Errors
/// Why it failed.
pub async fn probe(probe: &Probe, target: &Target) -> Result<(), String> {
    if let Some(action) = &probe.http_get {
        http_get(action, target).await
    } else if let Some(action) = &probe.tcp_socket {
        connect(address(&action.port, action.host.as_deref(), target)?).await.map(drop)
    } else if let Some(action) = &probe.exec {
        exec(action, target).await
    } else if let Some(action) = &probe.grpc {
        grpc(action, target).await
    } else {
        Err("the probe has none of httpGet, tcpSocket, exec and grpc".to_owned())
    }
}

/// Runs a hook and waits for its outcome.
///
/// # Errors
/// Why it failed.
pub async fn hook(handler: &LifecycleHandler, target: &Target) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        exec(action, target).await
    } else if let Some(action) = &handler.http_get {
        http_get(action, target).await
    } else if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0).unsigned_abs())).await;
        Ok(())
    } else {
        Err("the hook has none of exec, httpGet and sleep".to_owned())
    }
}

async fn http_get(action: &HTTPGetAction, target: &Target) -> Result<(), String> {
    if action.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
        return Err("httpGet.scheme must be HTTP in the sandbox".to_owned());
    }
    let address = address(&action.port, action.host.as_deref(), target)?;
    let stream = connect(address).await?;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get(action.path.as_deref().unwrap_or("/")).header("user-agent", "kube-probe/1.36");
    let own = action.http_headers.iter().flatten();
    let named = |name: &str| action.http_headers.iter().flatten().any(|header| header.name.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header("host", address.to_string());
    }
    for header in own {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = send.send_request(request).await.map_err(|error| error.to_string());
    connection.abort();
    match answer?.status().as_u16() {
        200..400 => Ok(()),
        status => Err(format!("HTTP probe failed with statuscode: {status}")),
    }
}

async fn grpc(action: &GRPCAction, target: &Target) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| format!("grpc.port {} is no port", action.port))?;
    let address = SocketAddr::new(target.address, port);
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let request = HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
    let answer = HealthClient::new(channel).check(request).await.map_err(|status| status.message().to_owned())?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("the service is {}", other.as_str_name())),
    }
}

async fn exec(action: &ExecAction, target: &Target) -> Result<(), String> {
    let words = action.command.clone().unwrap_or_default();
    let output = target.access.command(&words).output().await.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("command ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}

async fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(to).await.map_err(|error| format!("dial tcp {to}: {error}"))
}

fn address(port: &IntOrString, host: Option<&str>, target: &Target) -> Result<SocketAddr, String> {
    let ip = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.parse().map_err(|_| format!("host {host:?} must be an IP address in the sandbox"))?,
        None => target.address,
    };
    Ok(SocketAddr::new(ip, number(port, &target.container)?))
}

/// The number of a port, which may be given by the name it has in the container.
fn number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let named = |name: &str| container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or(named(name).map(|port| port.container_port)),
    };
    let number = number.and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| {
        format!("port {port:?} is neither a number nor the name of a port of container {:?}", container.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_or_names_of_the_container() {
        let container = serde_json::json!({ "name": "web", "ports": [{ "name": "http", "containerPort": 8080 }] });
        let container: Container = serde_json::from_value(container).unwrap();
        assert_eq!(number(&IntOrString::Int(80), &container), Ok(80));
        assert_eq!(number(&IntOrString::String("http".to_owned()), &container), Ok(8080));
        assert_eq!(number(&IntOrString::String("81".to_owned()), &container), Ok(81));
        assert!(number(&IntOrString::String("admin".to_owned()), &container).unwrap_err().contains("admin"));
    }
}
