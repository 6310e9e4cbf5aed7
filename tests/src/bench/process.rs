//! Child processes on one processor that do not outlive the harness.
//!
//! `taskset` and `setpriv` come with every Linux distribution (util-linux) and replace themselves by the program, so the
//! process that is started is the one that is measured, and no unsafe code is needed here.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// A running child on one processor, killed when this is dropped.
#[derive(Debug)]
pub struct Pinned {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Pinned {
    /// Starts `program` on processor `core`, with its output in `DIR/NAME.log`.
    ///
    /// # Errors
    ///
    /// Fails if the log cannot be made or `setpriv` cannot be started. A missing program shows in
    /// [`ensure_running`](Self::ensure_running), because it is `taskset` that looks for it.
    pub fn start<I: AsRef<OsStr>>(
        dir: &Path,
        name: &str,
        core: usize,
        program: &Path,
        args: impl IntoIterator<Item = I>,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "taskset", "-c", &core.to_string()])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the log file")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name} through setpriv (from util-linux)"))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// The process whose time is measured.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Checks that the child has not ended.
    ///
    /// # Errors
    ///
    /// Fails with the child's last words if it has.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("ask after a child")? {
            bail!("{} ended with {status}: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// The end of what the child wrote, for error messages.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Both fail only if the child is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Moves this process to processor `core`. To be called before there is a second thread, which would stay behind.
///
/// # Errors
///
/// Fails if `taskset` is missing or refuses.
pub fn pin_self(core: usize) -> Result<()> {
    let output = Command::new("taskset")
        .args(["-c", "-p", &core.to_string(), &std::process::id().to_string()])
        .output()
        .context("run taskset (from util-linux)")?;
    ensure!(output.status.success(), "pin to processor {core}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
