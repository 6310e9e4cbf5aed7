//! Pods to the owners of addresses.

use std::{cmp::Reverse, net::IpAddr};

use api::resource::{name::NamespacedName, workload::Workload};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

/// What is kept of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Addresses that are its own; none if it shares those of its node, or has run to its end.
    pub addresses: Vec<IpAddr>,
    /// Name of its node; empty when unknown.
    pub node: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

// === impl Facts ===

impl Facts {
    /// What is to be known of `pod`.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let host_network = spec.is_some_and(|spec| spec.host_network == Some(true));
        let ended = status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
        let listed = status.into_iter().flat_map(|status| {
            status.pod_ips.iter().flatten().map(|address| address.ip.as_str()).chain(status.pod_ip.as_deref())
        });
        let mut addresses: Vec<IpAddr> = listed.filter_map(|address| address.parse().ok()).collect();
        addresses.sort();
        addresses.dedup();
        Self {
            addresses: if host_network || ended { vec![] } else { addresses },
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        }
    }
}

/// The owner of `address` among the Pods that claim it: one that stays, and of these the newest, because addresses are
/// used again before the last trace of their former owner is gone.
pub fn derive<'a>(
    address: IpAddr,
    claimants: impl IntoIterator<Item = (&'a NamespacedName, &'a Facts)>,
) -> Option<Workload> {
    let rank = |(name, facts): &(&'a NamespacedName, &'a Facts)| (!facts.deleting, facts.created, Reverse(*name));
    let (pod, facts) = claimants.into_iter().max_by_key(rank)?;
    Some(Workload { address, pod: pod.clone(), node: facts.node.clone() })
}
