//! The program itself, as child processes that end with the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A running `portico`. Dropping it kills it.
#[derive(Debug)]
pub struct Portico {
    child: Child,
}

/// Path of the program that `cargo build -p portico` makes, in the profile of the running test.
///
/// # Panics
/// When it was not built.
pub fn path() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("tests lie in target/PROFILE/deps");
    let path = profile.join("portico");
    assert!(path.exists(), "{} is missing: run `cargo build -p portico` first", path.display());
    path
}

// === impl Portico ===

impl Portico {
    /// Starts `portico ARGS`, with the log of the test.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(args: &[&str]) -> Self {
        let child = Command::new(path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("portico {args:?}: {error}"));
        Self { child }
    }

    /// Starts `portico ARGS` with these environment variables, and standard output in a file.
    ///
    /// # Panics
    /// When it cannot be started, or the file cannot be made.
    pub fn start_with(args: &[&str], variables: &[(&str, &str)], stdout: &Path) -> Self {
        let stdout = File::create(stdout).unwrap_or_else(|error| panic!("{}: {error}", stdout.display()));
        let child = Command::new(path())
            .args(args)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(stdout)
            .spawn()
            .unwrap_or_else(|error| panic!("portico {args:?}: {error}"));
        Self { child }
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When it cannot be asked after.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Sends SIGTERM and returns at once.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal_term(&self) {
        let pid = self.id();
        let sent = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot signal {pid}");
    }

    /// Waits for the end; the exit status is what a supervisor sees.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(mut self) -> Option<i32> {
        self.child.wait().expect("a child can be waited for").code()
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes, now and at most since the last [`Portico::forget_peak`].
    ///
    /// # Panics
    /// When the process is gone.
    pub fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the process runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says how much memory");
            let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
            kibibytes << 10
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Makes the most memory so far what is used now.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.id()), "5").expect("the process runs");
    }

    /// Sends SIGTERM and waits; the exit status is what a supervisor sees.
    ///
    /// # Panics
    /// When the process cannot be signalled or waited for.
    pub fn terminate(self) -> Option<i32> {
        self.signal_term();
        self.wait()
    }
}

impl Drop for Portico {
    fn drop(&mut self) {
        // It may have ended; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
