//! One Node object to one Node resource (S1.7).

use std::net::IpAddr;

use api::resource::node::Node;
use k8s_openapi::api::core::v1;

use crate::emulate::slices::ZONE;

const REGION: &str = "topology.kubernetes.io/region";
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// The resource of a Node. Status and heartbeats are no part of it.
pub fn derive(name: &str, object: &v1::Node) -> Node {
    let labels = object.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned();
    let of_type = |wanted: &str| -> Vec<IpAddr> {
        let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let wanted = addresses.filter(|address| address.type_ == wanted);
        wanted.filter_map(|address| address.address.parse().ok()).collect()
    };
    let spec = object.spec.clone().unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let tainted = spec.taints.iter().flatten().any(|taint| taint.key == LEAVING_TAINT);
    Node {
        name: name.to_owned(),
        internal_addresses: of_type("InternalIP"),
        external_addresses: of_type("ExternalIP"),
        region: label(REGION).unwrap_or_default(),
        zone: label(ZONE).unwrap_or_default(),
        pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
        leaving: tainted || object.metadata.deletion_timestamp.is_some(),
        excluded_from_load_balancers: label(EXCLUDE).is_some_and(|value| !is_false(&value)),
    }
}

/// A boolean false as Go parses it: an empty or unknown value excludes the node (S14.1).
fn is_false(value: &str) -> bool {
    matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False")
}
