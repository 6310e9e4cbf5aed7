//! From a ruleset to what `nft` reads. Pure.
//!
//! Marks are kept in the lowest byte of the packet's mark, whose other bits belong to others. The rules, in short:
//!
//! - A TCP packet whose socket is one of ours belongs to us, whatever became of its Service (S16.1). For UDP the
//!   destination comes first: sockets that answer from the address of a Service must not swallow what clients send to it.
//! - One look-up says what becomes of a packet. What is caught goes to the transparent listeners; without a listener,
//!   between two lives of an agent, it is lost, and clients try again.
//! - What starts on this node passes the output hook first, where the mark sends it through `lo` to the rules above. A
//!   mark on the connection keeps it there, also when its Service goes; the same mark brings back the answers of
//!   processes on this node to connections that we opened with the address of their client.
//! - What is still on its way to an address of a Service when others have had their turn, such as kube-proxy, is refused
//!   or dropped (S5.4).
//! - The empty chain `unique` has the kernel find a free source port for a connection whose addresses and ports are those of
//!   one that it still tracks under other ones, as kube-proxy leaves them. Without any chain of type nat it drops it.
//! - Without an entry in `alive` nothing happens at all. The agent renews it; when it is gone, the rules soon are as well.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};

use api::resource::service::Transport;
use ipnet::IpNet;

use super::ruleset::{Action, Ruleset};
use crate::{forward::socket::OWN_MARK, table::Destination};

/// The table that is ours.
pub const TABLE: &str = "inet portico";

/// On packets that go to our listeners, and on connections whose packets do.
pub const CAUGHT: u32 = 0x50;

/// On packets of our own sockets.
pub const OWN: u32 = OWN_MARK;

/// The byte of the mark that is ours.
pub const MASK: u32 = 0xff;

/// Ports of the transparent listeners, at the loopback address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// IPv4.
    pub ipv4: Pair,
    /// IPv6, if this host has it.
    pub ipv6: Option<Pair>,
}

/// Ports of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pair {
    pub tcp: u16,
    pub udp: u16,
}

/// Replaces the table by one for `ruleset`, in one transaction. Rules die `lease` after the last renewal; without one
/// they stay.
pub fn replace(ruleset: &Ruleset, ports: &Ports, lease: Option<Duration>) -> String {
    let mut script = format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    declare_sets(&mut script, lease);
    declare_chains(&mut script, ports);
    script.push_str("}\n");
    script.push_str(&renew(lease));
    change(&mut script, &Ruleset::default(), ruleset);
    script
}

/// What turns the sets of `old` into those of `new`; empty if they are equal.
pub fn update(old: &Ruleset, new: &Ruleset) -> String {
    let mut script = String::new();
    change(&mut script, old, new);
    script
}

/// Keeps the rules in force for another `lease`. Fails if the table is gone.
pub fn renew(lease: Option<Duration>) -> String {
    let time = lease.map_or_else(String::new, |lease| format!(" timeout {}s", lease.as_secs()));
    format!("flush set {TABLE} alive\nadd element {TABLE} alive {{ ipv4{time}, ipv6{time} }}\n")
}

/// Prints the table, to see whether it is as it was. In one command: `nft` 1.0.6 finds only the last one of several
/// chains that a script lists.
pub fn list() -> String {
    format!("list table {TABLE}\n")
}

/// Removes the table, whether it is there or not.
pub fn remove() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

fn declare_sets(script: &mut String, lease: Option<Duration>) {
    let flags = if lease.is_some() { " flags timeout;" } else { "" };
    let _ = writeln!(script, "set alive {{ type nf_proto;{flags} }}");
    for (version, address) in [(4, "ipv4_addr"), (6, "ipv6_addr")] {
        let key = format!("{address} . inet_proto . inet_service");
        let _ = write!(
            script,
            "map services{version} {{ type {key} : verdict; }}\n\
             map guarded{version} {{ type {key} : verdict; }}\n\
             set admitted{version} {{ type {key} . {address}; flags interval; }}\n\
             set inside{version} {{ type {address}; flags interval; }}\n\
             set cluster_ips{version} {{ type {address}; }}\n\
             set service_ranges{version} {{ type {address}; flags interval; }}\n",
        );
    }
}

