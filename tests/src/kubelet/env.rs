//! Environment variables and command lines of containers, as Kubernetes defines them.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret, Service};
use kube::{Api, Client, ResourceExt as _};

/// Variables in the order in which they are defined.
pub type Variables = Vec<(String, String)>;

/// What the variables of a Pod may refer to.
#[derive(Debug, Default)]
pub struct Sources {
    /// By name; those that do not exist are absent.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    /// By name; those that do not exist are absent.
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// Services of the Pod's namespace, and `default/kubernetes`.
    pub services: Vec<Service>,
}

/// What is known of a Pod on its node only.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Addresses of the Pod, the primary one first.
    pub pod: Vec<IpAddr>,
    /// Addresses of the node, the primary one first.
    pub host: Vec<IpAddr>,
}

// === impl Sources ===

impl Sources {
    /// Reads what the variables of a container refer to.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn read(client: &Client, pod: &Pod, container: &Container, services: Vec<Service>) -> kube::Result<Self> {
        let namespace = pod.namespace().unwrap_or_default();
        let mut sources = Self { services, ..Default::default() };
        let values = || container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        let whole = || container.env_from.iter().flatten();
        let config_maps = values().filter_map(|from| Some(from.config_map_key_ref.as_ref()?.name.clone()));
        let config_maps =
            config_maps.chain(whole().filter_map(|from| Some(from.config_map_ref.as_ref()?.name.clone())));
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        for name in config_maps {
            if let Some(found) = api.get_opt(&name).await? {
                sources.config_maps.insert(name, found.data.unwrap_or_default());
            }
        }
        let secrets = values().filter_map(|from| Some(from.secret_key_ref.as_ref()?.name.clone()));
        let secrets = secrets.chain(whole().filter_map(|from| Some(from.secret_ref.as_ref()?.name.clone())));
        let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        for name in secrets {
            if let Some(found) = api.get_opt(&name).await? {
                let text = |(key, value): (String, k8s_openapi::ByteString)| {
                    (key, String::from_utf8_lossy(&value.0).into_owned())
                };
                sources.secrets.insert(name, found.data.unwrap_or_default().into_iter().map(text).collect());
            }
        }
        Ok(sources)
    }
}

/// The variables of a container: those of Services, then `envFrom`, then `env`; a later one replaces an earlier one.
///
/// # Errors
/// When a required source or key does not exist, or a field is not known.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Variables, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let linked = spec.enable_service_links.unwrap_or(true);
    let mut all = Variables::new();
    for service in &sources.services {
        let kubernetes = service.namespace().as_deref() == Some("default") && service.name_any() == "kubernetes";
        let near = linked && service.namespace() == pod.namespace();
        if kubernetes || near {
            service_variables(service).into_iter().for_each(|(name, value)| set(&mut all, name, value));
        }
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, found, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(of), _) => ("configmap", sources.config_maps.get(&of.name), &of.name, of.optional),
            (None, Some(of)) => ("secret", sources.secrets.get(&of.name), &of.name, of.optional),
            (None, None) => continue,
        };
        match found {
            Some(data) => data.iter().for_each(|(key, value)| set(&mut all, format!("{prefix}{key}"), value.clone())),
            None if optional == Some(true) => {}
            None => return Err(format!("{kind} {name:?} not found")),
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(from) => from_source(from, pod, container, addresses, sources)?,
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &all)),
        };
        if let Some(value) = value {
            set(&mut all, variable.name.clone(), value);
        }
    }
    Ok(all)
}

fn set(all: &mut Variables, name: String, value: String) {
    all.retain(|(other, _)| *other != name);
    all.push((name, value));
}

