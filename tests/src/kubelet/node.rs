//! The Node object: registration, Lease and conditions.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::Config;

/// Port of the kubelet's own server, as in every cluster.
pub const PORT: u16 = 10250;
/// What every node says it has. Nothing is limited to it.
pub const CAPACITY: [(&str, &str); 4] =
    [("cpu", "8"), ("memory", "16Gi"), ("ephemeral-storage", "64Gi"), ("pods", "110")];
/// How long the node counts as alive after a renewal. The real kubelet's default.
const LEASE_SECONDS: i32 = 40;
/// How often the Lease is renewed. A quarter of the real kubelet's ten seconds, so that clusters that look for failed
/// nodes more eagerly than usual can be tried.
const RENEWAL: Duration = Duration::from_millis(2500);
/// How often it is looked whether the Node has addresses for Pods, which takes the node controller a moment.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is looked whether the Node says of itself what is true.
const REPORT: Duration = Duration::from_secs(1);

/// Makes the Node if there is none, and gives it. Asks until the API server answers.
///
/// # Errors
/// When the API server refuses it.
pub async fn register(client: &Client, config: &Config) -> anyhow::Result<Node> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = Node {
        metadata: ObjectMeta { name: Some(config.node.clone()), labels: Some(labels(config)), ..Default::default() },
        ..Default::default()
    };
    loop {
        match nodes.create(&PostParams::default(), &node).await {
            Ok(node) => return Ok(node),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let patch = Patch::Merge(json!({ "metadata": { "labels": labels(config) } }));
                return Ok(nodes.patch(&config.node, &PatchParams::default(), &patch).await?);
            }
            Err(kube::Error::Api(status)) if status.code < 500 => {
                return Err(kube::Error::Api(status)).with_context(|| format!("Node {} is refused", config.node));
            }
            Err(error) => {
                tracing::warn!(node = config.node, %error, "cannot register the Node; trying again");
                tokio::time::sleep(REPORT).await;
            }
        }
    }
}

/// Renews the Lease of a Node for ever: this is what says that the node lives.
///
/// # Errors
/// None; what fails is tried again at the next renewal.
pub async fn renew(client: Client, node: String, uid: Option<String>) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.clone(),
        uid: uid.unwrap_or_default(),
        ..Default::default()
    };
    let mut ticks = tokio::time::interval(RENEWAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let renewed = json!({ "spec": { "holderIdentity": node, "renewTime": MicroTime(Timestamp::now()) } });
        let outcome = match leases.patch(&node, &PatchParams::default(), &Patch::Merge(renewed)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(node.clone()),
                        owner_references: Some(vec![owner.clone()]),
                        ..Default::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(node.clone()),
                        lease_duration_seconds: Some(LEASE_SECONDS),
                        renew_time: Some(MicroTime(Timestamp::now())),
                        ..Default::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await
            }
            outcome => outcome,
        };
        if let Err(error) = outcome {
            tracing::warn!(node, %error, "cannot renew the Lease");
        }
    }
}

/// Keeps the status of the Node true for ever, also after the node controller has called a silent node unreachable.
///
/// # Errors
/// None; what fails is tried again.
pub async fn report(client: Client, config: Config) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client);
    let mut ticks = tokio::time::interval(REPORT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = report_once(&nodes, &config).await {
            tracing::warn!(node = config.node, %error, "cannot report the status of the Node");
        }
    }
}

