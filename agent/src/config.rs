//! Options of an agent, as typed and as used.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use clap::Args as ClapArgs;
use runtime::args::{Problems, parse};

use crate::{
    apply::compile::{Here, NodePortAddresses},
    balance::pick::LoadBound,
    dns::{
        answer::PodNames,
        open::Options as Dns,
        servers::{self, Source},
    },
    gateways::Gateways,
    intercept::{self, Choice, OnExit},
    local::Limits,
    report::access_log::AccessLog,
};

/// How gateways are found and known.
pub mod access;

use access::{AccessArgs, GatewayService};

/// Where Pods ask by default, as they do with NodeLocal DNSCache.
const DNS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 20, 53)), servers::PORT);
/// Where kube-proxy answers `/healthz` (S13.1).
const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10_256);

/// Where the admin port of an agent is when nothing else is said.
pub const ADMIN_PORT: u16 = 18_081;

/// Options as typed. They are strings so that all mistakes can be reported together.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Discovery address of a gateway replica; may be repeated or separated by commas
    #[arg(
        long,
        env = "PORTICO_GATEWAY",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:18000"
    )]
    pub gateway: Vec<String>,
    /// How gateways are found and known, beside their URLs.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Name of this node's Node object [default: $NODE_NAME, else the host name]
    #[arg(long, env = "PORTICO_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Where live, ready, metrics and debug answer; the port may be left out [default: the node's address, port 18081]
    #[arg(long, env = "PORTICO_ADMIN_LISTEN", value_name = "ADDR[:PORT]")]
    pub admin_listen: Option<String>,
    /// Where load balancers ask whether this node works, /healthz and /livez as of kube-proxy; off opens no port
    /// [default: 0.0.0.0:10256 with --replace-kube-proxy, else off]
    #[arg(long, env = "PORTICO_HEALTHZ_LISTEN", value_name = "ADDR:PORT|off")]
    pub healthz_listen: Option<String>,
    /// This agent stands in for kube-proxy on its node, and answers where that would
    #[arg(long, env = "PORTICO_REPLACE_KUBE_PROXY")]
    pub replace_kube_proxy: bool,
    /// Lead the traffic of Services to the agent by packet rules, with any of their addresses: on, off (real sockets), or
    /// auto, which is on in a Pod with the capability NET_ADMIN
    #[arg(long, env = "PORTICO_INTERCEPT", value_name = "MODE", default_value = "auto")]
    pub intercept: String,
    /// What becomes of the packet rules when the agent ends: remove, or keep (new connections wait for the next agent)
    #[arg(long, env = "PORTICO_INTERCEPT_ON_EXIT", value_name = "MODE", default_value = "remove")]
    pub intercept_on_exit: String,
    /// Port at the node's address where agents of other nodes hand over connections whose client an endpoint here is to
    /// see, the same on every node; 0 turns it off
    #[arg(long, env = "PORTICO_HOP_PORT", value_name = "PORT", default_value = "18082")]
    pub hop_port: String,
    /// Options of the data plane.
    #[command(flatten)]
    pub data_plane: DataPlaneArgs,
}

