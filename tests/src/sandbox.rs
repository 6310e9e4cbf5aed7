//! A cluster on one machine: the real API server, controller manager and etcd, and network namespaces for nodes.
//!
//! What runs is recorded under [`state::ROOT`], so that any process can look at it and remove it, also after a crash.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::time::Instant;

use self::{
    cluster::Cluster,
    plan::{Plan, Role},
    process::Owner,
    state::{Lock, State},
};

/// Names and addresses: what is where.
pub mod plan;
/// The state directory, and the lock that says whose it is.
pub mod state;
/// The programs of Kubernetes and etcd, at the versions of `tests/cluster`.
pub mod programs;
/// Processes that outlive who started them.
pub mod process;
/// Network namespaces, and what connects them.
pub mod netns;
/// Keys and certificates of the cluster.
pub mod pki;
/// The control plane: etcd, API server and controller manager.
pub mod cluster;
/// Processes of nodes: kubelets, kube-proxy, and what every cluster has once.
pub mod nodes;
/// Routes between nodes, to each other's Pods.
pub mod routes;
/// Where a command runs: in a node, in the outside client or in a Pod.
pub mod exec;
/// Removing everything, whatever state it is in.
pub mod cleanup;
/// The sandbox that all tests of a program share.
pub mod shared;
/// Portico on a sandbox.
pub mod portico;

/// How long the nodes may take to be ready. On an idle machine it is a few seconds.
const NODES_READY: Duration = Duration::from_secs(90);

/// A running sandbox. Dropping it takes it down, unless it was [left running](Sandbox::leave_running).
#[derive(Debug)]
pub struct Sandbox {
    plan: Plan,
    state: State,
    cluster: Cluster,
    lock: Option<Lock>,
}

// === impl Sandbox ===

impl Sandbox {
    /// Brings a sandbox up, and returns when every node is ready. `say` is told what is being done.
    ///
    /// # Errors
    /// When not root, when there is a sandbox already, or when a part does not start; then nothing of it is left but
    /// the logs' last lines in the error.
    pub async fn up(plan: Plan, lock: Lock, owner: Owner, say: impl Fn(&str)) -> Result<Self> {
        for program in programs::ALL {
            programs::find(program)?;
        }
        // What a crash left behind. Whoever holds the lock is alone.
        cleanup::remove_all().context("cannot remove what an earlier sandbox left")?;
        let state = State::create(&plan)?;
        let cluster = Cluster::new(state.clone());
        // From here on, leaving early drops this, which removes what there is so far.
        let this = Self { plan, state, cluster, lock: Some(lock) };
        say("certificates and keys");
        pki::issue(&this.state, &this.plan)?;
        say(&format!("network: bridge {} and {} nodes as namespaces", plan::BRIDGE, this.plan.nodes));
        netns::build(&this.plan)?;
        say("etcd, API server, controller manager");
        this.cluster.start_etcd().await?;
        this.cluster.start_apiserver().await?;
        this.cluster.start_controller_manager()?;
        say("nodes");
        let lock = this.lock.as_ref().context("the lock is held until the end")?;
        nodes::start_keeper(&this.state, &this.plan, lock, owner)?;
        for node in 1..=this.plan.nodes {
            nodes::start_kubelet(&this.state, &this.plan, node)?;
        }
        this.nodes_ready().await?;
        for node in &this.plan.kube_proxy {
            say(&format!("kube-proxy on {}", plan::node_name(*node)));
            nodes::start_kube_proxy(&this.state, *node)?;
        }
        Ok(this)
    }

    /// The sandbox that runs on this machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach() -> Result<Attached> {
        let state = State::open()?;
        Ok(Attached { plan: state.plan()?, cluster: Cluster::new(state.clone()), state })
    }

    /// Takes it down and removes what it consists of.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn down(mut self) -> Result<()> {
        let _lock = self.lock.take();
        cleanup::remove_all()
    }

    /// Lets it run after this process.
    pub fn leave_running(mut self) {
        // The process that keeps the nodes holds the same lock.
        self.lock = None;
    }

    /// What it consists of.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The control plane, to be stopped and started.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<kube::Client> {
        self.cluster.client().await
    }

    /// Path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.kubeconfig()
    }

    /// `kubectl` for the administrator.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = Command::new(programs::find("kubectl")?);
        command.env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }

    /// Cuts the power of a node: its kubelet and all processes of its Pods end at once, and nobody tells the API server.
    ///
    /// # Errors
    /// When they do not end.
    pub fn stop_node(&self, node: u8) -> Result<()> {
        nodes::stop_kubelet(&self.state, node)
    }

    /// Ends kube-proxy on a node and removes what it leaves when it ends: packet rules, and connections that follow them.
    ///
    /// # Errors
    /// When it does not end, or the rules stay.
    pub fn stop_kube_proxy(&self, node: u8) -> Result<()> {
        nodes::stop_kube_proxy(&self.state, node)
    }

    /// Starts the kubelet of a node again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_node(&self, node: u8) -> Result<()> {
        nodes::start_kubelet(&self.state, &self.plan, node)
    }

    /// A command in the network namespace of a node or of the outside client.
    pub fn command(&self, role: Role, program: &str) -> Command {
        netns::command(&role.namespace(), program)
    }

    /// Waits until every node is Ready and the others know the way to its Pods.
    async fn nodes_ready(&self) -> Result<()> {
        let client = self.client().await?;
        let deadline = Instant::now() + NODES_READY;
        loop {
            let waiting = nodes::not_ready(&client, &self.plan).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            let ended = self.state.processes().into_iter().find(|name| !self.state.is_running(name));
            if let Some(ended) = ended {
                bail!("{ended} ended: {}", process::last_lines(&self.state.log(&ended)));
            }
            if Instant::now() >= deadline {
                let log = process::last_lines(&self.state.log(&nodes::kubelet_process(1)));
                bail!("nodes are not ready in time: {}; {log}", waiting.join(", "));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(error) = cleanup::remove_all()
        {
            eprintln!("sandbox: cannot remove everything: {error:#}; run `sandbox down`");
        }
    }
}

/// A sandbox that another process brought up.
#[derive(Debug)]
pub struct Attached {
    /// What it consists of.
    pub plan: Plan,
    /// Its files.
    pub state: State,
    /// Its control plane.
    pub cluster: Cluster,
}
