//! Where a command runs: in a node, in the outside client or in a Pod.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::{
    Attached, netns,
    plan::Role,
    process::{self, MARKER, Process},
};

/// The place that is called `node-1`, `client`, `POD` or `NAMESPACE/POD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A network namespace on the bridge.
    Role(Role),
    /// A container of a Pod: its root, its network, its processes.
    Pod {
        /// Namespace in Kubernetes.
        namespace: String,
        /// Name of the Pod.
        name: String,
    },
}

// === impl Place ===

impl Place {
    /// By its name. A name that could be a node's is one; Pods of such a name are reached as `default/NAME`.
    pub fn parse(text: &str) -> Self {
        if let Some(role) = Role::parse(text) {
            return Self::Role(role);
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A command in this place.
    ///
    /// # Errors
    /// When the place is not there.
    pub async fn command(&self, sandbox: &Attached, program: &str) -> Result<Command> {
        let mut command = match self {
            Self::Role(role) => {
                if !sandbox.plan.roles().any(|other| other == *role) {
                    bail!("there is no {}: the sandbox has {} nodes", role.name(), sandbox.plan.nodes);
                }
                netns::command(&role.namespace(), program)
            }
            Self::Pod { namespace, name } => {
                let pods: Api<Pod> = Api::namespaced(sandbox.cluster.client().await?, namespace);
                let pod = pods.get_opt(name).await.context("cannot ask the API server for the Pod")?;
                let pod = pod.with_context(|| format!("there is no Pod {namespace}/{name}"))?;
                let uid = pod.metadata.uid.context("every Pod has a uid")?;
                let process = container(&uid).with_context(|| format!("no container of {namespace}/{name} runs"))?;
                let mut command = Command::new("nsenter");
                command.arg(format!("--target={}", process.pid())).args(["--all", "--root", "--wd", "--", program]);
                command
            }
        };
        command.env(MARKER.0, MARKER.1);
        Ok(command)
    }
}

/// The first process of a Pod's containers: the oldest of [`containers`].
pub fn container(uid: &str) -> Option<Process> {
    containers(uid).into_iter().min_by_key(|process| process.started())
}

/// The processes that have a root directory of this Pod's: the kubelet keeps what belongs to a Pod in a directory named by
/// its uid, and the mounts that a process sees say where they come from.
pub fn containers(uid: &str) -> Vec<Process> {
    let of_pod = |process: &Process| {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid())).unwrap_or_default();
        root_comes_from(&mounts, uid)
    };
    process::all().into_iter().filter(of_pod).collect()
}

/// Whether what is mounted on `/` (field 5) names the uid.
fn root_comes_from(mountinfo: &str, uid: &str) -> bool {
    mountinfo.lines().any(|line| line.split(' ').nth(4) == Some("/") && line.contains(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_node_or_the_client_or_a_pod() {
        let pod = |namespace: &str, name: &str| Place::Pod { namespace: namespace.into(), name: name.into() };
        for (text, place) in [
            ("node-2", Place::Role(Role::Node(2))),
            ("client", Place::Role(Role::Client)),
            ("web-0", pod("default", "web-0")),
            ("default/node-2", pod("default", "node-2")),
            ("portico-system/portico-agent-x", pod("portico-system", "portico-agent-x")),
        ] {
            assert_eq!(Place::parse(text), place);
        }
    }

    #[test]
    fn a_root_belongs_to_the_pod_whose_directory_it_is_made_of() {
        let mountinfo = "90 80 0:50 / / rw - overlay overlay rw,lowerdir=/,upperdir=/run/x/pods/uid-1/web/upper\n\
            91 90 0:51 / /proc rw - proc proc rw\n";
        assert!(root_comes_from(mountinfo, "uid-1"));
        assert!(!root_comes_from(mountinfo, "uid-2"));
        assert!(!root_comes_from("21 1 254:0 / / rw - ext4 /dev/vda rw\n22 21 0:5 / /m rw - o uid-1 rw", "uid-1"));
    }
}
