//! Objects against the types of the Kubernetes API.
//!
//! Those types pass over fields that they do not know, as API servers of another release must. So an object is read and
//! written again, and what is gone then was not a field.

use k8s_openapi::{
    api::{apps::v1 as apps, core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    api::{policy::v1 as policy, rbac::v1 as rbac},
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// What is wrong with the object.
pub fn check(object: &Value) -> Result<(), String> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("v1", "Namespace") => as_type::<core::Namespace>(object),
        ("v1", "Endpoints") => as_type::<core::Endpoints>(object),
        ("v1", "Node") => as_type::<core::Node>(object),
        ("v1", "Pod") => as_type::<core::Pod>(object),
        ("v1", "Service") => as_type::<core::Service>(object),
        ("v1", "Secret") => as_type::<core::Secret>(object),
        ("v1", "ConfigMap") => as_type::<core::ConfigMap>(object),
        ("v1", "ServiceAccount") => as_type::<core::ServiceAccount>(object),
        ("v1", "ResourceQuota") => as_type::<core::ResourceQuota>(object),
        ("discovery.k8s.io/v1", "EndpointSlice") => as_type::<discovery::EndpointSlice>(object),
        ("apps/v1", "Deployment") => as_type::<apps::Deployment>(object),
        ("apps/v1", "DaemonSet") => as_type::<apps::DaemonSet>(object),
        ("policy/v1", "PodDisruptionBudget") => as_type::<policy::PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => as_type::<networking::NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => as_type::<rbac::ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => as_type::<rbac::ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => as_type::<rbac::Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => as_type::<rbac::RoleBinding>(object),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            as_type::<extensions::CustomResourceDefinition>(object)
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor") => as_type::<Foreign<ServiceMonitor>>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => as_type::<Foreign<PodMonitor>>(object),
        ("cert-manager.io/v1", "Issuer") => as_type::<Foreign<Issuer>>(object),
        ("cert-manager.io/v1", "Certificate") => as_type::<Foreign<Certificate>>(object),
        (version, kind) => Err(format!("there is no type for {kind} of {version:?}")),
    }
}

fn as_type<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let known = serde_json::to_value(typed).map_err(|error| error.to_string())?;
    contained("", object, &known)
}

/// Whether everything of `object` is in `known`.
fn contained(path: &str, object: &Value, known: &Value) -> Result<(), String> {
    match (object, known) {
        (Value::Object(object), Value::Object(known)) => object.iter().try_for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(known) => contained(&path, value, known),
                None => Err(format!("{path} is not a field")),
            }
        }),
        (Value::Array(object), Value::Array(known)) if object.len() == known.len() => {
            let mut both = object.iter().zip(known).enumerate();
            both.try_for_each(|(at, (value, known))| contained(&format!("{path}[{at}]"), value, known))
        }
        // How a number is written, as 0 or 0.0, says nothing.
        (Value::Number(object), Value::Number(known)) if object.as_f64() == known.as_f64() => Ok(()),
        _ if object == known => Ok(()),
        _ => Err(format!("{path} is {object}, and is read as {known}")),
    }
}

/// An object of a kind that others define, with the fields of it that are used here.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Foreign<Spec> {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: Spec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ServiceMonitor {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    endpoints: Vec<Scrape>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMonitor {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<Scrape>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Scrape {
    port: String,
    path: String,
    interval: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
enum Issuer {
    SelfSigned {},
    #[serde(rename_all = "camelCase")]
    Ca {
        secret_name: String,
    },
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Certificate {
    secret_name: String,
    duration: String,
    issuer_ref: IssuerRef,
    private_key: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    renew_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    common_name: Option<String>,
    #[serde(rename = "isCA", skip_serializing_if = "Option::is_none")]
    is_ca: Option<bool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    usages: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IssuerRef {
    group: String,
    kind: String,
    name: String,
}