/// Options that standalone shares with the agent.
#[derive(Clone, Debug, ClapArgs)]
pub struct DataPlaneArgs {
    /// Shared HTTP port, routed by DNS name; 0 turns it off
    #[arg(long, env = "PORTICO_HTTP_PORT", value_name = "PORT")]
    pub http_port: Option<String>,
    /// Where DNS answers, UDP and TCP, or off [default: 169.254.20.53:53 in a Pod, else off; standalone: 127.0.0.1:10053]
    #[arg(long, env = "PORTICO_DNS_LISTEN", value_name = "ADDR:PORT,…")]
    pub dns_listen: Option<String>,
    /// Name servers for what is not in the cluster domain, or a resolv.conf that names them
    #[arg(long, env = "PORTICO_DNS_UPSTREAM", value_name = "ADDR[:PORT],…|FILE", default_value = servers::RESOLV_CONF)]
    pub dns_upstream: String,
    /// Whether Pods have names made of their addresses, a-b-c-d.NAMESPACE.pod.DOMAIN: disabled or verified
    #[arg(long, env = "PORTICO_DNS_PODS", value_name = "MODE", default_value = "disabled")]
    pub dns_pods: String,
    /// The node's addresses at which NodePorts answer: ranges, or `primary` [default: all of them]
    #[arg(
        long,
        env = "PORTICO_NODE_PORT_ADDRESSES",
        value_name = "primary|CIDR,…",
        default_value = "",
        hide_default_value = true
    )]
    pub node_port_addresses: String,
    /// Data-plane threads [default: number of cores]
    #[arg(long, env = "PORTICO_WORKERS", value_name = "N")]
    pub workers: Option<String>,
    /// How long connections may finish after a request to stop
    #[arg(long, env = "PORTICO_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s")]
    pub drain_timeout: String,
    /// Peers whose X-Forwarded-For and trace context are believed [default: none]
    #[arg(long, env = "PORTICO_TRUSTED_PROXIES", value_name = "CIDR,…", default_value = "", hide_default_value = true)]
    pub trusted_proxies: String,
    /// Which connections and requests are logged to standard output: off, errors or all
    #[arg(long, env = "PORTICO_ACCESS_LOG", value_name = "MODE", default_value = "off")]
    pub access_log: String,
    /// Connections open at once, over all workers
    #[arg(long, env = "PORTICO_MAX_CONNECTIONS", value_name = "N", default_value = "65536")]
    pub max_connections: String,
    /// UDP flows open at once, over all workers
    #[arg(long, env = "PORTICO_MAX_UDP_FLOWS", value_name = "N", default_value = "16384")]
    pub max_udp_flows: String,
    /// Time for the head of a request and for a TLS handshake
    #[arg(long, env = "PORTICO_HEADER_TIMEOUT", value_name = "DURATION", default_value = "15s")]
    pub header_timeout: String,
    /// Time between requests on a kept-alive connection
    #[arg(long, env = "PORTICO_IDLE_TIMEOUT", value_name = "DURATION", default_value = "10m")]
    pub idle_timeout: String,
    /// Time for one attempt to connect to an endpoint
    #[arg(long, env = "PORTICO_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "2s")]
    pub connect_timeout: String,
    /// Time without a sign of life after which an endpoint of HTTP is taken for dead (TCP_USER_TIMEOUT)
    #[arg(long, env = "PORTICO_UPSTREAM_USER_TIMEOUT", value_name = "DURATION", default_value = "20s")]
    pub upstream_user_timeout: String,
    /// Time to the head of an endpoint's answer
    #[arg(long, env = "PORTICO_RESPONSE_TIMEOUT", value_name = "DURATION", default_value = "5m")]
    pub response_timeout: String,
    /// Time without a byte on a TCP or WebSocket connection
    #[arg(long, env = "PORTICO_TCP_IDLE_TIMEOUT", value_name = "DURATION", default_value = "24h")]
    pub tcp_idle_timeout: String,
    /// Endpoints tried for one connection or request
    #[arg(long, env = "PORTICO_ATTEMPTS", value_name = "N", default_value = "3")]
    pub attempts: String,
    /// Clients of Services with session affinity that a node remembers; of others the hash ring alone decides
    #[arg(long, env = "PORTICO_AFFINITY_CLIENTS", value_name = "N", default_value = "65536")]
    pub affinity_clients: String,
    /// How full an endpoint may be, in per cent of the mean, for clients that are new to a Service with session affinity;
    /// 0 follows the hash ring strictly
    #[arg(long, env = "PORTICO_HASH_BALANCE_FACTOR", value_name = "PERCENT", default_value = "125")]
    pub hash_balance_factor: String,
    /// Bytes of a request's head
    #[arg(long, env = "PORTICO_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "64KiB")]
    pub max_header_bytes: String,
    /// Headers of a request
    #[arg(long, env = "PORTICO_MAX_HEADERS", value_name = "N", default_value = "100")]
    pub max_headers: String,
}

