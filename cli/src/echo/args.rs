//! The options of `portico echo`.

use super::EchoConfig;
use runtime::args::Problems;
use runtime::args::parse::{SOCKET_ADDR, socket_addr};

/// The namespace of a pod that does not say otherwise, as in Kubernetes.
const DEFAULT_NAMESPACE: &str = "default";

/// Options of `portico echo`, as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct EchoArgs {
    /// Addresses to serve by TCP and UDP; may repeat. 0.0.0.0 is IPv4 only, [::] IPv6 only
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "PORTICO_LISTEN",
        value_delimiter = ',',
        default_value = "0.0.0.0:8080"
    )]
    pub listen: Vec<String>,

    /// Name of the pod in answers [default: $POD_NAME, else the host name]
    #[arg(long, value_name = "NAME", env = "PORTICO_POD")]
    pub pod: Option<String>,

    /// Namespace of the pod in answers [default: $POD_NAMESPACE, else default]
    #[arg(long, value_name = "NAME", env = "PORTICO_NAMESPACE")]
    pub namespace: Option<String>,

    /// Name of the node in answers [default: $NODE_NAME, else the host name]
    #[arg(long, value_name = "NAME", env = "PORTICO_NODE")]
    pub node: Option<String>,
}

impl EchoArgs {
    /// Parses all options, noting what is wrong with each. `variable` looks up environment variables.
    pub fn parse(self, problems: &mut Problems, variable: impl Fn(&str) -> Option<String>) -> Option<EchoConfig> {
        let listen: Vec<_> =
            self.listen.iter().map(|raw| problems.value("--listen", raw.trim(), socket_addr, SOCKET_ADDR)).collect();
        let listen: Vec<_> = listen.into_iter().collect::<Option<_>>()?;
        for (at, address) in listen.iter().enumerate() {
            if address.port() != 0 && listen[..at].contains(address) {
                problems.push("--listen", format!("{address} is given twice; give each address once"));
                return None;
            }
        }
        let name = |typed: Option<String>, name: &str| typed.or_else(|| variable(name)).filter(|name| !name.is_empty());
        Some(EchoConfig {
            listen,
            pod: name(self.pod, "POD_NAME").unwrap_or_else(host_name),
            namespace: name(self.namespace, "POD_NAMESPACE").unwrap_or_else(|| DEFAULT_NAMESPACE.into()),
            node: name(self.node, "NODE_NAME").unwrap_or_else(host_name),
        })
    }
}

/// The name of this machine; a pod's host name is the pod's name.
fn host_name() -> String {
    match nix::unistd::gethostname() {
        Ok(name) => name.to_string_lossy().into_owned(),
        // Only a name longer than the kernel allows could fail.
        Err(_) => "localhost".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        echo: EchoArgs,
    }

    fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<EchoConfig, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        let mut problems = Problems::new();
        let args = Cli::parse_from([&["echo"], arguments].concat()).echo;
        let config = args.parse(&mut problems, variable);
        problems.finish().map_err(|problems| problems.to_string())?;
        config.ok_or_else(|| "no configuration and no problem".into())
    }

    #[test]
    fn an_option_outranks_the_downward_api_which_outranks_the_host() {
        let variables = [("POD_NAME", "web-0"), ("NODE_NAME", "one"), ("POD_NAMESPACE", "shop")];
        let config = parse(&["--node", "two", "--listen", "127.0.0.1:1,[::1]:2"], &variables).unwrap();
        let expected = EchoConfig {
            listen: vec!["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()],
            pod: "web-0".into(),
            namespace: "shop".into(),
            node: "two".into(),
        };
        assert_eq!(config, expected);
        let config = parse(&[], &[]).unwrap();
        assert_eq!((config.pod, config.namespace, config.node), (host_name(), "default".into(), host_name()));
        assert_eq!(config.listen, ["0.0.0.0:8080".parse().unwrap()]);
    }

    #[test]
    fn every_wrong_address_is_reported() {
        let text = parse(&["--listen", "8080", "--listen", "localhost:1"], &[]).unwrap_err();
        assert!(text.contains("--listen: \"8080\" ") && text.contains("--listen: \"localhost:1\" "), "{text}");
        let text = parse(&["--listen", "127.0.0.1:1,127.0.0.1:1"], &[]).unwrap_err();
        assert_eq!(text, "--listen: 127.0.0.1:1 is given twice; give each address once");
    }
}
