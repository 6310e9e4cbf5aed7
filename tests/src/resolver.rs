//! How a Pod resolves names: what the kubelet writes into its resolv.conf, and the order in which the C library tries
//! names by it.

use serde::Deserialize;

/// The most search domains that the kubelet writes, and the most characters of them.
const DOMAINS: usize = 32;
const CHARACTERS: usize = 2_048;

/// The DNS settings of a Pod, and what the kubelet adds to them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodDns {
    namespace: String,
    dns_policy: Option<String>,
    dns_config: DnsConfig,
    host_network: bool,
    cluster_domain: String,
    /// Search domains of the node's resolv.conf.
    node_search: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct DnsConfig {
    searches: Vec<String>,
    options: Vec<DnsOption>,
}

#[derive(Clone, Debug, Deserialize)]
struct DnsOption {
    name: String,
    #[serde(default)]
    value: Option<String>,
}

/// What a resolv.conf says of names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Resolver {
    /// Domains to try.
    #[serde(default)]
    pub search: Vec<String>,
    /// Names with as many dots are tried as they are first.
    #[serde(default = "one")]
    pub ndots: usize,
}

fn one() -> usize {
    1
}

// === impl PodDns ===

impl PodDns {
    /// The resolver of the Pod's containers.
    pub fn resolver(&self) -> Resolver {
        let policy = self.dns_policy.as_deref().unwrap_or("ClusterFirst");
        let of_cluster = match policy {
            "ClusterFirst" => !self.host_network,
            "ClusterFirstWithHostNet" => true,
            _ => false,
        };
        let mut search = Vec::new();
        if of_cluster {
            let domain = &self.cluster_domain;
            search.extend([format!("{}.svc.{domain}", self.namespace), format!("svc.{domain}"), domain.clone()]);
        }
        if policy != "None" {
            search.extend(self.node_search.iter().cloned());
        }
        search.extend(self.dns_config.searches.iter().cloned());
        let mut seen = std::collections::HashSet::new();
        search.retain(|domain| seen.insert(domain.clone()));
        search.truncate(DOMAINS);
        while search.iter().map(|domain| domain.len() + 1).sum::<usize>() > CHARACTERS + 1 {
            search.pop();
        }
        let option = self.dns_config.options.iter().rfind(|option| option.name == "ndots");
        let ndots = option.and_then(|option| option.value.as_ref()?.parse().ok());
        Resolver { search, ndots: ndots.unwrap_or(if of_cluster { 5 } else { 1 }) }
    }
}

// === impl Resolver ===

impl Resolver {
    /// The full names to try for what was typed, in order.
    pub fn candidates(&self, typed: &str) -> Vec<String> {
        if typed.ends_with('.') {
            return vec![typed.to_owned()];
        }
        let mut names: Vec<String> =
            self.search.iter().map(|domain| format!("{typed}.{}.", domain.trim_end_matches('.'))).collect();
        let early = typed.matches('.').count() >= self.ndots;
        names.insert(if early { 0 } else { names.len() }, format!("{typed}."));
        names
    }

    /// The first of the names to try that exists.
    pub fn lookup(&self, typed: &str, exists: impl Fn(&str) -> bool) -> Option<String> {
        self.candidates(typed).into_iter().find(|name| exists(name))
    }
}