/// Options as used.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gateway's replicas; none as long as nobody follows `gateway_service`, if that is given.
    pub gateways: Gateways,
    /// Where the replicas are to be looked for.
    pub gateway_service: Option<GatewayService>,
    /// Where the admin port listens; `None` means at the node's address.
    pub admin_listen: Option<SocketAddr>,
    /// Where `/healthz` and `/livez` answer; `None` for nowhere.
    pub healthz_listen: Option<SocketAddr>,
    /// Data-plane threads.
    pub workers: usize,
    /// What decides the table.
    pub here: Here,
    /// Limits of the data plane, per worker.
    pub limits: Limits,
    /// What is logged.
    pub access_log: AccessLog,
    /// Where and how DNS answers.
    pub dns: Dns,
    /// Whether packet rules lead traffic here.
    pub intercept: intercept::Options,
    /// Where agents hand connections to each other, if traffic is intercepted.
    pub hop_port: Option<NonZeroU16>,
}

/// Options of the data plane, as used by each agent of a process.
#[derive(Clone, Debug)]
pub struct DataPlane {
    /// The shared HTTP port, if the option was given.
    pub http_port: Option<Option<NonZeroU16>>,
    /// Where NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// Data-plane threads.
    pub workers: usize,
    /// Limits, per worker.
    pub limits: Limits,
    /// What is logged.
    pub access_log: AccessLog,
    /// Where DNS answers, if the option was given; nowhere if that is empty.
    pub dns_listen: Option<Vec<SocketAddr>>,
    /// How DNS answers.
    pub dns: Dns,
}

// === impl Args ===

impl Args {
    /// Checks every option; `None` if `problems` got an entry. `host` is used where no node is named.
    pub fn parse(&self, problems: &mut Problems, node_name: Option<String>, host: &str) -> Option<Config> {
        let data_plane = self.data_plane.parse(problems);
        let service = self.access.service(problems);
        let gateways = match &service {
            Some(service) => service.as_ref().map(|service| Gateways::fixed(vec![], self.access.of_service(service))),
            None => self.urls(problems).and_then(|urls| {
                let access = self.access.of_urls(&urls, problems)?;
                Some(Gateways::fixed(urls, access))
            }),
        };
        let admin_listen = match &self.admin_listen {
            Some(raw) => Some(problems.value(
                "--admin-listen",
                raw,
                admin_listen,
                "an address, or one with port, such as 10.0.0.1:18081 or [fd00::1]:18081",
            )?),
            None => None,
        };
        let healthz_listen = match self.healthz_listen.as_deref() {
            Some("off") => Some(None),
            Some(raw) => {
                let expected = "an address with port, such as 0.0.0.0:10256, or off";
                problems.value("--healthz-listen", raw, parse::socket_addr, expected).map(Some)
            }
            None => Some(self.replace_kube_proxy.then_some(HEALTHZ)),
        };
        let intercept = self.intercept(problems);
        let port = parse::number(0..=u16::MAX);
        let hop_port = problems.value("--hop-port", &self.hop_port, port, "a port from 1 to 65535, or 0 for none");
        let data_plane = data_plane?;
        // Outside of a cluster nobody asks there, and the address is not ours to add.
        let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let dns_listen = data_plane.dns_listen.unwrap_or(if in_cluster { vec![DNS_LISTEN] } else { vec![] });
        Some(Config {
            gateways: gateways?,
            gateway_service: service.flatten(),
            admin_listen,
            healthz_listen: healthz_listen?,
            workers: data_plane.workers,
            here: Here {
                node: self.node.clone().or(node_name).unwrap_or_else(|| host.to_owned()),
                node_port_addresses: data_plane.node_port_addresses,
                http_port: data_plane.http_port.flatten(),
            },
            limits: data_plane.limits,
            access_log: data_plane.access_log,
            dns: Dns { listen: dns_listen, ..data_plane.dns },
            intercept: intercept?,
            hop_port: NonZeroU16::new(hop_port?),
        })
    }

