//! The one binary of Portico: options to configuration, one subcommand, an exit status.
//!
//! 0 done, 1 failed while running, 2 wrong usage or configuration. Results go to standard output, all else to standard
//! error.

use anyhow::Context;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use portico_cli::echo::{self, args::EchoArgs};
use portico_cli::get::{self, args::GetArgs};
use portico_cli::serve;
use portico_cli::standalone::{self, StandaloneArgs};
use runtime::args::Problems;
use runtime::args::log::{LogArgs, LogConfig};
use runtime::{drain, shutdown, telemetry};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sidecarless service gateway for Kubernetes
#[derive(Debug, Parser)]
#[command(name = "portico", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Gateway and one agent per Node in one process, from manifests, without a cluster
    Standalone(Box<StandaloneArgs>),
    /// Control plane: watches a cluster or a directory of manifests, and publishes to agents
    Gateway(Box<gateway::config::Args>),
    /// Data plane of one node
    Agent(Box<agent::config::Args>),
    /// Sample backend: HTTP/1.1, h2c, gRPC, WebSocket, TCP and UDP on one port; answers with what it saw
    Echo(EchoArgs),
    /// State of a running gateway: services, endpoints, nodes, agents or health
    Get(GetArgs),
}

/// Why the process ends with another status than 0.
enum Failure {
    /// Wrong usage or configuration.
    Usage(Problems),
    /// All else.
    Running(anyhow::Error),
}

fn main() -> ExitCode {
    // Before anything can build a TLS configuration. It fails only if one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    raise_file_limit();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(problems)) => {
            for problem in problems.lines() {
                eprintln!("error: {problem}");
            }
            ExitCode::from(2)
        }
        Err(Failure::Running(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let mut problems = Problems::new();
    let log = cli.log.parse(&mut problems);
    match cli.command {
        Command::Standalone(args) => {
            let config = args.parse(&mut problems);
            let config = ready(problems, log, config)?;
            Ok(block_on(standalone::run(config))?)
        }
        Command::Gateway(args) => {
            let config = args.parse(&mut problems);
            let config = ready(problems, log, config)?;
            Ok(block_on(serve::gateway(config))?)
        }
        Command::Agent(args) => {
            let config = args.parse(&mut problems, std::env::var("NODE_NAME").ok(), &host_name());
            let config = ready(problems, log, config)?;
            Ok(block_on(serve::agent(config))?)
        }
        Command::Echo(args) => {
            let config = args.parse(&mut problems, |name| std::env::var(name).ok());
            let config = ready(problems, log, config)?;
            Ok(serve_echo(config)?)
        }
        Command::Get(args) => {
            let config = args.parse(&mut problems);
            let config = ready(problems, log, config)?;
            Ok(ask(config)?)
        }
    }
}

/// Allows as many open files as the system lets us have. The usual soft limit of 1,024 is for programs that use
/// `select`; each connection is a file here. Where it cannot be raised, accepting reports it when it matters.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Starts the log and gives the configuration, or every problem that kept it from being one.
fn ready<T>(problems: Problems, log: Option<LogConfig>, config: Option<T>) -> Result<T, Failure> {
    problems.finish()?;
    // A parser that notes no problem and gives no value is broken, which a user should not have to guess.
    let (log, config) = log.zip(config).context("an option was refused without a reason")?;
    telemetry::init_logging(log).context("cannot start the log")?;
    Ok(config)
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(work)
}

/// The host name, as the kubelet names its node by default; empty if the system has none.
fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default().to_ascii_lowercase()
}

fn serve_echo(config: echo::EchoConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let bound = echo::bind(config)?;
        for address in bound.addresses() {
            tracing::info!(%address, "listening");
        }
        let (trigger, watch) = drain::channel();
        let signal = async {
            let name = shutdown::signal().await;
            tracing::info!(signal = name, "draining");
            trigger.start();
            std::future::pending().await
        };
        tokio::select! {
            served = bound.serve(watch) => Ok(served?),
            never = signal => never,
        }
    })
}

fn ask(config: get::args::GetConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    Ok(runtime.block_on(get::run(config, std::io::stdout().lock(), std::io::stderr()))?)
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure::Usage(problems)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Running(error)
    }
}
