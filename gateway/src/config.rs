//! Options of the gateway, as typed and as used.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args as ClapArgs;
use ipnet::IpNet;
use runtime::args::{Problems, parse};

use crate::{emulate::Rules, identity::config as identity, ipam::pool::PortRange};

/// Load-balancer addresses of manifests.
const DEFAULT_LOAD_BALANCER_POOL: &str = "127.97.0.0/24";

/// Options as typed. They are strings so that all mistakes can be reported together.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Take objects from this directory of YAML or JSON files instead of a cluster
    #[arg(long, env = "PORTICO_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Credentials of the cluster [default: those of the Pod, else $KUBECONFIG or ~/.kube/config]
    #[arg(long, env = "PORTICO_KUBECONFIG", value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Where agents connect: discovery and node status, gRPC
    #[arg(long, env = "PORTICO_DISCOVERY_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:18000")]
    pub discovery_listen: String,
    /// Where load balancers and people ask: node health, `portico get`, gRPC
    #[arg(long, env = "PORTICO_HEALTH_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:18001")]
    pub health_listen: String,
    /// Where /livez, /readyz and /metrics answer, HTTP
    #[arg(long, env = "PORTICO_ADMIN_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:18080")]
    pub admin_listen: String,
    /// Serve every Service without a service.kubernetes.io/service-proxy-name label, as kube-proxy would
    #[arg(long, env = "PORTICO_REPLACE_KUBE_PROXY")]
    pub replace_kube_proxy: bool,
    /// Let only one replica write into the cluster: that which holds a Lease; turn off where there is one replica only
    #[arg(long, env = "PORTICO_LEADER_ELECT", value_name = "true|false", default_value = "true", num_args = 0..=1,
          require_equals = true, default_missing_value = "true", conflicts_with = "manifests")]
    pub leader_elect: String,
    /// Name of the Lease, in the gateway's own namespace
    #[arg(long, env = "PORTICO_LEASE_NAME", value_name = "NAME", default_value = "portico-gateway")]
    pub lease_name: String,
    /// Assign addresses to Services of type LoadBalancer without spec.loadBalancerClass too, as with --manifests
    #[arg(long, env = "PORTICO_DEFAULT_LOAD_BALANCER")]
    pub default_load_balancer: bool,
    /// How long streams may finish after a request to stop
    #[arg(long, env = "PORTICO_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s")]
    pub drain_timeout: String,
    /// Who agents are.
    #[command(flatten)]
    pub identity: identity::IdentityArgs,
    /// What a cluster would decide.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// What a cluster would decide. Standalone shares these options.
#[derive(Clone, Debug, ClapArgs)]
pub struct ClusterArgs {
    /// Ranges of ClusterIPs that manifests are given, the default family first
    #[arg(long, env = "PORTICO_SERVICE_CIDR", value_name = "CIDR,…", default_value = "127.96.0.0/16")]
    pub service_cidr: String,
    /// Range of node ports that manifests are given
    #[arg(long, env = "PORTICO_NODE_PORT_RANGE", value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub node_port_range: String,
    /// Ranges of load-balancer addresses, as the address pool "default" [default: 127.97.0.0/24 with manifests, else none]
    #[arg(long, env = "PORTICO_LOAD_BALANCER_POOL", value_name = "CIDR,…")]
    pub load_balancer_pool: Option<String>,
    /// Networks of which spec.externalIPs are served; any user of a namespace can claim any address in them [default: none]
    #[arg(long, env = "PORTICO_EXTERNAL_IPS", value_name = "CIDR,…", default_value = "", hide_default_value = true)]
    pub external_ips: String,
    /// DNS domain of the cluster
    #[arg(long, env = "PORTICO_CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// How long a node is trusted after its agent was last heard
    #[arg(long, env = "PORTICO_NODE_LEASE", value_name = "DURATION", default_value = "15s")]
    pub node_lease: String,
}

/// Options as used.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub source: SourceConfig,
    /// Where agents connect. Port 0 takes a free one, here and below.
    pub discovery_listen: SocketAddr,
    /// Where load balancers and people ask.
    pub health_listen: SocketAddr,
    /// Where the admin port is.
    pub admin_listen: SocketAddr,
    /// What a cluster would decide.
    pub cluster: Cluster,
    /// Serve every Service without a proxy name of its own (S1.2).
    pub replace_kube_proxy: bool,
    /// The Lease that decides who writes; `None` if this replica always does.
    pub lease_name: Option<String>,
    /// Whether load balancers without a class are ours in a cluster, too (S11.1).
    pub default_load_balancer: bool,
    /// How long streams may finish.
    pub drain_timeout: Duration,
    /// Who agents are, and how they know this gateway.
    pub identity: identity::Config,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// A directory of YAML and JSON files.
    Manifests(PathBuf),
    /// The Kubernetes API, with the credentials of this file or those of the environment.
    Kubernetes(Option<PathBuf>),
}

