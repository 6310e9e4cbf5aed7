//! The state directory: what a sandbox consists of, its keys, logs and processes. It is in memory on most systems, and
//! gone after a restart of the machine, as everything it tells of.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    plan::Plan,
    process::{self, Process},
};

/// The state directory.
pub const ROOT: &str = "/run/portico-sandbox";
/// Whoever brings a sandbox up holds this locked, and after that the process that keeps its nodes.
const LOCK: &str = "/run/portico-sandbox.lock";

/// The state directory of the sandbox.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

/// The right to have the sandbox of this machine. It ends with the last process that has it, however that ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

// === impl State ===

impl State {
    /// Makes the directory, and writes down the plan.
    ///
    /// # Errors
    /// When there is one already, and those of the file system.
    pub fn create(plan: &Plan) -> Result<Self> {
        let this = Self { root: PathBuf::from(ROOT) };
        fs::create_dir(&this.root).with_context(|| format!("cannot make {ROOT}"))?;
        for part in ["pki", "logs", "pids"] {
            fs::create_dir(this.root.join(part)).with_context(|| format!("cannot make {ROOT}/{part}"))?;
        }
        let plan = serde_json::to_vec_pretty(plan).context("a plan is JSON")?;
        fs::write(this.plan_file(), plan).context("cannot write the plan")?;
        Ok(this)
    }

    /// The directory of the sandbox that is there.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self> {
        let this = Self { root: PathBuf::from(ROOT) };
        ensure!(this.plan_file().exists(), "there is no sandbox on this machine: bring one up with `sandbox up`");
        Ok(this)
    }

    /// What was asked for.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn plan(&self) -> Result<Plan> {
        let text = fs::read(self.plan_file()).context("cannot read the plan of the sandbox")?;
        serde_json::from_slice(&text).context("the plan of the sandbox is damaged: run `sandbox down`")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// A certificate, a key or a kubeconfig of a part.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.root.join("pki").join(file)
    }

    /// What a process says.
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// Data of etcd.
    pub fn etcd(&self) -> PathBuf {
        self.root.join("etcd")
    }

    /// What the kubelet of a node keeps.
    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    /// Writes down that a process runs.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn record(&self, name: &str, process: Process) -> Result<()> {
        fs::write(self.pid_file(name), process.to_string()).with_context(|| format!("cannot write the pid of {name}"))
    }

    /// The process of this name, while it runs.
    pub fn process(&self, name: &str) -> Option<Process> {
        let recorded = fs::read_to_string(self.pid_file(name)).ok()?.parse().ok();
        recorded.filter(|process: &Process| process.is_running())
    }

    /// Whether the process of this name runs.
    pub fn is_running(&self, name: &str) -> bool {
        self.process(name).is_some()
    }

    /// Names of all processes that were ever started, sorted.
    pub fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("pids")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn plan_file(&self) -> PathBuf {
        self.root.join("plan.json")
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.root.join("pids").join(name)
    }
}

// === impl Lock ===

impl Lock {
    /// Waits for the lock, as long as `patience`. `say` is told when there is something to wait for.
    ///
    /// # Errors
    /// When another process has it all that time, and when this is not root.
    pub fn take(patience: Duration, say: impl Fn(&str)) -> Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "a sandbox makes network namespaces: this needs root");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(LOCK)
            .with_context(|| format!("cannot open {LOCK}"))?;
        let deadline = Instant::now() + patience;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {LOCK}")),
                Err(TryLockError::WouldBlock) => {}
            }
            let mut holder = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut holder)).context("cannot read the lock")?;
            if Instant::now() >= deadline {
                bail!(
                    "there is a sandbox on this machine already, brought up by process {}: `sandbox status` shows it, \
                     `sandbox down` removes it",
                    holder.trim()
                );
            }
            if !std::mem::replace(&mut told, true) {
                say(&format!("waiting for the sandbox of process {}", holder.trim()));
            }
            process::pause(Duration::from_millis(100));
        }
        file.set_len(0).and_then(|()| file.rewind()).context("cannot write the lock")?;
        write!(file, "{}", std::process::id()).context("cannot write the lock")?;
        Ok(Self { file })
    }

    /// Gives the right to a child too, which has it as its standard input: of what a child inherits, this is what a
    /// program has to name, so that no grandchild gets it by accident.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn share(&self) -> Result<Stdio> {
        Ok(self.file.try_clone().context("cannot share the lock")?.into())
    }
}

/// Makes a directory and those above it.
///
/// # Errors
/// Those of the file system.
pub fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}
