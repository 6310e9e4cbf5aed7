//! Portico in place of kube-proxy, deployed as the installation guide says.

use crate::{kubectl::Kubectl, tools};

use super::{Sandbox, programs};

/// The namespace that it is deployed to.
pub const SYSTEM: &str = "portico-system";

/// Applies the manifests, and returns when everything is rolled out. Gateways get variables, each as `NAME=VALUE`.
///
/// # Panics
/// When it is not in time; with what its Pods say.
pub async fn deploy(sandbox: &Sandbox, gateway: &[&str]) -> Kubectl {
    let kubectl = Kubectl::new(programs::find("kubectl").expect("kubectl"), sandbox.kubeconfig());
    let overlay = tools::root().join("deploy/overlays/sandbox-replace-kube-proxy");
    kubectl.words(&["apply", "-k", &overlay.display().to_string()]).await;
    if !gateway.is_empty() {
        kubectl.words(&[&["-n", SYSTEM, "set", "env", "deployment/portico-gateway"], gateway].concat()).await;
    }
    kubectl.rolled_out(SYSTEM, "deployment/portico-gateway").await;
    kubectl.rolled_out(SYSTEM, "daemonset/portico-agent").await;
    kubectl
}
