//! The network of a Pod: a namespace, a pair of virtual links into the node's namespace, addresses and routes.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::command;

/// The node's end of each link has this address, so that every Pod's route begins alike.
const GATEWAY6: &str = "fe80::1";

/// The addresses of a node's Pods.
#[derive(Debug)]
pub struct Pool {
    ranges: Vec<IpNet>,
    /// Host parts in use, and the one given out last: an address rests as long as possible before it is used again.
    taken: Mutex<(BTreeSet<u32>, u32)>,
}

/// The place of a Pod in each of the ranges. It is free again when this is dropped.
#[derive(Debug)]
struct Place {
    pool: Arc<Pool>,
    host: u32,
}

/// The network namespace of one Pod.
#[derive(Debug)]
pub struct PodNetwork {
    /// Its name, as `ip netns` lists it.
    pub namespace: String,
    /// Its addresses, in the order of the node's ranges.
    pub addresses: Vec<IpAddr>,
    link: String,
    place: Place,
}

// === impl Pool ===

impl Pool {
    /// Addresses from a Node's `spec.podCIDRs`.
    ///
    /// # Errors
    /// When one is no address range.
    pub fn new(ranges: &[String]) -> anyhow::Result<Self> {
        let parse = |range: &String| range.parse().with_context(|| format!("spec.podCIDRs has {range:?}"));
        Ok(Self {
            ranges: ranges.iter().map(parse).collect::<Result<_, _>>()?,
            taken: Mutex::new((BTreeSet::new(), 1)),
        })
    }

    fn take(self: &Arc<Self>) -> Option<Place> {
        // 0 is the range itself, 1 is left to the node, and the last one of the smallest range is its broadcast address.
        let smallest = self.ranges.iter().map(|range| u32::from(range.max_prefix_len() - range.prefix_len())).min()?;
        let last = 2_u32.pow(smallest.min(16)).checked_sub(2)?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (used, latest) = &mut *taken;
        let host = (*latest + 1..=last).chain(2..=*latest).find(|host| !used.contains(host))?;
        used.insert(host);
        *latest = host;
        Some(Place { pool: self.clone(), host })
    }
}

// === impl Place ===

impl Place {
    fn addresses(&self) -> Vec<IpAddr> {
        self.pool.ranges.iter().map(|range| nth(range, self.host)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.taken.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&self.host);
    }
}

fn nth(range: &IpNet, host: u32) -> IpAddr {
    match range.network() {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + host).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(host)).into()),
    }
}

// === impl PodNetwork ===

impl PodNetwork {
    /// Makes the network of a Pod. To be called in the node's namespace.
    ///
    /// # Errors
    /// When no address is left, or a command fails.
    pub async fn create(uid: &str, pool: &Arc<Pool>, node: &[IpAddr]) -> anyhow::Result<Self> {
        let place = pool.take().context("no address is left in spec.podCIDRs")?;
        let addresses = place.addresses();
        let network = Self { namespace: namespace(uid), addresses, link: link(uid), place };
        network.make(node).await?;
        Ok(network)
    }

    async fn make(&self, node: &[IpAddr]) -> anyhow::Result<()> {
        let Self { namespace, link, .. } = self;
        // Left by an attempt that failed.
        clear(namespace, link).await;
        command::words(&format!("ip netns add {namespace}")).await?;
        // Addresses are given out once, so there is no need to look for duplicates, which takes a second.
        let settings = "net.ipv6.conf.default.accept_dad=0 net.ipv4.tcp_congestion_control=reno \
                        net.ipv4.ip_unprivileged_port_start=0";
        command::words(&format!("ip netns exec {namespace} sysctl -qw {settings}")).await?;
        let mut outside = format!(
            "link add {link} type veth peer name eth0 netns {namespace}\n\
             link set {link} up\n\
             address add {GATEWAY6}/64 dev {link} nodad\n"
        );
        // Whoever sends to a Pod that is gone learns it from the node, as with the usual network plugins.
        for range in &self.place.pool.ranges {
            outside += &format!("route replace unreachable {range}\n");
        }
        let mut inside = "link set lo up\nlink set eth0 up\n".to_owned();
        for address in &self.addresses {
            let all = if address.is_ipv4() { 32 } else { 128 };
            outside += &format!("route replace {address}/{all} dev {link}\n");
            inside += &format!("address add {address}/{all} dev eth0 nodad\n");
            inside += &match (address, node.iter().find(|node| node.is_ipv4())) {
                (IpAddr::V4(_), Some(gateway)) => {
                    format!("route add {gateway} dev eth0\nroute add default via {gateway} dev eth0\n")
                }
                (IpAddr::V4(_), None) => bail!("a Pod with an IPv4 address needs a node that has one"),
                (IpAddr::V6(_), _) => format!("route add default via {GATEWAY6} dev eth0\n"),
            };
        }
        batch(&["-batch", "-"], &outside).await?;
        batch(&["-netns", namespace, "-batch", "-"], &inside).await
    }
}

/// Removes the network of a Pod, whole or in part, if there is any.
pub async fn remove(uid: &str) {
    clear(&namespace(uid), &link(uid)).await;
}

async fn clear(namespace: &str, link: &str) {
    // Usually there is nothing to remove, which is no failure.
    let _ = command::words(&format!("ip link del {link}")).await;
    let _ = command::words(&format!("ip netns del {namespace}")).await;
}

/// Feeds lines to `ip`, which stops at the first that fails.
async fn batch(arguments: &[&str], lines: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run ip")?;
    let mut input = ip.stdin.take().context("standard input is a pipe")?;
    input.write_all(lines.as_bytes()).await?;
    drop(input);
    let output = ip.wait_with_output().await?;
    if !output.status.success() {
        bail!("`ip` refuses one of {lines:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn namespace(uid: &str) -> String {
    format!("portico-pod-{}", short(uid))
}

fn link(uid: &str) -> String {
    format!("pod{}", short(uid))
}

fn short(uid: &str) -> &str {
    uid.get(..8).unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ranges: &[&str]) -> Arc<Pool> {
        let ranges: Vec<String> = ranges.iter().map(|range| (*range).to_owned()).collect();
        Arc::new(Pool::new(&ranges).unwrap())
    }

    #[test]
    fn a_pod_has_the_same_place_in_every_range() {
        let place = pool(&["10.244.1.0/24", "fd44:0:0:1::/64"]).take().unwrap();
        assert_eq!(place.addresses(), ["10.244.1.2".parse::<IpAddr>().unwrap(), "fd44:0:0:1::2".parse().unwrap()]);
    }

    #[test]
    fn addresses_rest_before_they_are_used_again_and_run_out() {
        let pool = pool(&["10.244.1.0/29"]);
        let mut taken: Vec<Place> = (0..5).map(|_| pool.take().unwrap()).collect();
        assert_eq!(taken.iter().map(|place| place.host).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert!(pool.take().is_none());
        taken.retain(|place| place.host != 2 && place.host != 5);
        let again = pool.take().unwrap();
        assert_eq!((again.host, pool.take().unwrap().host), (2, 5));
    }
}
