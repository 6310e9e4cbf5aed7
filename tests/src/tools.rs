//! Programs of others that the tests drive. `scripts/setup` installs them, `scripts/tools.sh` says where they are.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

/// No program is silent for this long while something is expected of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The checkout.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate lies in the workspace").to_owned()
}

/// Path of a program, as the scripts find it.
///
/// # Panics
/// When it is not installed.
pub fn find(name: &str) -> PathBuf {
    let found = std::process::Command::new("bash")
        .args(["-c", "source scripts/tools.sh && command -v \"$1\"", "bash", name])
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .expect("bash runs");
    assert!(found.status.success(), "{name} is not installed: run scripts/setup");
    PathBuf::from(String::from_utf8(found.stdout).expect("a path in UTF-8").trim())
}

/// A program, to be given arguments and run. It is killed when what runs it is dropped.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(find(name));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A script of `tests/python`, in the environment that has the packages of `scripts/python.txt`.
pub fn python(script: &str) -> Command {
    let mut command = command("python3");
    command.arg("-u").arg(root().join("tests/python").join(script));
    command
}

/// Runs a program to its end. Gives its exit status, standard output and standard error.
///
/// # Panics
/// When it takes too long.
pub async fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} takes too long")).expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A program that says what it sees, line by line. It is killed when this is dropped.
#[derive(Debug)]
pub struct Talker {
    _child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    said: Vec<String>,
}

// === impl Talker ===

impl Talker {
    /// Starts a program. What it writes to standard error goes to the log of the test.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (say, lines) = mpsc::unbounded_channel();
        // Its output is read whether somebody listens or not: it must not have to wait with a full pipe.
        tokio::spawn(async move {
            let mut all = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = all.next_line().await {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        Self { _child: child, lines, said: Vec::new() }
    }

    /// The next line.
    ///
    /// # Panics
    /// When there is none in time, with what was said before.
    pub async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("silence after {:#?}", self.last_words()));
        let line = line.unwrap_or_else(|| panic!("the program ended after {:#?}", self.last_words()));
        self.said.push(line.clone());
        line
    }

    /// The next line, as JSON.
    ///
    /// # Panics
    /// As [`Talker::line`], and when it is not JSON.
    pub async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
    }

    /// The first of the next lines that is as wanted, as JSON; those before it are passed over.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let search = async {
            loop {
                let value = self.json().await;
                if wanted(&value) {
                    return value;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("waited in vain until {what}; last: {:#?}", self.last_words()))
    }

    /// All lines so far, oldest first.
    pub fn said(&self) -> &[String] {
        &self.said
    }

    fn last_words(&self) -> &[String] {
        &self.said[self.said.len().saturating_sub(20)..]
    }
}
