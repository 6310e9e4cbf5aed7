//! `kubectl`, as people type it.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt as _, process::Command};

/// Nothing that a test waits for takes this long, unless it says so.
const PATIENCE: Duration = Duration::from_secs(120);

/// `kubectl` with the rights of an administrator.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

// === impl Kubectl ===

impl Kubectl {
    /// This program, with these credentials.
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// Runs a command line, words separated by blanks, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn run(&self, line: &str) -> String {
        self.words(&line.split_whitespace().collect::<Vec<_>>()).await
    }

    /// As [`Kubectl::run`], word by word.
    ///
    /// # Panics
    /// When it fails.
    pub async fn words(&self, words: &[&str]) -> String {
        self.attempt(words, "").await.unwrap_or_else(|error| panic!("kubectl {}: {error}", words.join(" ")))
    }

    /// Applies manifests.
    ///
    /// # Panics
    /// When it fails.
    pub async fn apply(&self, manifests: &str) {
        let applied = self.attempt(&["apply", "-f", "-"], manifests).await;
        applied.unwrap_or_else(|error| panic!("kubectl apply: {error}\n{manifests}"));
    }

    /// Runs a command until what it prints is as expected.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn until(&self, line: &str, what: &str, done: impl Fn(&str) -> bool) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // An API server that is away is one of the things that are waited for.
            let seen = self.attempt(&words, "").await;
            if let Ok(seen) = &seen
                && done(seen)
            {
                return seen.clone();
            }
            assert!(Instant::now() < deadline, "waited in vain until {what}: kubectl {line}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until a Deployment or DaemonSet is rolled out.
    ///
    /// # Panics
    /// When it is not in time; with what its Pods say.
    pub async fn rolled_out(&self, namespace: &str, object: &str) {
        let line = ["-n", namespace, "rollout", "status", object, "--timeout=180s"];
        if let Err(error) = self.attempt(&line, "").await {
            let pods = self.attempt(&["-n", namespace, "get", "pods", "-o", "wide"], "").await;
            let events = self.attempt(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"], "").await;
            panic!("{object}: {error}\n{}\n{}", pods.unwrap_or_default(), events.unwrap_or_default());
        }
    }

    /// What it printed, else what it complained of.
    ///
    /// # Errors
    /// When it fails.
    pub async fn attempt(&self, words: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(words).env("KUBECONFIG", &self.kubeconfig).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut stdin = child.stdin.take().ok_or("no standard input")?;
        stdin.write_all(input.as_bytes()).await.map_err(|error| error.to_string())?;
        drop(stdin);
        let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }
}