    fn intercept(&self, problems: &mut Problems) -> Option<intercept::Options> {
        let mut one_of = |field, raw: &str, words: &'static [&'static str], expected| {
            problems.value(field, raw, parse::one_of(words), expected)
        };
        let choice = one_of("--intercept", &self.intercept, &["auto", "on", "off"], "auto, on or off");
        let on_exit = one_of("--intercept-on-exit", &self.intercept_on_exit, &["remove", "keep"], "remove or keep");
        Some(intercept::Options {
            choice: match choice? {
                "on" => Choice::On,
                "off" => Choice::Off,
                _ => Choice::Auto,
            },
            on_exit: if on_exit? == "keep" { OnExit::Keep } else { OnExit::Remove },
        })
    }
}

impl Args {
    fn urls(&self, problems: &mut Problems) -> Option<Vec<String>> {
        let url = |raw: &str| match raw.parse::<http::Uri>() {
            Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some() => {
                Ok(raw.to_owned())
            }
            Ok(_) | Err(_) => Err("is not a URL of scheme http or https".to_owned()),
        };
        let urls = self.gateway.iter();
        // All of them are looked at, so that all mistakes are reported.
        let urls: Vec<_> = urls
            .map(|raw| problems.value("--gateway", raw, url, "give a URL such as http://127.0.0.1:18000"))
            .collect();
        urls.into_iter().collect()
    }
}

// === impl DataPlaneArgs ===

impl DataPlaneArgs {
    /// Checks every option; `None` if `problems` got an entry.
    pub fn parse(&self, problems: &mut Problems) -> Option<DataPlane> {
        const DURATION: &str = "a number with unit, such as 30s or 5m";
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let http_port = self.http_port.as_ref().map(|raw| {
            problems.value("--http-port", raw, parse::number(0..=u16::MAX), "a port from 1 to 65535, or 0 for none")
        });
        let workers = self.workers.as_ref().map_or(Some(cores), |raw| {
            problems.value("--workers", raw, parse::number(1..=1024), "a number from 1 to 1024")
        });
        let mut cidrs = |field, raw: &str| {
            problems.value(field, raw, parse::cidr_list, "networks separated by commas, such as 10.0.0.0/8,fd00::/8")
        };
        let trusted_proxies = cidrs("--trusted-proxies", &self.trusted_proxies);
        let node_port_addresses = problems.value(
            "--node-port-addresses",
            &self.node_port_addresses,
            |raw| match raw.trim() {
                "" => Ok(NodePortAddresses::All),
                "primary" => Ok(NodePortAddresses::Primary),
                ranges => parse::cidr_list(ranges).map(NodePortAddresses::Within),
            },
            "primary, or networks separated by commas, such as 10.0.0.0/8,fd00::/8",
        );
        let mut duration = |field, raw: &str| {
            let positive = |raw: &str| match parse::duration(raw) {
                Ok(Duration::ZERO) => Err("is zero".to_owned()),
                other => other,
            };
            problems.value(field, raw, positive, DURATION)
        };
        let drain_timeout = duration("--drain-timeout", &self.drain_timeout);
        let header_timeout = duration("--header-timeout", &self.header_timeout);
        let idle_timeout = duration("--idle-timeout", &self.idle_timeout);
        let connect_timeout = duration("--connect-timeout", &self.connect_timeout);
        let upstream_user_timeout = duration("--upstream-user-timeout", &self.upstream_user_timeout);
        let response_timeout = duration("--response-timeout", &self.response_timeout);
        let tcp_idle_timeout = duration("--tcp-idle-timeout", &self.tcp_idle_timeout);
        let number = parse::number(1..=10_000_000u32);
        let mut count = |field, raw: &str| problems.value(field, raw, &number, "a number from 1 to 10000000");
        let connections = count("--max-connections", &self.max_connections);
        let flows = count("--max-udp-flows", &self.max_udp_flows);
        let affinity_clients = count("--affinity-clients", &self.affinity_clients);
        let attempts = problems.value("--attempts", &self.attempts, parse::number(1..=16), "a number from 1 to 16");
        let hash_balance_factor = problems.value(
            "--hash-balance-factor",
            &self.hash_balance_factor,
            |raw| match parse::number(0..=10_000u32)(raw)? {
                1..=100 => Err("leaves no room for anybody".to_owned()),
                percent => Ok(percent),
            },
            "a number above 100, such as 125, or 0 for none",
        );
        let headers =
            problems.value("--max-headers", &self.max_headers, parse::number(1..=10_000), "a number from 1 to 10000");
        let header_bytes = problems.value(
            "--max-header-bytes",
            &self.max_header_bytes,
            |raw| {
                parse::bytes(raw).and_then(|bytes| match bytes {
                    8_192..=1_048_576 => Ok(bytes as usize),
                    _ => Err("is out of range".to_owned()),
                })
            },
            "a size from 8KiB to 1MiB",
        );
        let access_log = problems.value(
            "--access-log",
            &self.access_log,
            parse::one_of(&["off", "errors", "all"]),
            "off, errors or all",
        );
        let dns_listen = match &self.dns_listen {
            None => Some(None),
            Some(raw) => problems.value("--dns-listen", raw, listen_list, LISTEN).map(Some),
        };
        let upstream = problems.value("--dns-upstream", &self.dns_upstream, upstream, SERVERS);
        let pods = problems.value(
            "--dns-pods",
            &self.dns_pods,
            parse::one_of(&["disabled", "verified"]),
            "disabled or verified",
        );
        if let (Some(Some(listen)), Some(Source::Servers(upstream))) = (&dns_listen, &upstream)
            && let Some(own) = upstream.iter().find(|server| listen.contains(server))
        {
            problems.push("--dns-upstream", format!("{own} is in --dns-listen too; questions would go in circles"));
            return None;
        }
        let pods = if pods? == "verified" { PodNames::Verified } else { PodNames::Disabled };
        let workers = workers?;
        let share = |total: u32| (total as usize).div_ceil(workers);
        Some(DataPlane {
            http_port: match http_port {
                Some(port) => Some(NonZeroU16::new(port?)),
                None => None,
            },
            node_port_addresses: node_port_addresses?,
            workers,
            limits: Limits {
                header_timeout: header_timeout?,
                idle_timeout: idle_timeout?,
                connect_timeout: connect_timeout?,
                upstream_user_timeout: upstream_user_timeout?,
                response_timeout: response_timeout?,
                tcp_idle_timeout: tcp_idle_timeout?,
                udp_idle_timeout: Limits::default().udp_idle_timeout,
                attempts: attempts?,
                header_bytes: header_bytes?,
                headers: headers?,
                connections: share(connections?) as u32,
                flows: share(flows?),
                trusted_proxies: trusted_proxies?,
                affinity_clients: affinity_clients? as usize,
                load_bound: LoadBound { percent: NonZeroU32::new(hash_balance_factor?) },
                drain_timeout: drain_timeout?,
            },
            access_log: match access_log? {
                "errors" => AccessLog::Errors,
                "all" => AccessLog::All,
                _ => AccessLog::Off,
            },
            dns_listen: dns_listen?,
            dns: Dns { listen: vec![], upstream: upstream?, pods },
        })
    }
}

