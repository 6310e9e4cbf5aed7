//! Options of the discovery port's identity, as typed and as used.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use runtime::args::Problems;

use super::{
    Account,
    certificate::{Origin, keeper::Names},
};

/// Options as typed.
#[derive(Clone, Debug, ClapArgs)]
pub struct IdentityArgs {
    /// Namespace of this gateway and its agents
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", default_value = "portico-system")]
    pub namespace: String,
    /// Service by which agents know the gateways; <SERVICE>.<NAMESPACE>.svc is the name in their certificate
    #[arg(long, env = "PORTICO_DISCOVERY_SERVICE", value_name = "NAME", default_value = "portico-gateway")]
    pub discovery_service: String,
    /// ServiceAccount of the agents; tokens of no other one are taken
    #[arg(long, env = "PORTICO_AGENT_ACCOUNT", value_name = "NAME", default_value = "portico-agent")]
    pub agent_account: String,
    /// Secret of type kubernetes.io/tls with the certificate of the discovery port [default: the gateways make their own]
    #[arg(long, env = "PORTICO_DISCOVERY_SECRET", value_name = "NAME", conflicts_with = "discovery_certificate")]
    pub discovery_secret: Option<String>,
    /// File with the certificate chain of the discovery port, PEM, read again when it changes
    #[arg(long, env = "PORTICO_DISCOVERY_CERTIFICATE", value_name = "FILE")]
    pub discovery_certificate: Option<PathBuf>,
    /// File with the private key of --discovery-certificate, PEM
    #[arg(long, env = "PORTICO_DISCOVERY_KEY", value_name = "FILE")]
    pub discovery_key: Option<PathBuf>,
    /// Let agents, and anyone else, connect in plain text and without a token
    #[arg(long, env = "PORTICO_INSECURE_DISCOVERY")]
    pub insecure_discovery: bool,
}

/// Options as used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where the certificate comes from; `None` means plain text.
    pub origin: Option<Origin>,
    /// Whose tokens are taken; `None` lets everybody in.
    pub account: Option<Account>,
}

// === impl IdentityArgs ===

impl IdentityArgs {
    /// Checks every option; `None` if `problems` got an entry. Without a cluster nobody can vouch for tokens, and there is
    /// no place for certificates but files.
    pub fn parse(&self, has_cluster: bool, domain: Option<&str>, problems: &mut Problems) -> Option<Config> {
        const NAME: &str = "give the name of an object in Kubernetes";
        let mut name = |field, raw: &str| problems.value(field, raw, object_name, NAME);
        let namespace = name("--namespace", &self.namespace);
        let service = name("--discovery-service", &self.discovery_service);
        let account = name("--agent-account", &self.agent_account);
        let secret = self.discovery_secret.as_ref().map(|raw| name("--discovery-secret", raw));
        let files = self.files(problems)?;
        if self.insecure_discovery {
            if files.is_some() || secret.is_some() {
                problems.push("--insecure-discovery", "excludes a certificate; give one of both");
                return None;
            }
            return Some(Config::default());
        }
        if !has_cluster {
            if secret.is_some() {
                problems
                    .push("--discovery-secret", "needs a cluster; give --discovery-certificate and --discovery-key");
                return None;
            }
            return Some(Config { origin: files, account: None });
        }
        let (namespace, service, name) = (namespace?, service?, account?);
        let origin = match (files, secret) {
            (Some(files), _) => files,
            (None, Some(secret)) => Origin::Secret { namespace: namespace.clone(), name: secret? },
            (None, None) => Origin::Made(Names { namespace: namespace.clone(), service, domain: domain?.to_owned() }),
        };
        Some(Config { origin: Some(origin), account: Some(Account { namespace, name }) })
    }

    /// The files, if any are named. The outer `None` means that `problems` got an entry.
    fn files(&self, problems: &mut Problems) -> Option<Option<Origin>> {
        match (&self.discovery_certificate, &self.discovery_key) {
            (Some(certificate), Some(key)) => {
                Some(Some(Origin::Files { certificate: certificate.clone(), key: key.clone() }))
            }
            (None, None) => Some(None),
            (Some(_), None) => {
                problems.push("--discovery-key", "is missing; give the key of --discovery-certificate");
                None
            }
            (None, Some(_)) => {
                problems.push("--discovery-certificate", "is missing; give the certificate of --discovery-key");
                None
            }
        }
    }
}

/// A DNS subdomain name (RFC 1123), as most objects have.
fn object_name(raw: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    if raw.len() <= 253 && raw.split('.').all(label) { Ok(raw.to_owned()) } else { Err("is not a name".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: IdentityArgs,
    }

    fn parse(has_cluster: bool, words: &[&str]) -> Result<Config, Vec<String>> {
        let words = ["gateway", "--namespace=portico-system"].iter().chain(words);
        let mut problems = Problems::new();
        let args = Cli::try_parse_from(words).expect("clap takes the words").args;
        let config = args.parse(has_cluster, Some("cluster.local"), &mut problems);
        config.ok_or_else(|| problems.lines().collect())
    }

    #[test]
    fn a_cluster_means_certificates_and_tokens_unless_they_are_turned_off() {
        let account = Account { namespace: "portico-system".into(), name: "portico-agent".into() };
        let made = Names {
            namespace: "portico-system".into(),
            service: "portico-gateway".into(),
            domain: "cluster.local".into(),
        };
        let expected = Config { origin: Some(Origin::Made(made)), account: Some(account.clone()) };
        assert_eq!(parse(true, &[]), Ok(expected));
        let secret = Origin::Secret { namespace: "portico-system".into(), name: "mine".into() };
        let expected = Config { origin: Some(secret), account: Some(account) };
        assert_eq!(parse(true, &["--discovery-secret=mine"]), Ok(expected));
        assert_eq!(parse(true, &["--insecure-discovery"]), Ok(Config::default()));
    }

    #[test]
    fn without_a_cluster_there_are_files_or_nothing() {
        assert_eq!(parse(false, &[]), Ok(Config::default()));
        let files = ["--discovery-certificate=c", "--discovery-key=k"];
        let origin = Origin::Files { certificate: "c".into(), key: "k".into() };
        assert_eq!(parse(false, &files), Ok(Config { origin: Some(origin), account: None }));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let cases: [(bool, &[&str], &str); 5] = [
            (true, &["--discovery-certificate=c"], "--discovery-key: is missing"),
            (true, &["--discovery-key=k"], "--discovery-certificate: is missing"),
            (true, &["--discovery-secret=s", "--insecure-discovery"], "--insecure-discovery: excludes"),
            (false, &["--discovery-secret=s"], "--discovery-secret: needs a cluster"),
            (true, &["--agent-account=A_B"], "--agent-account: \"A_B\" is not a name"),
        ];
        for (has_cluster, words, expected) in cases {
            let problems = parse(has_cluster, words).map(drop).expect_err("is wrong");
            assert!(problems[0].starts_with(expected), "{problems:?}");
        }
    }
}