/// What a cluster would decide.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What manifests are given.
    pub rules: Rules,
    /// Load-balancer addresses that were asked for by option. Manifests have some without.
    pub load_balancer_pool: Option<Vec<IpNet>>,
    /// Networks of which `spec.externalIPs` are served (S10.2).
    pub external_ips: Vec<IpNet>,
    /// DNS domain, without dots at its ends.
    pub domain: String,
    /// How long a node is trusted after its agent was last heard.
    pub node_lease: Duration,
}

// === impl Args ===

impl Args {
    /// Checks every option; `None` if `problems` got an entry.
    pub fn parse(&self, problems: &mut Problems) -> Option<Config> {
        let mut listen = |field, raw: &str| {
            problems.value(field, raw, parse::socket_addr, "an address with port, such as 0.0.0.0:18000")
        };
        let discovery_listen = listen("--discovery-listen", &self.discovery_listen);
        let health_listen = listen("--health-listen", &self.health_listen);
        let admin_listen = listen("--admin-listen", &self.admin_listen);
        let cluster = self.cluster.parse(problems);
        let drain_timeout =
            problems.value("--drain-timeout", &self.drain_timeout, parse::duration, "a number with unit, such as 30s");
        let elect = problems.value("--leader-elect", &self.leader_elect, boolean, "give true or false");
        let lease_name =
            problems.value("--lease-name", &self.lease_name, object_name, "a name such as portico-gateway");
        let source = match &self.manifests {
            Some(directory) if directory.is_dir() => Some(SourceConfig::Manifests(directory.clone())),
            Some(directory) => {
                let message = format!("{:?} is not a directory; give one that holds YAML or JSON files", directory);
                problems.push("--manifests", message);
                None
            }
            None => Some(SourceConfig::Kubernetes(self.kubeconfig.clone())),
        };
        let domain = cluster.as_ref().map(|cluster| cluster.domain.as_str());
        let identity = self.identity.parse(self.manifests.is_none(), domain, problems);
        let elect = elect?;
        Some(Config {
            source: source?,
            discovery_listen: discovery_listen?,
            health_listen: health_listen?,
            admin_listen: admin_listen?,
            cluster: cluster?,
            replace_kube_proxy: self.replace_kube_proxy,
            lease_name: Some(lease_name?).filter(|_| elect),
            default_load_balancer: self.default_load_balancer,
            drain_timeout: drain_timeout?,
            identity: identity?,
        })
    }
}

// === impl ClusterArgs ===

impl ClusterArgs {
    /// Checks every option; `None` if `problems` got an entry.
    pub fn parse(&self, problems: &mut Problems) -> Option<Cluster> {
        const CIDRS: &str = "networks separated by commas, such as 10.96.0.0/16,fd00:96::/112";
        let service_cidrs = problems.value("--service-cidr", &self.service_cidr, parse::cidr_list, CIDRS);
        let given = self.load_balancer_pool.as_deref();
        let load_balancer_pool = problems.value(
            "--load-balancer-pool",
            given.unwrap_or(DEFAULT_LOAD_BALANCER_POOL),
            parse::cidr_list,
            CIDRS,
        );
        let overlap = |pool: &IpNet| {
            let cidrs = service_cidrs.iter().flatten();
            cidrs.into_iter().any(|cidr| cidr.contains(pool) || pool.contains(cidr)).then_some(*pool)
        };
        let overlap = load_balancer_pool.iter().flatten().find_map(overlap);
        if let Some(pool) = overlap {
            problems
                .push("--load-balancer-pool", format!("{pool} overlaps with --service-cidr; no address can be both"));
        }
        let load_balancer_pool = load_balancer_pool.filter(|_| overlap.is_none());
        let node_ports = problems.value(
            "--node-port-range",
            &self.node_port_range,
            parse::port_range,
            "two ports joined by a hyphen, such as 30000-32767",
        );
        let external_ips = problems.value("--external-ips", &self.external_ips, parse::cidr_list, CIDRS);
        let domain =
            problems.value("--cluster-domain", &self.cluster_domain, domain, "a DNS name such as cluster.local");
        let lease = |raw: &str| match parse::duration(raw) {
            Ok(lease) if lease < Duration::from_secs(1) => Err("is below a second".to_owned()),
            other => other,
        };
        let node_lease = problems.value("--node-lease", &self.node_lease, lease, "at least 1s, such as 15s");
        let node_ports = node_ports?;
        let load_balancer_pool = load_balancer_pool?;
        Some(Cluster {
            load_balancer_pool: given.is_some().then(|| load_balancer_pool.clone()),
            rules: Rules { service_cidrs: service_cidrs?, node_ports: PortRange::new(node_ports), load_balancer_pool },
            external_ips: external_ips?,
            domain: domain?,
            node_lease: node_lease?,
        })
    }
}

