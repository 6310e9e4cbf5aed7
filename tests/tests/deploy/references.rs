//! What one object says of another: selectors, names, ports, times.

use runtime::args::parse::duration;
use serde_json::Value;

use crate::render::{Install, Objects, pod};

/// Seconds that a program takes beyond its drain timeout: two until everyone has noticed, five to flush telemetry.
const BEYOND_DRAIN: u64 = 7;

/// References of an installation that lead nowhere.
pub fn wrong(install: &Install) -> Vec<String> {
    let objects = &install.objects;
    let mut found = Vec::new();
    for (key, object) in objects {
        let lost = match object["kind"].as_str().unwrap_or_default() {
            "Deployment" | "DaemonSet" => workload(object, objects),
            "Service" => service(object, objects),
            "PodDisruptionBudget" => selects(&object["spec"]["selector"], objects).err().into_iter().collect(),
            "NetworkPolicy" => network_policy(object, objects),
            "ServiceMonitor" => selects(&object["spec"]["selector"], objects).err().into_iter().collect(),
            "PodMonitor" => pod_monitor(object, objects),
            "RoleBinding" | "ClusterRoleBinding" => binding(object, objects),
            _ => Vec::new(),
        };
        found.extend(lost.into_iter().map(|text| format!("{}: {key}: {text}", install.name)));
    }
    found
}

fn workload(object: &Value, objects: &Objects) -> Vec<String> {
    let Some(pod) = pod(object) else { return vec!["has no Pod template".to_owned()] };
    let (namespace, spec, container) =
        (text(&object["metadata"]["namespace"]), &pod["spec"], &pod["spec"]["containers"][0]);
    let mut found = Vec::new();
    if !matches(&object["spec"]["selector"]["matchLabels"], &pod["metadata"]["labels"]) {
        found.push("its selector does not match its own Pods".to_owned());
    }
    let account = format!("ServiceAccount {namespace}/{}", text(&spec["serviceAccountName"]));
    found.extend((!objects.contains_key(&account)).then(|| format!("there is no {account}")));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let port = text(&container[probe]["httpGet"]["port"]);
        found.extend((!ports(pod).contains(&port)).then(|| format!("{probe}: there is no port {port:?}")));
    }
    let of_variables = list(&container["env"]).iter().map(|variable| &variable["valueFrom"]["configMapKeyRef"]);
    for reference in of_variables.filter(|reference| !reference.is_null()) {
        let map = format!("ConfigMap {namespace}/{}", text(&reference["name"]));
        let value = objects.get(&map).map(|map| &map["data"][text(&reference["key"])]);
        let is_there = value.and_then(Value::as_str).is_some_and(|value| !value.is_empty());
        found.extend((!is_there).then(|| format!("{map} has no {}", reference["key"])));
    }
    found.extend(grace(spec, container));
    found
}

/// Whether the kubelet waits as long as the drain may take.
fn grace(spec: &Value, container: &Value) -> Option<String> {
    let mut words = list(&container["args"]).iter().filter_map(Value::as_str);
    let drain = words.find_map(|word| word.strip_prefix("--drain-timeout="));
    let Some(drain) = drain.and_then(|raw| duration(raw).ok()) else {
        return Some("--drain-timeout is not given".to_owned());
    };
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or_default();
    let wanted = drain.as_secs() + BEYOND_DRAIN;
    (grace < wanted).then(|| format!("terminationGracePeriodSeconds is {grace}; a drain takes up to {wanted}"))
}

fn service(object: &Value, objects: &Objects) -> Vec<String> {
    let selector = serde_json::json!({ "matchLabels": object["spec"]["selector"] });
    let pods = match selects(&selector, objects) {
        Ok(pods) => pods,
        Err(reason) => return vec![reason],
    };
    let targets = list(&object["spec"]["ports"]).iter().map(|port| text(&port["targetPort"]));
    targets.filter(|target| !pods.iter().any(|pod| ports(pod).contains(target))).map(no_port).collect()
}

fn network_policy(object: &Value, objects: &Objects) -> Vec<String> {
    let pods = match selects(&object["spec"]["podSelector"], objects) {
        Ok(pods) => pods,
        Err(reason) => return vec![reason],
    };
    let rules = list(&object["spec"]["ingress"]).iter();
    let open: Vec<_> = rules.flat_map(|rule| list(&rule["ports"])).map(|port| text(&port["port"])).collect();
    let unknown = open.iter().copied().filter(|port| !pods.iter().any(|pod| ports(pod).contains(port))).map(no_port);
    let closed = pods.iter().flat_map(|pod| ports(pod)).filter(|port| !open.contains(port));
    unknown.chain(closed.map(|port| format!("nobody reaches the port {port:?}"))).collect()
}

fn pod_monitor(object: &Value, objects: &Objects) -> Vec<String> {
    let pods = match selects(&object["spec"]["selector"], objects) {
        Ok(pods) => pods,
        Err(reason) => return vec![reason],
    };
    let scraped = list(&object["spec"]["podMetricsEndpoints"]).iter().map(|endpoint| text(&endpoint["port"]));
    scraped.filter(|port| !pods.iter().any(|pod| ports(pod).contains(port))).map(no_port).collect()
}

fn binding(object: &Value, objects: &Objects) -> Vec<String> {
    let namespace = text(&object["metadata"]["namespace"]);
    let role = format!("{}/{}", namespace, text(&object["roleRef"]["name"]));
    let role = format!("{} {}", text(&object["roleRef"]["kind"]), role.trim_start_matches('/'));
    let subject = |subject: &Value| {
        let part = |name: &str| text(&subject[name]).to_owned();
        format!("{} {}/{}", part("kind"), part("namespace"), part("name"))
    };
    let named = list(&object["subjects"]).iter().map(subject).chain([role]);
    named.filter(|key| !objects.contains_key(key)).map(|key| format!("there is no {key}")).collect()
}

/// The Pod templates that a selector matches; an error if it matches none.
fn selects<'a>(selector: &Value, objects: &'a Objects) -> Result<Vec<&'a Value>, String> {
    let wanted = &selector["matchLabels"];
    let pods: Vec<_> =
        objects.values().filter_map(pod).filter(|pod| matches(wanted, &pod["metadata"]["labels"])).collect();
    if pods.is_empty() { Err(format!("it selects no Pod: {wanted}")) } else { Ok(pods) }
}

/// Whether all of `wanted`, of which there is some, is in `labels`.
fn matches(wanted: &Value, labels: &Value) -> bool {
    let Some(wanted) = wanted.as_object().filter(|wanted| !wanted.is_empty()) else { return false };
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Names of the ports of a Pod template.
fn ports(pod: &Value) -> Vec<&str> {
    list(&pod["spec"]["containers"][0]["ports"]).iter().map(|port| text(&port["name"])).collect()
}

fn no_port(name: &str) -> String {
    format!("its Pods have no port {name:?}")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
