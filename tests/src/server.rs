//! Servers that nobody here wrote, as child processes.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// No server is silent for this long while it starts.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server. Dropping it ends it and waits for that.
#[derive(Debug)]
pub struct Server {
    child: Child,
    signal: &'static str,
}

// === impl Server ===

impl Server {
    /// Starts a server and waits until a line of its log contains `ready`. `signal` is the one, such as `-TERM`, on which
    /// it ends at once: some servers would wait for their clients, or leave children behind, with another.
    ///
    /// # Panics
    /// When it cannot be started, ends, or does not get ready; the message has its log.
    pub fn start(command: &mut Command, ready: &str, signal: &'static str) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/setup"));
        let (send, lines) = mpsc::channel();
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("it is a pipe"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("it is a pipe"));
        for pipe in [stdout, stderr] {
            let send = send.clone();
            // It reads to the end, so that the server never waits for us.
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = send.send(line);
                }
            });
        }
        drop(send);
        let this = Self { child, signal };
        let mut log = Vec::new();
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(ready) => return this,
                Ok(line) => log.push(line),
                Err(error) => panic!("{command:?} is not ready ({error}); its log:\n{}", log.join("\n")),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended; either way it is reaped.
        let _ = Command::new("kill").args([self.signal, &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}