fn declare_chains(script: &mut String, ports: &Ports) {
    let mark = |field: &str, value: u32| format!("{field} mark set {field} mark and {:#x} or {value:#x}", !MASK);
    let is = |field: &str, value: u32| format!("{field} mark and {MASK:#x} == {value:#x}");
    let (catch, caught, own) = (mark("meta", CAUGHT), is("meta", CAUGHT), is("meta", OWN));
    let (hold, held) = (mark("ct", CAUGHT), is("ct", CAUGHT));
    // In the output hook, what is to be dropped goes through `lo` to the prerouting hook as well: there a process on this
    // node meets the silence that others do, and not an error of its system call.
    let outgoing = "oif != 0";
    let judge = "ip daddr . meta l4proto . th dport vmap @services4\n\
                 ip6 daddr . meta l4proto . th dport vmap @services6\n";
    let deliver: String = [("ip", "127.0.0.1", Some(ports.ipv4)), ("ip6", "[::1]", ports.ipv6)]
        .into_iter()
        .filter_map(|(family, host, pair)| pair.map(|pair| (family, host, pair)))
        .flat_map(|(family, host, pair)| {
            [("tcp", pair.tcp), ("udp", pair.udp)]
                .map(|(protocol, port)| format!("meta l4proto {protocol} tproxy {family} to {host}:{port} accept\n"))
        })
        .collect();
    let guard = |version: &str, family: &str| {
        let key = format!("{family} daddr . meta l4proto . th dport");
        format!("{key} . {family} saddr != @admitted{version} goto silence\n{key} vmap @guarded{version}\n")
    };
    let (guard4, guard6) = (guard("4", "ip"), guard("6", "ip6"));
    let _ = write!(
        script,
        "chain catch {{\n{catch}\n}}\n\
         chain catch_inside {{\n\
         ip saddr @inside4 goto catch\n\
         ip6 saddr @inside6 goto catch\n\
         fib saddr type local goto catch\n\
         goto silence\n}}\n\
         chain silence {{\n{outgoing} goto catch\ndrop\n}}\n\
         chain refuse {{\nmeta l4proto tcp reject with tcp reset\nreject with icmpx type port-unreachable\n}}\n\
         chain guard {{\n{guard4}{guard6}}}\n\
         chain ours {{\nsocket wildcard 1 return\n{catch}\naccept\n}}\n\
         chain deliver {{\n{deliver}drop\n}}\n\
         chain prerouting {{\n\
         type filter hook prerouting priority mangle; policy accept;\n\
         meta nfproto != @alive accept\n\
         {own} accept\n\
         meta l4proto tcp socket transparent 1 jump ours\n\
         {judge}\
         {caught} goto deliver\n\
         meta l4proto udp socket transparent 1 jump ours\n}}\n\
         chain own {{\nfib saddr type != local {hold}\naccept\n}}\n\
         chain output {{\n\
         type route hook output priority mangle; policy accept;\n\
         meta nfproto != @alive accept\n\
         {own} goto own\n\
         {held} goto catch\n\
         {judge}\
         {caught} {hold}\n}}\n\
         chain unclaimed {{\n\
         ip daddr @cluster_ips4 goto refuse\n\
         ip6 daddr @cluster_ips6 goto refuse\n\
         ip daddr @service_ranges4 drop\n\
         ip6 daddr @service_ranges6 drop\n}}\n\
         chain forward {{\n\
         type filter hook forward priority filter; policy accept;\n\
         meta nfproto @alive goto unclaimed\n}}\n\
         chain sent {{\n\
         type filter hook output priority filter; policy accept;\n\
         {caught} accept\n\
         {own} accept\n\
         meta nfproto @alive goto unclaimed\n}}\n\
         chain unique {{\ntype nat hook postrouting priority srcnat; policy accept;\n}}\n",
    );
}

/// Removals come first: a destination whose action changed is taken out and put in again by the same transaction.
/// Sets of ranges are filled anew, because the kernel compares new ranges with those that are about to go.
fn change(script: &mut String, old: &Ruleset, new: &Ruleset) {
    for (name, old, new) in [("services", &old.services, &new.services), ("guarded", &old.guarded, &new.guarded)] {
        let changed = |from: &BTreeMap<Destination, Action>, to: &BTreeMap<Destination, Action>, full| {
            let changed = from.iter().filter(|(key, action)| to.get(key) != Some(action));
            let element = |(key, action): (&Destination, &Action)| {
                let text = destination(key);
                (key.address.is_ipv4(), if full { format!("{text} : {}", jump(*action)) } else { text })
            };
            changed.map(element).collect::<Vec<_>>()
        };
        elements(script, "delete", name, changed(old, new, false));
        elements(script, "add", name, changed(new, old, true));
    }
    let address = |address: &IpAddr| (address.is_ipv4(), address.to_string());
    elements(script, "delete", "cluster_ips", old.cluster_ips.difference(&new.cluster_ips).map(address));
    elements(script, "add", "cluster_ips", new.cluster_ips.difference(&old.cluster_ips).map(address));
    let ranges = [("inside", &old.inside, &new.inside), ("service_ranges", &old.service_ranges, &new.service_ranges)];
    for (name, old, new) in ranges {
        if old != new {
            flush(script, name);
            elements(script, "add", name, new.iter().map(|range| (is_ipv4(range), range.to_string())));
        }
    }
    if old.admitted != new.admitted {
        flush(script, "admitted");
        let element = |(key, range): &(Destination, IpNet)| (is_ipv4(range), format!("{} . {range}", destination(key)));
        elements(script, "add", "admitted", new.admitted.iter().map(element));
    }
}

fn elements(script: &mut String, verb: &str, set: &str, elements: impl IntoIterator<Item = (bool, String)>) {
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = elements.into_iter().partition(|(is_ipv4, _)| *is_ipv4);
    for (version, elements) in [(4, ipv4), (6, ipv6)] {
        if elements.is_empty() {
            continue;
        }
        let _ = write!(script, "{verb} element {TABLE} {set}{version} {{ ");
        elements.iter().for_each(|(_, element)| {
            script.push_str(element);
            script.push_str(", ");
        });
        script.truncate(script.len() - 2);
        script.push_str(" }\n");
    }
}

fn flush(script: &mut String, set: &str) {
    [4, 6].iter().for_each(|version| {
        let _ = writeln!(script, "flush set {TABLE} {set}{version}");
    });
}

fn destination(destination: &Destination) -> String {
    let protocol = match destination.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
        Transport::Sctp => "sctp",
    };
    format!("{} . {protocol} . {}", destination.address.ip(), destination.address.port())
}

fn jump(action: Action) -> &'static str {
    match action {
        Action::Catch => "jump catch",
        Action::CatchInside => "jump catch_inside",
        Action::Refuse => "goto refuse",
        Action::Drop => "goto silence",
        Action::Guard => "jump guard",
    }
}

fn is_ipv4(range: &IpNet) -> bool {
    range.addr().is_ipv4()
}

#[cfg(test)]
mod tests;
