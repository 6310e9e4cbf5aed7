//! A whole Portico in one process: gateway, agents and sample backends, at addresses of its own, so that many can run
//! side by side. Manifests are written with `127.N.` for the addresses; each stack has its own N.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use api::proto::inspect::{ListObjectsResponse, Object, ObjectKind};
use clap::Parser;
use portico_cli::standalone::{self, StandaloneArgs};
use runtime::args::Problems;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{inspector::Inspector, net::Net};

/// A running Portico.
pub struct Stack {
    /// Where it is.
    pub net: Net,
    manifests: TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    inspector: Inspector,
}

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    standalone: StandaloneArgs,
}

// === impl Stack ===

impl Stack {
    /// Starts a stack with these manifests, named by file, and waits until every agent serves.
    pub async fn start(manifests: &[(&str, &str)]) -> Self {
        Self::start_with(manifests, &[]).await
    }

    /// As [`Stack::start`], with more options of `portico standalone`.
    pub async fn start_with(manifests: &[(&str, &str)], options: &[&str]) -> Self {
        Self::start_in(Net::claim(), manifests, options).await
    }

    /// As [`Stack::start_with`], at given addresses.
    ///
    /// # Panics
    /// When it ends instead of serving; the message says why.
    pub async fn start_in(net: Net, manifests: &[(&str, &str)], options: &[&str]) -> Self {
        // It fails only if another stack of the process has installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in manifests {
            std::fs::write(directory.path().join(name), net.place(text)).expect("a manifest can be written");
        }
        let mut line = vec!["portico".to_owned()];
        for (name, value) in [
            ("manifests", directory.path().display().to_string()),
            ("discovery-listen", net.at("0.1", 18_000).to_string()),
            ("health-listen", net.at("0.1", 18_001).to_string()),
            ("admin-listen", net.at("0.1", 18_080).to_string()),
            ("service-cidr", net.place("127.N.96.0/20")),
            ("load-balancer-pool", net.place("127.N.128.0/24")),
            ("dns-listen", net.at("0.1", 10_053).to_string()),
            ("workers", "2".to_owned()),
            ("drain-timeout", "3s".to_owned()),
        ] {
            if !options.iter().any(|option| option.starts_with(&format!("--{name}="))) {
                line.push(format!("--{name}={value}"));
            }
        }
        line.extend(options.iter().map(|option| net.place(option)));
        let options = Options::parse_from(line).standalone;
        let mut problems = Problems::new();
        let options = options.parse(&mut problems);
        problems.finish().expect("the options of a test are right");
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // A dropped sender stops the stack as well.
            let _ = stopped.await;
            "the test is over"
        };
        let mut task = tokio::spawn(standalone::run_until(options.expect("no problem was reported"), stopped));
        let inspector = Inspector::new(net.at("0.1", 18_001));
        tokio::select! {
            () = inspector.serving() => {}
            ended = &mut task => panic!("it ended instead of serving: {ended:?}"),
        }
        Self { net, manifests: directory, stop: Some(stop), task: Some(task), inspector }
    }

    /// An address of this stack: `ip("1.1")` is 127.N.1.1.
    pub fn ip(&self, rest: &str) -> IpAddr {
        self.net.ip(rest)
    }

    /// An address with port: `at("1.1", 80)` is 127.N.1.1:80.
    pub fn at(&self, rest: &str, port: u16) -> SocketAddr {
        self.net.at(rest, port)
    }

    /// Path of a manifest.
    pub fn path(&self, name: &str) -> PathBuf {
        self.manifests.path().join(name)
    }

    /// Writes a manifest as editors do: a new file moved over the old one.
    pub fn write(&self, name: &str, text: &str) {
        let text = self.net.place(text);
        let draft = self.manifests.path().join(format!(".{name}.draft"));
        std::fs::write(&draft, text).expect("a manifest can be written");
        std::fs::rename(&draft, self.path(name)).expect("a manifest can be moved");
    }

    /// Removes a manifest.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("the manifest is there");
    }

    /// What the gateway knows.
    pub fn inspector(&self) -> &Inspector {
        &self.inspector
    }

    /// As [`Inspector::list`].
    pub async fn list(&self, kind: ObjectKind) -> ListObjectsResponse {
        self.inspector.list(kind).await
    }

    /// As [`Inspector::until`].
    pub async fn until(&self, kind: ObjectKind, what: &str, done: impl Fn(&[Object]) -> bool) {
        self.inspector.until(kind, what, done).await;
    }

    /// As [`Inspector::until_ready`].
    pub async fn until_ready(&self, service: &str, addresses: &[IpAddr]) {
        self.inspector.until_ready(service, addresses).await;
    }

    /// As [`Inspector::serving`].
    pub async fn serving(&self) {
        self.inspector.serving().await;
    }

    /// Ends the stack as a signal would, and waits until it has drained. Its addresses are free again then.
    pub async fn stop(mut self) -> Net {
        drop(self.stop.take());
        let task = self.task.take().expect("a stack is stopped once");
        task.await.expect("no panic").expect("a clean end");
        self.net
    }
}
