//! The kind `AddressPool`: addresses that Services of type LoadBalancer may be given.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Load-balancer addresses, and which Services may have them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "portico.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Auto assign","type":"boolean","jsonPath":".spec.autoAssign"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Networks such as 192.0.2.0/24, and ranges such as 192.0.2.10-192.0.2.20 with both ends included. The first free
    /// address is assigned first.
    #[schemars(length(min = 1))]
    pub addresses: Vec<String>,
    /// Whether Services that ask for neither an address nor a pool are given addresses of this one.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Leave out IPv4 addresses that end in .0 or .255, which some old network devices take for broadcast addresses.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Which Services may have addresses of this pool; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Which Services may have addresses of a pool. Where Services and namespaces are given, both must match.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Order among the pools that fit a Service: 1 before 2, and 0 or none last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub priority: Option<i32>,
    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Labels of namespaces; one selector that matches is enough, as is a name in `namespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Labels of Services; one selector that matches is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

fn yes() -> bool {
    true
}

/// The schema of `metav1.LabelSelector`, as a list.
fn selectors(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "matchLabels": { "type": "object", "additionalProperties": { "type": "string" } },
                "matchExpressions": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["key", "operator"],
                        "properties": {
                            "key": { "type": "string" },
                            "operator": { "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"] },
                            "values": { "type": "array", "items": { "type": "string" } }
                        }
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use kube::CustomResourceExt as _;

    use super::*;

    /// With `UPDATE=1` in the environment the manifest is written.
    #[test]
    fn the_manifest_in_deploy_is_what_the_types_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/crds.yaml");
        let expected = serde_saphyr::to_string(&AddressPool::crd()).expect("a definition is YAML");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &expected).expect("writes");
        }
        let found = fs::read_to_string(&path).expect("deploy/base/crds.yaml");
        assert!(found == expected, "differs; run again with UPDATE=1:\n{expected}");
    }
}
