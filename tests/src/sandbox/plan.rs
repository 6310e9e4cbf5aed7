//! Names and addresses of a sandbox. They are fixed: there is one sandbox at a time on a machine, and what is written
//! about it, manifests too, can name them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// Connects all nodes, the outside client and the machine itself.
pub const BRIDGE: &str = "portico0";
/// The machine's own addresses on the bridge. The API server is there.
pub const HOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 245, 0, 1)), last_of_bridge(1)];
/// Port of the API server, on all addresses of the machine.
pub const API_PORT: u16 = 6443;
/// Addresses of Pods, of which the controller manager gives each node a part.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd44::/56"];
/// Addresses of Services.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];
/// The first address of each range of Services: the Service `kubernetes`.
pub const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd96::1"];
/// Every network namespace of the sandbox, also those of Pods, has a name that begins with this.
pub const NAMESPACE_PREFIX: &str = "portico-";
/// As many nodes as there are addresses below that of the client.
pub const MOST_NODES: u8 = 80;

/// What to bring up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How many nodes, counted from 1.
    pub nodes: u8,
    /// Numbers of the nodes that run kube-proxy.
    pub kube_proxy: Vec<u8>,
    /// Name servers that the kubelets give to Pods, as the setting `clusterDNS` of a kubelet does. If there are none,
    /// the ClusterIPs of the Service `kube-dns` are taken.
    pub cluster_dns: Vec<IpAddr>,
    /// The program that the image `portico` holds.
    pub portico: PathBuf,
    /// The program `sandbox`, of which kubelets and what keeps the nodes together are processes.
    pub program: PathBuf,
}

/// Who has a network namespace and addresses on the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A node, by number.
    Node(u8),
    /// A client that is in no cluster.
    Client,
}

// === impl Plan ===

impl Plan {
    /// All that stand on the bridge.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        (1..=self.nodes).map(Role::Node).chain([Role::Client])
    }
}

// === impl Role ===

impl Role {
    /// By its name: that of a Node, or `client`. The reverse of [`Role::name`].
    pub fn parse(name: &str) -> Option<Self> {
        if name == "client" {
            return Some(Self::Client);
        }
        let number = name.strip_prefix("node-")?.parse().ok()?;
        let role = Self::Node(number);
        // Not `node-007`, and not `node-0`.
        (number > 0 && role.name() == name).then_some(role)
    }

    /// The name of the Node, or `client`.
    pub fn name(self) -> String {
        match self {
            Self::Node(number) => node_name(number),
            Self::Client => "client".to_owned(),
        }
    }

    /// The network namespace, as `ip netns` lists it.
    pub fn namespace(self) -> String {
        format!("{NAMESPACE_PREFIX}{}", self.name())
    }

    /// The machine's end of the cable. Names of links have at most 15 bytes.
    pub fn link(self) -> String {
        match self {
            Self::Node(number) => format!("portico-n{number}"),
            Self::Client => "portico-c".to_owned(),
        }
    }

    /// Addresses of `eth0`: 10.245.0.11 and fd45::11 for the first node, .100 and ::100 for the client.
    pub fn addresses(self) -> [IpAddr; 2] {
        let number = match self {
            Self::Node(number) => 10 + number,
            Self::Client => 100,
        };
        [IpAddr::V4(Ipv4Addr::new(10, 245, 0, number)), last_of_bridge(number)]
    }
}

/// Name of a Node.
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The zone of a node: three by turn.
pub fn zone(node: u8) -> &'static str {
    ["zone-c", "zone-a", "zone-b"][usize::from(node % 3)]
}

/// Where the API server is, as all parts of the sandbox call it.
pub fn api_url() -> String {
    format!("https://{}:{API_PORT}", HOST[0])
}

/// `fd45::N`, with the decimal digits of N, so that both addresses of a node look alike.
const fn last_of_bridge(number: u8) -> IpAddr {
    let number = number as u16;
    let digits = number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10;
    IpAddr::V6(Ipv6Addr::new(0xfd45, 0, 0, 0, 0, 0, 0, digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_role_show_the_same_digits() {
        let text = |role: Role| role.addresses().map(|address| address.to_string());
        assert_eq!(text(Role::Node(1)), ["10.245.0.11", "fd45::11"]);
        assert_eq!(text(Role::Node(MOST_NODES)), ["10.245.0.90", "fd45::90"]);
        assert_eq!(text(Role::Client), ["10.245.0.100", "fd45::100"]);
        assert_eq!(HOST.map(|address| address.to_string()), ["10.245.0.1", "fd45::1"]);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for role in [Role::Node(1), Role::Node(12), Role::Client] {
            assert_eq!(Role::parse(&role.name()), Some(role));
        }
        for wrong in ["node-0", "node-01", "node-", "node-x", "default/web", "node-300"] {
            assert_eq!(Role::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_links_fit_into_the_kernel() {
        let plan = Plan {
            nodes: MOST_NODES,
            kube_proxy: Vec::new(),
            cluster_dns: Vec::new(),
            portico: PathBuf::new(),
            program: PathBuf::new(),
        };
        assert!(plan.roles().all(|role| role.link().len() <= 15));
    }

    #[test]
    fn zones_go_by_turn() {
        assert_eq!([1, 2, 3, 4].map(zone), ["zone-a", "zone-b", "zone-c", "zone-a"]);
    }
}
