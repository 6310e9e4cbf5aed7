//! A gateway and agents as processes of their own, at addresses of their own.

use tempfile::TempDir;

use crate::{binary::Portico, inspector::Inspector, net::Net};

/// A gateway with its manifests, and what agents are started with.
#[derive(Debug)]
pub struct Deployment {
    /// Where everything is.
    pub net: Net,
    /// The running gateway.
    pub gateway: Portico,
    /// What it knows.
    pub inspector: Inspector,
    directory: TempDir,
}

// === impl Deployment ===

impl Deployment {
    /// Starts a gateway with manifests, by file, and more options of `portico gateway`.
    ///
    /// # Panics
    /// When the manifests cannot be written, or the program was not built.
    pub fn start(manifests: &[(&str, &str)], options: &[&str]) -> Self {
        let (net, directory) = (Net::claim(), tempfile::tempdir().expect("a temporary directory"));
        for (name, text) in manifests {
            std::fs::write(directory.path().join(name), net.place(text)).expect("a manifest can be written");
        }
        let mut args = vec!["gateway".to_owned(), format!("--manifests={}", directory.path().display())];
        let own = [
            "--discovery-listen=127.N.0.1:18000",
            "--health-listen=127.N.0.1:18001",
            "--admin-listen=127.N.0.1:18080",
            "--service-cidr=127.N.96.0/20",
            "--load-balancer-pool=127.N.128.0/24",
        ];
        args.extend(own.iter().chain(options).map(|option| net.place(option)));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let gateway = Portico::start(&args);
        let inspector = Inspector::new(net.at("0.1", 18_001));
        Self { net, gateway, inspector, directory }
    }

    /// Writes a manifest as editors do: a new file moved over the old one.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        let draft = self.directory.path().join(format!(".{name}.draft"));
        std::fs::write(&draft, self.net.place(text)).expect("a manifest can be written");
        std::fs::rename(&draft, self.directory.path().join(name)).expect("a manifest can be moved");
    }

    /// Starts the agent of a node, with more options of `portico agent`.
    pub fn agent(&self, node: &str, options: &[&str]) -> Portico {
        let gateway = format!("http://{}", self.net.at("0.1", 18_000));
        Portico::start(&[&["agent", "--workers", "1", "--node", node, "--gateway", &gateway], options].concat())
    }
}