/// `None` when the source is optional and does not exist.
fn from_source(
    from: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Option<String>, String> {
    let key_of =
        |kind, found: Option<&BTreeMap<String, String>>, name: &str, key: &str, optional: Option<bool>| match found
            .map(|data| data.get(key))
        {
            Some(Some(value)) => Ok(Some(value.clone())),
            _ if optional == Some(true) => Ok(None),
            Some(None) => Err(format!("couldn't find key {key} in {kind} {name}")),
            None => Err(format!("{kind} {name:?} not found")),
        };
    if let Some(of) = &from.config_map_key_ref {
        key_of("configmap", sources.config_maps.get(&of.name), &of.name, &of.key, of.optional)
    } else if let Some(of) = &from.secret_key_ref {
        key_of("secret", sources.secrets.get(&of.name), &of.name, &of.key, of.optional)
    } else if let Some(of) = &from.field_ref {
        field(pod, &of.field_path, addresses).map(Some)
    } else if let Some(of) = &from.resource_field_ref {
        resource(container, of).map(Some)
    } else {
        Err("valueFrom names no source that this kubelet knows".to_owned())
    }
}

/// A field of a Pod by the path of the downward API.
///
/// # Errors
/// When there is no such path.
pub fn field(pod: &Pod, path: &str, addresses: &Addresses) -> Result<String, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let listed = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    let joined = |all: &[IpAddr]| all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |all: &[IpAddr]| all.first().map(IpAddr::to_string).unwrap_or_default();
    let indexed = |prefix: &str| Some(path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?.to_owned());
    if let Some(key) = indexed("metadata.labels") {
        return Ok(pod.labels().get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = indexed("metadata.annotations") {
        return Ok(pod.annotations().get(&key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => listed(pod.labels()),
        "metadata.annotations" => listed(pod.annotations()),
        "spec.nodeName" => spec.node_name.unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.unwrap_or_default(),
        "status.podIP" => first(&addresses.pod),
        "status.podIPs" => joined(&addresses.pod),
        "status.hostIP" => first(&addresses.host),
        "status.hostIPs" => joined(&addresses.host),
        other => return Err(format!("fieldPath {other:?} is not a field of the downward API")),
    })
}

/// A request or limit of a container in units of the divisor, rounded up. A container without one gets what a node has.
fn resource(container: &Container, of: &ResourceFieldSelector) -> Result<String, String> {
    let unknown = || format!("resource {:?} is none of requests.* and limits.* that is a number", of.resource);
    let (kind, name) = of.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.clone().unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let given = match kind {
        "limits" => limits.get(name),
        "requests" => resources.requests.as_ref().and_then(|requests| requests.get(name)).or_else(|| limits.get(name)),
        _ => return Err(unknown()),
    };
    let whole = super::node::CAPACITY.iter().find(|(resource, _)| *resource == name).map(|(_, amount)| *amount);
    let amount = given.map(|quantity| quantity.0.as_str()).or(whole).ok_or_else(unknown)?;
    let divisor =
        of.divisor.as_ref().map(|divisor| divisor.0.as_str()).filter(|divisor| *divisor != "0").unwrap_or("1");
    let (amount, divisor) = quantity(amount).zip(quantity(divisor)).ok_or_else(unknown)?;
    Ok(format!("{}", (amount / divisor).ceil()))
}

fn quantity(text: &str) -> Option<f64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// Replaces `$(NAME)` by the value of a variable. `$$` is a dollar sign, and references to what is not defined stay.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            rest = escaped;
        } else if let Some((name, following)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.iter().find(|(other, _)| other == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[at..rest.len() - following.len()]),
            }
            rest = following;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The variables that tell where a Service is. A Service without a ClusterIP has none.
fn service_variables(service: &Service) -> Variables {
    let spec = service.spec.clone().unwrap_or_default();
    let Some(ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()) else { return Vec::new() };
    let ports = spec.ports.unwrap_or_default();
    let Some(first) = ports.first() else { return Vec::new() };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(&service.name_any());
    let mut all = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_string()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in &ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            all.push((format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let number = u16::try_from(port.port).unwrap_or_default();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{}", protocol.to_lowercase(), std::net::SocketAddr::new(ip, number));
        if index == 0 {
            all.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{}", protocol.to_uppercase());
        all.push((prefix.clone(), url));
        all.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        all.push((format!("{prefix}_PORT"), number.to_string()));
        all.push((format!("{prefix}_ADDR"), ip.to_string()));
    }
    all
}

#[cfg(test)]
mod tests;
