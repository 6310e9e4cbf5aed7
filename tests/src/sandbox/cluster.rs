//! The control plane: etcd, API server and controller manager, each a process with a log, stopped and started one by one.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    pki::{CA, CA_KEY, SERVICE_ACCOUNT_KEY, SERVICE_ACCOUNT_PUBLIC_KEY},
    plan::{API_PORT, HOST, POD_CIDRS, SERVICE_CIDRS},
    process, programs,
    state::State,
};

/// Where etcd serves: on another port than the usual, which the machine may use otherwise.
const ETCD: &str = "http://127.0.0.1:12379";
const ETCD_PEER: &str = "http://127.0.0.1:12380";

const ETCD_NAME: &str = "etcd";
const API_NAME: &str = "kube-apiserver";
const CONTROLLERS_NAME: &str = "kube-controller-manager";

/// How long a part may take to answer after its start. On an idle machine it is two seconds.
const READY: Duration = Duration::from_secs(60);
/// How long a part may take to end when asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// The control plane of a sandbox.
#[derive(Debug, Clone)]
pub struct Cluster {
    state: State,
}

// === impl Cluster ===

impl Cluster {
    /// The control plane with this state; nothing is started.
    pub fn new(state: State) -> Self {
        // Two crates of this program could each bring a provider of cryptography: this is the one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self { state }
    }

    /// Starts etcd, with what it held before, and waits until it answers.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_etcd(&self) -> Result<()> {
        let mut command = Command::new(programs::find(ETCD_NAME)?);
        command.args([
            format!("--data-dir={}", self.state.etcd().display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            format!("--listen-peer-urls={ETCD_PEER}"),
            format!("--initial-advertise-peer-urls={ETCD_PEER}"),
            format!("--initial-cluster=default={ETCD_PEER}"),
            // Nobody needs this data after a crash of the machine.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ]);
        process::start(&self.state, ETCD_NAME, &command, Stdio::null())?;
        let client = etcd_client()?;
        self.ready(ETCD_NAME, &client, "/health").await
    }

    /// Starts the API server and waits until it is ready, all its start-up hooks included.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start_apiserver(&self) -> Result<()> {
        let pki = |file: &str| self.state.pki(file).display().to_string();
        let mut command = Command::new(programs::find(API_NAME)?);
        command.args([
            format!("--etcd-servers={ETCD}"),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--secure-port={API_PORT}"),
            format!("--advertise-address={}", HOST[0]),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki(CA)),
            format!("--kubelet-certificate-authority={}", pki(CA)),
            format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
            format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", pki(SERVICE_ACCOUNT_PUBLIC_KEY)),
            format!("--service-account-signing-key-file={}", pki(SERVICE_ACCOUNT_KEY)),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            // Agents change the packet rules of their node.
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ]);
        process::start(&self.state, API_NAME, &command, Stdio::null())?;
        self.ready(API_NAME, &self.client().await?, "/readyz").await
    }

    /// Starts the controllers. They work once the API server answers them, and wait until then.
    ///
    /// # Errors
    /// When the process does not start.
    pub fn start_controller_manager(&self) -> Result<()> {
        let pki = |file: &str| self.state.pki(file).display().to_string();
        let mut command = Command::new(programs::find(CONTROLLERS_NAME)?);
        command.args([
            format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
            format!("--authentication-kubeconfig={}", pki("controller-manager.kubeconfig")),
            format!("--authorization-kubeconfig={}", pki("controller-manager.kubeconfig")),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            format!("--service-account-private-key-file={}", pki(SERVICE_ACCOUNT_KEY)),
            format!("--root-ca-file={}", pki(CA)),
            format!("--cluster-signing-cert-file={}", pki(CA)),
            format!("--cluster-signing-key-file={}", pki(CA_KEY)),
            "--allocate-node-cidrs=true".to_owned(),
            format!("--cluster-cidr={}", POD_CIDRS.join(",")),
            format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
            "--node-cidr-mask-size-ipv4=24".to_owned(),
            "--node-cidr-mask-size-ipv6=64".to_owned(),
            "--profiling=false".to_owned(),
        ]);
        process::start(&self.state, CONTROLLERS_NAME, &command, Stdio::null())
    }

    /// Ends the API server and waits for its end. Everything else runs on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_apiserver(&self) -> Result<()> {
        self.stop(API_NAME)
    }

    /// Ends etcd and waits for its end. What it held is kept.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_etcd(&self) -> Result<()> {
        self.stop(ETCD_NAME)
    }

    /// Ends the controllers and waits for their end.
    ///
    /// # Errors
    /// When they do not end.
    pub fn stop_controller_manager(&self) -> Result<()> {
        self.stop(CONTROLLERS_NAME)
    }

    /// Makes etcd forget the history up to now, and gives the revision that is the oldest it still knows. Watches that
    /// want to resume before it get "410 Gone" once the API server, which remembers some history by itself, was started
    /// again.
    ///
    /// # Errors
    /// When etcd refuses.
    pub async fn compact(&self) -> Result<u64> {
        let client = etcd_client()?;
        let ask = async |path: &str, body: Value| {
            let request = Request::post(path).body(body.to_string().into_bytes()).context("a request")?;
            client.request::<Value>(request).await.with_context(|| format!("etcd refuses {path}"))
        };
        // The key does not matter ("\0", the least there is): every answer tells the revision.
        let answer = ask("/v3/kv/range", json!({ "key": "AA==", "keys_only": true, "limit": 1 })).await?;
        let revision = answer["header"]["revision"].as_str().and_then(|revision| revision.parse().ok());
        let revision: u64 = revision.with_context(|| format!("etcd tells no revision: {answer}"))?;
        ask("/v3/kv/compaction", json!({ "revision": revision.to_string(), "physical": true })).await?;
        Ok(revision)
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client> {
        Client::try_from(config(&self.state.kubeconfig()).await?).context("cannot make a client of the API server")
    }

    fn stop(&self, name: &str) -> Result<()> {
        let running: Vec<_> = self.state.process(name).into_iter().collect();
        process::end(&running, GRACE).with_context(|| format!("cannot stop {name}"))
    }

    async fn ready(&self, name: &str, client: &Client, path: &str) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let request = Request::get(path).body(Vec::new()).context("a request")?;
            let Err(error) = client.request_text(request).await else { return Ok(()) };
            let log = || process::last_lines(&self.state.log(name));
            ensure!(self.state.is_running(name), "{name} ended: {}", log());
            if Instant::now() >= deadline {
                bail!("{name} is not ready in time ({error}): {}", log());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// How a part reaches the API server, from the kubeconfig that was written for it.
///
/// # Errors
/// When it cannot be read.
pub async fn config(kubeconfig: &Path) -> Result<Config> {
    let context = || format!("cannot use {}", kubeconfig.display());
    let file = Kubeconfig::read_from(kubeconfig).with_context(context)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(context)?;
    // A proxy in the environment is not meant for this network.
    config.proxy_url = None;
    Ok(config)
}

/// etcd answers JSON at the paths of its gRPC methods.
fn etcd_client() -> Result<Client> {
    let mut config = Config::new(ETCD.parse().context("an address")?);
    config.proxy_url = None;
    Client::try_from(config).context("cannot make a client of etcd")
}