/// The ranges of addresses that a Node's Pods have, once the Node has them.
pub async fn pod_ranges(client: &Client, node: &str) -> Vec<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    loop {
        match nodes.get_opt(node).await {
            Ok(found) => {
                let ranges = found.and_then(|node| node.spec?.pod_cidrs).unwrap_or_default();
                if !ranges.is_empty() {
                    return ranges;
                }
            }
            Err(error) => tracing::warn!(node, %error, "cannot read the Node"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn report_once(nodes: &Api<Node>, config: &Config) -> Result<(), kube::Error> {
    let Some(node) = nodes.get_opt(&config.node).await? else { return Ok(()) };
    let before = node.status.clone().unwrap_or_default();
    let cidrs = node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
    let conditions = conditions(before.conditions.as_deref().unwrap_or_default(), !cidrs.is_empty(), Timestamp::now());
    let said = before.conditions.unwrap_or_default();
    let same = |condition: &NodeCondition| said.iter().any(|old| same_statement(old, condition));
    if conditions.iter().all(same) && before.addresses.is_some() {
        return Ok(());
    }
    let mut status = json!(status(config, conditions));
    // By this the API server passes WebSockets of `kubectl exec` on as they are, instead of making SPDY of them.
    status["declaredFeatures"] = json!(["ExtendWebSocketsToKubelet"]);
    // A strategic patch keeps the conditions of others, such as NetworkUnavailable. It would merge addresses by their
    // type, of which there are two with the same one for each family; so these are replaced as a whole.
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.push(json!({ "$patch": "replace" }));
    }
    let patch = Patch::Strategic(json!({ "status": status }));
    nodes.patch_status(&config.node, &PatchParams::default(), &patch).await?;
    Ok(())
}

fn labels(config: &Config) -> BTreeMap<String, String> {
    let labels = [
        ("kubernetes.io/hostname", config.node.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("topology.kubernetes.io/zone", &config.zone),
        ("topology.kubernetes.io/region", "sandbox"),
    ];
    labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn status(config: &Config, conditions: Vec<NodeCondition>) -> NodeStatus {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let mut addresses: Vec<_> = config.addresses.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.node.clone()));
    let capacity: BTreeMap<_, _> =
        CAPACITY.iter().map(|(name, value)| ((*name).to_owned(), Quantity((*value).to_owned()))).collect();
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(capacity.clone()),
        allocatable: Some(capacity),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(PORT) }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().to_owned(),
            operating_system: "linux".to_owned(),
            os_image: "Portico sandbox".to_owned(),
            kernel_version: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            container_runtime_version: "processes://1".to_owned(),
            kubelet_version: "v1.36.3".to_owned(),
            machine_id: config.node.clone(),
            system_uuid: config.node.clone(),
            boot_id: config.node.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The conditions of a Node whose network is ready or not, given what it said before: the time of a transition moves
/// when the status does.
fn conditions(before: &[NodeCondition], network: bool, now: Timestamp) -> Vec<NodeCondition> {
    let ready = match network {
        true => ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        false => ("Ready", "False", "KubeletNotReady", "the network is not ready: spec.podCIDRs is empty"),
    };
    let enough = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ];
    let condition = |(type_, status, reason, message): (&str, &str, &str, &str)| {
        let unchanged = before.iter().find(|old| old.type_ == type_ && old.status == status);
        NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: unchanged.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
        }
    };
    enough.into_iter().chain([ready]).map(condition).collect()
}

fn same_statement(one: &NodeCondition, other: &NodeCondition) -> bool {
    one.type_ == other.type_ && one.status == other.status && one.reason == other.reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_pod_addresses_is_not_ready_and_says_why() {
        let conditions = conditions(&[], false, Timestamp::UNIX_EPOCH);
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "False");
        assert!(ready.message.as_ref().unwrap().contains("podCIDRs"));
    }

    #[test]
    fn the_time_of_a_transition_moves_with_the_status_only() {
        let later = Timestamp::from_second(60).unwrap();
        let first = conditions(&[], false, Timestamp::UNIX_EPOCH);
        let second = conditions(&first, true, later);
        let time = |of: &[NodeCondition], type_: &str| {
            of.iter().find(|condition| condition.type_ == type_).unwrap().last_transition_time.clone().unwrap().0
        };
        assert_eq!(time(&second, "Ready"), later);
        assert_eq!(time(&second, "DiskPressure"), Timestamp::UNIX_EPOCH);
    }
}
