//! The options of `portico get`.

use super::kind::Kind;
use super::output::{Format, Layout};
use super::source::Query;
use http::Uri;
use runtime::args::Problems;
use runtime::args::parse::one_of;

/// What a gateway's URL has to look like.
const URL: &str = "give scheme, host and port, such as http://127.0.0.1:18001";

/// Options of `portico get`, as typed.
#[derive(Clone, Debug, clap::Args)]
pub struct GetArgs {
    /// What to show: services (svc), endpoints (ep), nodes (no), agents or health
    #[arg(value_name = "KIND")]
    pub kind: String,

    /// Only the one of this name; for endpoints the name of their Service
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// Namespace of Services and endpoints
    #[arg(short, long, value_name = "NAMESPACE", env = "PORTICO_NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// All namespaces [default: only --namespace]
    #[arg(short = 'A', long, env = "PORTICO_ALL_NAMESPACES")]
    pub all_namespaces: bool,

    /// How to show it: table, wide, json or yaml
    #[arg(short, long, value_name = "FORMAT", env = "PORTICO_OUTPUT", default_value = "table")]
    pub output: String,

    /// Show changes as they happen, until interrupted [default: show what there is, and end]
    #[arg(short, long, env = "PORTICO_WATCH")]
    pub watch: bool,

    /// Where the gateway serves health; may repeat, the first that can be reached is asked
    #[arg(
        long,
        value_name = "URL",
        env = "PORTICO_GATEWAY",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:18001"
    )]
    pub gateway: Vec<String>,
}

/// [`GetArgs`], parsed.
#[derive(Clone, Debug)]
pub struct GetConfig {
    /// What to ask for.
    pub query: Query,
    /// How to show it.
    pub layout: Layout,
    /// Whether to show changes as they happen.
    pub watch: bool,
    /// Whom to ask, in order.
    pub gateways: Vec<String>,
}

impl GetArgs {
    /// Parses all options, noting what is wrong with each.
    pub fn parse(self, problems: &mut Problems) -> Option<GetConfig> {
        let kind = problems.value("KIND", &self.kind, Kind::parse, "");
        let format = problems.value("--output", &self.output, format, "");
        let gateways: Vec<_> =
            self.gateway.iter().map(|raw| problems.value("--gateway", raw.trim(), gateway, URL)).collect();
        let name = match self.name.as_deref() {
            Some("") => {
                problems.push("NAME", "is empty; leave it out to show all");
                None
            }
            name => Some(name.unwrap_or_default().to_owned()),
        };
        if self.namespace.is_empty() {
            problems.push("--namespace", "is empty; give a name, or --all-namespaces");
        }
        if name.as_deref().is_some_and(|name| !name.is_empty())
            && self.all_namespaces
            && kind.is_some_and(Kind::is_namespaced)
        {
            problems.push("--all-namespaces", "does not go with a name; give the --namespace of the one you mean");
        }
        let (kind, name) = (kind?, name?);
        let layout = Layout {
            kind,
            format: format?,
            namespaces: self.all_namespaces && kind.is_namespaced(),
            single: !name.is_empty(),
        };
        let namespace = if self.all_namespaces { String::new() } else { self.namespace };
        let gateways = gateways.into_iter().collect::<Option<_>>()?;
        Some(GetConfig { query: Query { kind, namespace, name }, layout, watch: self.watch, gateways })
    }
}

fn format(raw: &str) -> Result<Format, String> {
    one_of(&["table", "wide", "json", "yaml"])(raw).map(|word| match word {
        "wide" => Format::Wide,
        "json" => Format::Json,
        "yaml" => Format::Yaml,
        _ => Format::Table,
    })
}

fn gateway(raw: &str) -> Result<String, String> {
    let uri: Uri = raw.parse().map_err(|_| "is not a URL")?;
    match (uri.scheme_str(), uri.host(), uri.path()) {
        (Some("http"), Some(host), "/" | "") if !host.is_empty() => Ok(raw.to_owned()),
        (Some("http"), Some(_), _) => Err("has a path, which gRPC has no use for".into()),
        (Some(scheme), _, _) => Err(format!("has the scheme {scheme}; the gateway serves http only")),
        (None, _, _) => Err("is not a URL".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        get: GetArgs,
    }

    fn parse(arguments: &[&str]) -> Result<GetConfig, String> {
        let mut problems = Problems::new();
        let config = Cli::parse_from([&["get"], arguments].concat()).get.parse(&mut problems);
        problems.finish().map_err(|problems| problems.to_string())?;
        config.ok_or_else(|| "no configuration and no problem".into())
    }

    #[test]
    fn the_namespace_is_default_unless_all_are_wanted() {
        let config = parse(&["svc"]).unwrap();
        let expected = Query { kind: Kind::Services, namespace: "default".into(), name: String::new() };
        assert_eq!(config.query, expected);
        assert_eq!(config.gateways, ["http://127.0.0.1:18001"]);
        assert!(!config.layout.namespaces && !config.layout.single && !config.watch);

        let config = parse(&["ep", "-A", "-o", "wide", "-w"]).unwrap();
        assert_eq!((config.query.namespace.as_str(), config.layout.format), ("", Format::Wide));
        assert!(config.layout.namespaces && config.watch);

        let config = parse(&["no", "one", "-A", "--gateway", "http://a:1,http://[::1]:2"]).unwrap();
        assert!(config.layout.single && !config.layout.namespaces);
        assert_eq!(config.gateways, ["http://a:1", "http://[::1]:2"]);
    }

    #[test]
    fn every_wrong_option_is_reported() {
        let arguments = ["pods", "-o", "jsn", "--gateway", "localhost:18001,https://x:1,http://x:1/y", "-n", ""];
        let expected = "\
KIND: \"pods\" is not one of services (svc), endpoints (ep), nodes (no), agents, health
--output: \"jsn\" is not one of table, wide, json, yaml; did you mean json?
--gateway: \"localhost:18001\" is not a URL; give scheme, host and port, such as http://127.0.0.1:18001
--gateway: \"https://x:1\" has the scheme https; the gateway serves http only; give scheme, host and port, such as http://127.0.0.1:18001
--gateway: \"http://x:1/y\" has a path, which gRPC has no use for; give scheme, host and port, such as http://127.0.0.1:18001
--namespace: is empty; give a name, or --all-namespaces";
        assert_eq!(parse(&arguments).unwrap_err(), expected);
        let text = parse(&["svc", "web", "-A"]).unwrap_err();
        assert!(text.starts_with("--all-namespaces: does not go with a name"), "{text}");
    }
}
