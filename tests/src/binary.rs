//! The program itself, as child processes that end with the test.

use std::{
    path::PathBuf,
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

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits; the exit status is what a supervisor sees.
    ///
    /// # Panics
    /// When the process cannot be signalled or waited for.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id();
        let sent = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot signal {pid}");
        self.child.wait().expect("a child can be waited for").code()
    }
}

impl Drop for Portico {
    fn drop(&mut self) {
        // It may have ended; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
