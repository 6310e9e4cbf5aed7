//! A Kubernetes cluster on this machine: the real control plane, and nodes that are network namespaces.

use std::{net::IpAddr, os::unix::process::CommandExt as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use runtime::shutdown;
use tests::sandbox::{
    Sandbox, cleanup,
    exec::Place,
    nodes,
    plan::{MOST_NODES, Plan, Role},
    process::{Owner, Process},
    programs,
    state::{Lock, State},
};
use tokio_util::sync::CancellationToken;

/// How long `down` waits for what it ended to let go of the lock.
const LET_GO: Duration = Duration::from_secs(10);

/// A Kubernetes cluster on this machine: real etcd, API server and controller manager; nodes are network namespaces.
#[derive(Parser)]
#[command(name = "sandbox")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a cluster up, and leave it running
    Up(UpArgs),
    /// End and remove everything, also what a crash left
    Down,
    /// Say what runs
    Status,
    /// Run a command in a node, in the outside client or in a Pod
    Exec {
        /// `node-1`, `client`, `POD` or `NAMESPACE/POD`
        place: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// What a cluster has once; `up` starts it
    #[command(hide = true)]
    Keep {
        /// Remove the sandbox when this process has ended
        #[arg(long, value_name = "PID:START")]
        owner: Option<Process>,
    },
    /// The kubelet of a node; `up` starts it
    #[command(hide = true)]
    Kubelet {
        /// Number of the node
        node: u8,
    },
}

#[derive(clap::Args)]
struct UpArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    nodes: u8,
    /// Nodes that run the real kube-proxy, such as node-1,node-2
    #[arg(long, value_name = "NODE", value_delimiter = ',', value_parser = node)]
    kube_proxy: Vec<u8>,
    /// Name servers of Pods, such as 169.254.20.53 [default: the ClusterIPs of the Service kube-system/kube-dns]
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The program that Pods with the image `portico` run [default: beside this one]
    #[arg(long, env = "PORTICO_BIN", value_name = "PATH")]
    portico: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(args) => up(args).await,
        Command::Down => down(),
        Command::Status => status(),
        Command::Exec { place, command } => exec(&place, &command).await,
        Command::Keep { owner } => {
            log();
            nodes::keep(State::open()?, owner.map_or(Owner::Nobody, Owner::Process), terminated()).await
        }
        Command::Kubelet { node } => {
            log();
            nodes::run_kubelet(State::open()?, node, terminated()).await
        }
    }
}

async fn up(args: UpArgs) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let portico = args.portico.unwrap_or_else(|| program.with_file_name("portico"));
    let portico = portico.canonicalize().with_context(|| {
        format!("--portico: there is no {}; build it with `cargo build -p portico`", portico.display())
    })?;
    if let Some(node) = args.kube_proxy.iter().find(|node| **node > args.nodes) {
        bail!("--kube-proxy: there is no {} among {} nodes", Role::Node(*node).name(), args.nodes);
    }
    let lock = Lock::take(Duration::ZERO, say)?;
    let plan = Plan { nodes: args.nodes, kube_proxy: args.kube_proxy, cluster_dns: args.cluster_dns, portico, program };
    let sandbox = tokio::select! {
        up = Sandbox::up(plan, lock, Owner::Nobody, say) => up?,
        // What is there so far is removed as the other branch is dropped.
        signal = shutdown::signal() => bail!("{signal}"),
    };
    let kubectl = programs::find("kubectl")?;
    println!(
        "The cluster is ready, and stays until `sandbox down`.\n\n\
         \x20 export KUBECONFIG={}\n\
         \x20 {} get nodes -o wide\n\
         \x20 sandbox exec node-1 -- ip address\n\
         \x20 sandbox exec client -- curl -k https://10.245.0.1:6443/version\n\
         \x20 sandbox down",
        sandbox.kubeconfig().display(),
        kubectl.display(),
    );
    sandbox.leave_running();
    Ok(())
}

fn down() -> Result<()> {
    ensure!(nix::unistd::Uid::effective().is_root(), "this needs root");
    // Ends what holds the lock, unless that is somebody who is still bringing a sandbox up.
    cleanup::remove_all()?;
    let _lock = Lock::take(LET_GO, say)?;
    // A process that held the lock may have made something meanwhile.
    cleanup::remove_all()?;
    say("everything is removed");
    Ok(())
}

fn status() -> Result<()> {
    let sandbox = Sandbox::attach()?;
    println!("kubeconfig {}", sandbox.state.kubeconfig().display());
    println!("{:<28} {:<8} LOG", "PROCESS", "PID");
    let mut ended = Vec::new();
    for name in sandbox.state.processes() {
        let process = sandbox.state.process(&name);
        let pid = process.map_or("ended".to_owned(), |process| process.pid().to_string());
        println!("{name:<28} {pid:<8} {}", sandbox.state.log(&name).display());
        if process.is_none() {
            ended.push(name);
        }
    }
    ensure!(ended.is_empty(), "processes have ended: {}", ended.join(", "));
    Ok(())
}

async fn exec(place: &str, command: &[String]) -> Result<()> {
    let sandbox = Sandbox::attach()?;
    ensure!(nix::unistd::Uid::effective().is_root(), "this needs root");
    let (program, arguments) = command.split_first().context("a command")?;
    let mut command = Place::parse(place).command(&sandbox, program).await?;
    // Becomes the command, so that its exit status and its signals are this one's.
    Err(command.args(arguments).exec()).context("cannot run nsenter (of util-linux)")
}

fn node(text: &str) -> Result<u8, String> {
    match Role::parse(text) {
        Some(Role::Node(number)) => Ok(number),
        _ => Err("must be the name of a node, such as node-1".to_owned()),
    }
}

/// Background processes write their log to standard output, which is a file.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SANDBOX_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter).init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Cancelled by SIGTERM or SIGINT.
fn terminated() -> CancellationToken {
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        shutdown::signal().await;
        stop.cancel();
    });
    token
}

fn say(what: &str) {
    eprintln!("sandbox: {what}");
}