fn boolean(raw: &str) -> Result<bool, String> {
    raw.parse().map_err(|_| "is neither true nor false".to_owned())
}

/// A name as the API server takes it for most objects: a DNS name in lower case.
fn object_name(raw: &str) -> Result<String, String> {
    if domain(raw).is_ok_and(|name| name == raw) {
        Ok(raw.to_owned())
    } else {
        Err("is not an object's name".to_owned())
    }
}

fn domain(raw: &str) -> Result<String, String> {
    let domain = raw.trim_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if domain.len() <= 253 && domain.split('.').all(label) { Ok(domain) } else { Err("is not a DNS name".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Config, Vec<String>> {
        let words = ["gateway"].iter().chain(words);
        let mut problems = Problems::new();
        let config = Cli::try_parse_from(words).expect("clap takes the words").args.parse(&mut problems);
        config.ok_or_else(|| problems.lines().collect())
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        let config = parse(&["--manifests", "."]).expect("the defaults are right");
        assert!(matches!(config.source, SourceConfig::Manifests(_)));
        assert_eq!(config.discovery_listen.to_string(), "0.0.0.0:18000");
        assert_eq!(config.cluster.rules.node_ports.ends(), (30000, 32767));
        assert_eq!(config.cluster.node_lease, Duration::from_secs(15));
        assert!(config.cluster.external_ips.is_empty());
        let cluster = parse(&[]).expect("a cluster needs no option");
        assert!(matches!(cluster.source, SourceConfig::Kubernetes(None)));
        assert_eq!(cluster.lease_name.as_deref(), Some("portico-gateway"));
        assert_eq!(cluster.cluster.load_balancer_pool, None, "loopback addresses are no use in a cluster");
    }

    #[test]
    fn a_replica_without_rivals_needs_no_lease() {
        for (words, lease) in [
            (vec!["--leader-elect=false"], None),
            (vec!["--leader-elect", "--lease-name=other"], Some("other".to_owned())),
        ] {
            assert_eq!(parse(&words).expect("is right").lease_name, lease, "{words:?}");
        }
        let mistakes = parse(&["--leader-elect=perhaps"]).map(drop).expect_err("is wrong");
        assert_eq!(mistakes, ["--leader-elect: \"perhaps\" is neither true nor false; give true or false"]);
    }

    #[test]
    fn an_address_cannot_be_for_two_purposes() {
        let overlapping = ["--service-cidr=127.0.0.0/8", "--load-balancer-pool=fd00::/64,127.97.0.0/24"];
        let mistakes = parse(&overlapping).map(drop).expect_err("they overlap");
        assert_eq!(
            mistakes,
            ["--load-balancer-pool: 127.97.0.0/24 overlaps with --service-cidr; no address can be both"]
        );
    }

    #[test]
    fn every_mistake_is_named_in_one_run() {
        let mistakes = parse(&[
            "--manifests=/does/not/exist",
            "--discovery-listen=18000",
            "--service-cidr=10.0.0.1/8",
            "--external-ips=many",
            "--node-port-range=40000-30000",
            "--cluster-domain=cluster_local",
            "--node-lease=10ms",
            "--drain-timeout=soon",
            "--lease-name=Not a name",
        ]);
        let mistakes = mistakes.map(drop).expect_err("all of it is wrong");
        let fields: Vec<_> = mistakes.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
        let expected = [
            "--discovery-listen",
            "--service-cidr",
            "--node-port-range",
            "--external-ips",
            "--cluster-domain",
            "--node-lease",
            "--drain-timeout",
            "--lease-name",
            "--manifests",
        ];
        assert_eq!(fields, expected, "{mistakes:#?}");
    }
}
