//! What this host has and allows, and the one setting of it that is changed.

use std::{collections::BTreeSet, io, ops::RangeInclusive, path::Path};

/// Local ports that the kernel does not give to connections.
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Keeps `ports` from being given to connections that start here, so that none of them occupies a node port (S9.7).
///
/// # Errors
/// When the setting cannot be read or written.
pub fn reserve_ports(ports: RangeInclusive<u16>) -> io::Result<()> {
    let path = Path::new(RESERVED_PORTS);
    let present = std::fs::read_to_string(path)?;
    match reserved_with(present.trim(), ports) {
        Some(wanted) => std::fs::write(path, wanted),
        None => Ok(()),
    }
}

/// The setting `present` with `ports` added; `None` if they are in it.
fn reserved_with(present: &str, ports: RangeInclusive<u16>) -> Option<String> {
    let range = |part: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let reserved: BTreeSet<u16> = present.split(',').filter_map(range).flatten().collect();
    if ports.clone().all(|port| reserved.contains(&port)) {
        return None;
    }
    let ports = format!("{}-{}", ports.start(), ports.end());
    Some(if present.is_empty() { ports } else { format!("{present},{ports}") })
}

/// Whether this process has CAP_NET_ADMIN, without which there are no packet rules.
pub fn is_capable() -> bool {
    const NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << NET_ADMIN) != 0)
}

/// Whether this host has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_added_to_what_is_reserved() {
        let check = |present, expected: Option<&str>| {
            assert_eq!(reserved_with(present, 30_000..=32_767).as_deref(), expected, "{present:?}");
        };
        check("", Some("30000-32767"));
        check("8080,9000-9010", Some("8080,9000-9010,30000-32767"));
        check("30000-32767", None);
        check("1,29000-31000,31001-40000", None);
        check("30001-32767", Some("30001-32767,30000-32767"));
    }
}
