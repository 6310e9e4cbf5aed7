//! Compares Portico with HAProxy and nginx; `scripts/bench` builds both programs and runs this.

use std::{
    fs::File,
    io::{BufRead, BufReader, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tests::bench::{
    backend, cpu, dns,
    process::{self, Pinned},
    proxy::Proxy,
    report::Report,
    round::{self, Plan},
    scenario::Scenario,
};
use tokio::task::LocalSet;

/// Measures what Portico, HAProxy and nginx spend on the same work.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Role>,
    /// Scenarios to run, all without.
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// Proxies to compare, all without.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Proxy>,
    /// Rounds of each proxy in each scenario.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of a round in seconds.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// What each round runs before it counts, in seconds.
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    warm_up: f64,
    /// The program `portico` [default: beside this one]
    #[arg(long, env = "PORTICO_BIN")]
    portico: Option<PathBuf>,
    /// The program `haproxy`.
    #[arg(long, default_value = "haproxy")]
    haproxy: PathBuf,
    /// The program `nginx`.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Where all figures go, as JSON.
    #[arg(long, default_value = "target/bench/latest.json")]
    json: PathBuf,
}

#[derive(Subcommand)]
enum Role {
    /// Serves as all backends; the harness starts this for itself.
    #[command(hide = true)]
    Backend,
    /// Measures what DNS spends on a question; takes the options `--rounds`, `--seconds` and `--portico` before its name.
    Dns,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Some(Role::Backend) => block_on(backend::serve_all()).map(|never| match never {}),
        Some(Role::Dns) => dns(&args),
        None => compare(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dns(args: &Args) -> Result<()> {
    let cores = cpu::cores()?;
    process::pin_self(cores.load)?;
    let dir = tempfile::tempdir().context("make a directory for manifests and logs")?;
    let length = Duration::from_secs_f64(args.seconds);
    println!("{}", dns::run(&program(args, Proxy::Portico)?, dir.path(), cores, args.rounds, length)?);
    Ok(())
}

fn compare(args: &Args) -> Result<()> {
    let cores = cpu::cores()?;
    process::pin_self(cores.load)?;
    let scenarios = or_all(&args.scenario, &Scenario::ALL);
    let proxies = or_all(&args.only, &Proxy::ALL);
    let plan = Plan {
        rounds: args.rounds.into(),
        measure: Duration::from_secs_f64(args.seconds),
        warm_up: Duration::from_secs_f64(args.warm_up),
    };
    let dir = tempfile::tempdir().context("make a directory for configurations and logs")?;

    block_on(async {
        let _backends = start_backends(dir.path(), cores.load).await?;
        let mut running = Vec::new();
        for proxy in proxies {
            let mut started = proxy.start(&program(args, proxy)?, dir.path(), cores.proxy)?;
            started.ready(&scenarios).await.with_context(|| format!("start {}", proxy.name()))?;
            running.push(started);
        }
        let mut found = Vec::new();
        for scenario in scenarios {
            progress(&format!("{} ...", scenario.title()));
            found.push((scenario, round::series(&mut running, scenario, plan).await?));
        }
        let report = Report::new(&running, plan, found);
        report.write(&args.json)?;
        println!("{}", report.markdown());
        if let Some(warning) = report.warning() {
            eprintln!("bench: warning: {warning}");
        }
        eprintln!("bench: all rounds are in {}", args.json.display());
        Ok(())
    })
}

/// Runs on this thread alone: there is one processor for all that is not a proxy.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("build a runtime")?;
    LocalSet::new().block_on(&runtime, work)
}

/// Starts this program again as the backends, and waits until they listen.
async fn start_backends(dir: &Path, core: usize) -> Result<Pinned> {
    let own = std::env::current_exe().context("find this program")?;
    let mut backends = Pinned::start(dir, "backends", core, &own, ["backend"])?;
    let log = File::open(dir.join("backends.log")).context("open the backends' log")?;
    let mut lines = BufReader::new(log);
    let mut text = String::new();
    while !text.contains(backend::READY) {
        backends.ensure_running()?;
        // At the end of what is written so far, this reads nothing, and says so at once.
        if lines.read_line(&mut text).context("read the backends' log")? == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(backends)
}

fn program(args: &Args, proxy: Proxy) -> Result<PathBuf> {
    let beside = || Ok(std::env::current_exe().context("find this program")?.with_file_name("portico"));
    match proxy {
        Proxy::Portico => args.portico.clone().map_or_else(beside, Ok),
        Proxy::Haproxy => Ok(args.haproxy.clone()),
        Proxy::Nginx => Ok(args.nginx.clone()),
    }
}

fn or_all<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all.to_vec() } else { chosen.to_vec() }
}

fn seconds(text: &str) -> Result<f64> {
    let seconds: f64 = text.parse().context("expected a number of seconds, such as 1.5")?;
    ensure!(seconds > 0.0 && seconds <= 3600.0, "expected more than 0 and at most 3600 seconds");
    Ok(seconds)
}

fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{text}");
    }
}
