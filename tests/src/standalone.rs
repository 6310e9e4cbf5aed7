//! `portico standalone` as a process of its own, for tests that look at what a process writes and uses.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::{binary::Portico, inspector::Inspector, net::Net};

/// A running `portico standalone`.
#[derive(Debug)]
pub struct Standalone {
    /// Where it is.
    pub net: Net,
    /// The process.
    pub process: Portico,
    /// What its gateway knows.
    pub inspector: Inspector,
    directory: TempDir,
}

// === impl Standalone ===

impl Standalone {
    /// Starts it in a network that was claimed, with manifests by file, more options and environment variables, and waits
    /// until every agent serves.
    ///
    /// # Panics
    /// When it cannot be started, or does not serve in time.
    pub async fn start(net: Net, manifests: &[(&str, &str)], options: &[&str], variables: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let manifest_directory = directory.path().join("manifests");
        std::fs::create_dir(&manifest_directory).expect("a directory can be made");
        for (name, text) in manifests {
            std::fs::write(manifest_directory.join(name), net.place(text)).expect("a manifest can be written");
        }
        let mut args = vec!["standalone".to_owned(), format!("--manifests={}", manifest_directory.display())];
        let own = [
            "--discovery-listen=127.N.0.1:18000",
            "--health-listen=127.N.0.1:18001",
            "--admin-listen=127.N.0.1:18080",
            "--service-cidr=127.N.96.0/20",
            "--load-balancer-pool=127.N.128.0/24",
            "--dns-listen=127.N.0.1:10053",
            "--workers=2",
            "--drain-timeout=3s",
        ];
        args.extend(own.iter().chain(options).map(|option| net.place(option)));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, net.place(value))).collect();
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let process = Portico::start_with(&args, &variables, &directory.path().join("stdout"));
        let inspector = Inspector::new(net.at("0.1", 18_001));
        inspector.serving().await;
        Self { net, process, inspector, directory }
    }

    /// Writes a manifest as editors do: a new file moved over the old one.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let draft = self.directory.path().join(format!("{name}.draft"));
        std::fs::write(&draft, text).expect("a manifest can be written");
        std::fs::rename(&draft, self.path(name)).expect("a manifest can be moved");
    }

    /// Path of a manifest.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("manifests").join(name)
    }

    /// What it wrote to standard output so far.
    ///
    /// # Panics
    /// When that is not text.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("stdout")).expect("text")
    }

    /// Ends it with SIGTERM. Gives the exit status and all of its standard output.
    ///
    /// # Panics
    /// When it cannot be signalled.
    pub fn terminate(self) -> (Option<i32>, String) {
        let Self { process, directory, .. } = self;
        let status = process.terminate();
        (status, std::fs::read_to_string(directory.path().join("stdout")).expect("text"))
    }
}