/// An address with port, or without one: then it is the usual one. An address alone is what the downward API gives for the
/// node, and of an IPv6 address only this form can be put together without brackets.
fn admin_listen(raw: &str) -> Result<SocketAddr, String> {
    match raw.parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, ADMIN_PORT)),
        Err(_) => parse::socket_addr(raw).map_err(|_| "is not an address, with or without port".to_owned()),
    }
}

const LISTEN: &str = "addresses with port, such as 169.254.20.53:53, or off";
const SERVERS: &str = "addresses with or without port, such as 10.0.0.2,[fd00::2]:53, or the path of a resolv.conf";

/// Addresses to listen at; none for `off`. Replies must leave from the address that was asked, so each is named.
fn listen_list(raw: &str) -> Result<Vec<SocketAddr>, String> {
    if raw == "off" {
        return Ok(vec![]);
    }
    let address = |item: &str| match parse::socket_addr(item.trim())? {
        address if address.ip().is_unspecified() => {
            Err(format!("has {address}, from which replies could leave with another address; name each address"))
        }
        address if address.port() == 0 => Err(format!("has {address} without a port")),
        address => Ok(address),
    };
    raw.split(',').map(address).collect()
}

fn upstream(raw: &str) -> Result<Source, String> {
    if raw.starts_with('/') {
        return Ok(Source::File(raw.into()));
    }
    let server = |item: &str| match item.trim().parse::<IpAddr>() {
        Ok(address) => Ok(SocketAddr::new(address, servers::PORT)),
        Err(_) => parse::socket_addr(item.trim()),
    };
    raw.split(',').map(server).collect::<Result<_, _>>().map(Source::Servers)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::gateways::{Access, CA_FILE, TOKEN_FILE};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Config, Vec<String>> {
        let words = ["agent"].iter().chain(words);
        let mut problems = Problems::new();
        let args = Cli::try_parse_from(words).expect("clap takes the words").args;
        args.parse(&mut problems, None, "n1").ok_or_else(|| problems.lines().collect())
    }

    #[test]
    fn a_service_brings_files_and_a_name_with_it() {
        let config = parse(&["--gateway-service=portico-system/portico-gateway"]).expect("is enough");
        let access = Access {
            ca: Some(CA_FILE.into()),
            token: Some(TOKEN_FILE.into()),
            name: Some("portico-gateway.portico-system.svc".into()),
        };
        assert_eq!(config.gateways.access, access);
        assert_eq!(config.gateway_service.map(|service| service.scheme), Some("https"));
        let config = parse(&["--gateway-service=a/b", "--insecure-discovery"]).expect("is enough");
        assert_eq!(config.gateways.access, Access::default());
        assert_eq!(config.gateway_service.map(|service| service.scheme), Some("http"));
        let config = parse(&[]).expect("the defaults are right");
        assert_eq!(*config.gateways.replicas.borrow(), ["http://127.0.0.1:18000"]);
        assert_eq!(config.gateways.access, Access::default());
    }

    #[test]
    fn no_option_changes_the_limits() {
        let config = parse(&["--workers=1"]).expect("the defaults are right");
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn what_would_not_be_safe_or_cannot_work_is_named() {
        let cases: [(&[&str], &str); 5] = [
            (&["--gateway=https://a:1"], "--gateway-ca: is missing"),
            (&["--gateway=http://a:1", "--gateway-token=t"], "--gateway-token: must not"),
            (&["--gateway=ftp://a"], "--gateway: \"ftp://a\" is not a URL"),
            (&["--gateway-service=a"], "--gateway-service: \"a\" is not the name"),
            (&["--gateway-service=a/b/c"], "--gateway-service: \"a/b/c\" is not the name"),
        ];
        for (words, expected) in cases {
            let problems = parse(words).map(drop).expect_err("is wrong");
            assert!(problems[0].starts_with(expected), "{problems:?}");
        }
    }

    #[test]
    fn the_admin_port_of_an_address_alone_is_the_usual_one() {
        let listen = |raw| admin_listen(raw).map(|address| address.to_string());
        for (raw, expected) in [
            ("10.0.0.1", "10.0.0.1:18081"),
            ("fd00::1", "[fd00::1]:18081"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
        ] {
            assert_eq!(listen(raw).as_deref(), Ok(expected));
        }
        for wrong in ["", "18081", ":18081", "node-1", "[fd00::1]", "10.0.0.1:"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dns_listens_at_addresses_that_are_named() {
        let listen =
            |raw| listen_list(raw).map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        assert_eq!(listen("off").as_deref(), Ok(""));
        assert_eq!(listen("169.254.20.53:53, [fd00::53]:53").as_deref(), Ok("169.254.20.53:53 [fd00::53]:53"));
        for wrong in ["", "53", "0.0.0.0:53", "[::]:53", "127.0.0.1:0", "127.0.0.1", "on"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dns_asks_servers_or_those_of_a_file() {
        let servers = ["10.0.0.2:53", "[fd00::2]:5353"].map(|server| server.parse().expect("an address"));
        assert_eq!(upstream("10.0.0.2,[fd00::2]:5353"), Ok(Source::Servers(servers.into())));
        assert_eq!(upstream("/run/resolv.conf"), Ok(Source::File("/run/resolv.conf".into())));
        for wrong in ["", "dns.example.com", "resolv.conf", "10.0.0.2,"] {
            assert!(upstream(wrong).is_err(), "{wrong}");
        }
    }
}
