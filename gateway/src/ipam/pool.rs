//! What can be given away: addresses of networks and ranges, and node ports in their two bands.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;

/// Something claims can be granted from.
pub trait Space {
    /// What is granted.
    type Item: Copy + Ord + fmt::Display + fmt::Debug;

    /// Whether the item may be granted at all.
    fn contains(&self, item: Self::Item) -> bool;

    /// Every item that may be granted unasked, best first. `seed` belongs to the claimant; spaces that spread their
    /// grants begin at a place that depends on it alone, so that one claimant's grant rarely depends on another's.
    fn candidates(&self, seed: u64) -> Box<dyn Iterator<Item = Self::Item> + '_>;
}

/// Addresses of one family for ClusterIPs, as ranges with both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    ranges: Vec<RangeInclusive<u128>>,
    ipv4: bool,
}

/// A node-port range, with the lower band left to explicit requests as long as the upper one lasts (S9.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

// === impl Pool ===

impl Pool {
    /// The addresses that Services may have: a network less its first address, and for IPv4 its last (as the API server
    /// leaves them out, because they name the network and its broadcast address).
    pub fn of_services<'a>(networks: impl IntoIterator<Item = &'a IpNet>, ipv4: bool) -> Self {
        let ranges = of_family(networks, ipv4).map(|network| {
            let ends = ends(&network);
            let (first, last) = (*ends.start(), *ends.end());
            if last - first < 2 {
                return ends;
            }
            first + 1..=if ipv4 { last - 1 } else { last }
        });
        Self { ranges: ranges.collect(), ipv4 }
    }

    /// Whether there is no address at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn address(&self, number: u128) -> IpAddr {
        address(number, self.ipv4)
    }
}

impl Space for Pool {
    type Item = IpAddr;

    fn contains(&self, item: IpAddr) -> bool {
        item.is_ipv4() == self.ipv4 && self.ranges.iter().any(|range| range.contains(&number(item)))
    }

    fn candidates(&self, seed: u64) -> Box<dyn Iterator<Item = IpAddr> + '_> {
        let size = self.ranges.iter().map(|range| (range.end() - range.start()).saturating_add(1));
        let size = size.fold(0u128, u128::saturating_add).max(1);
        let start = u128::from(seed) % size;
        let at = move |offset: u128| {
            let mut left = offset;
            for range in &self.ranges {
                let length = (range.end() - range.start()).saturating_add(1);
                if left < length {
                    return Some(self.address(range.start() + left));
                }
                left -= length;
            }
            None
        };
        Box::new((start..size).chain(0..start).map_while(at))
    }
}

fn of_family<'a>(networks: impl IntoIterator<Item = &'a IpNet>, ipv4: bool) -> impl Iterator<Item = IpNet> {
    networks.into_iter().filter(move |network| network.addr().is_ipv4() == ipv4).copied()
}

fn ends(network: &IpNet) -> RangeInclusive<u128> {
    number(network.network())..=number(network.broadcast())
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// A number as an address; of an IPv4 address the lower 32 bits count.
pub fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
}

// === impl PortRange ===

impl PortRange {
    /// All ports of the range.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { first: *range.start(), last: *range.end() }
    }

    /// First and last port.
    pub fn ends(&self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// Size of the band that is left to explicit requests: min(max(16, size/32), 128); ranges under 16 ports have none.
    fn band(&self) -> u16 {
        let size = u32::from(self.last - self.first) + 1;
        if size < 16 { 0 } else { (size / 32).clamp(16, 128).min(size) as u16 }
    }
}

impl Space for PortRange {
    type Item = u16;

    fn contains(&self, item: u16) -> bool {
        (self.first..=self.last).contains(&item)
    }

    fn candidates(&self, seed: u64) -> Box<dyn Iterator<Item = u16> + '_> {
        let (first, band) = (u32::from(self.first), u32::from(self.band()));
        let upper = first + band..u32::from(self.last) + 1;
        let size = u64::from(upper.end - upper.start).max(1);
        let start = upper.start + (seed % size) as u32;
        let spread = (start..upper.end).chain(upper.start..start.min(upper.end));
        Box::new(spread.chain(first..first + band).map(|port| port as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn services_get_neither_the_first_nor_the_last_address_of_a_network() {
        let pool = Pool::of_services(&[net("127.96.0.0/30"), net("fd00::/126")], true);
        let mut all: Vec<_> = pool.candidates(7).map(|address| address.to_string()).collect();
        all.sort();
        assert_eq!(all, ["127.96.0.1", "127.96.0.2"]);
        assert!(!pool.contains("127.96.0.0".parse().unwrap()) && !pool.contains("fd00::1".parse().unwrap()));
        let pool = Pool::of_services(&[net("127.96.0.0/30"), net("fd00::/126")], false);
        assert_eq!(pool.candidates(0).count(), 3);
    }

    #[test]
    fn spreading_visits_every_address_once_from_the_place_of_the_seed() {
        let pool = Pool::of_services(&[net("10.0.0.0/29"), net("10.9.0.0/29")], true);
        let all: Vec<_> = pool.candidates(8).collect();
        assert_eq!(all[0].to_string(), "10.9.0.3");
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (12, 12));
    }

    #[test]
    fn an_ipv6_network_of_any_size_is_walked_lazily() {
        let pool = Pool::of_services(&[net("fd00::/8")], false);
        assert_eq!(pool.candidates(u64::MAX).take(2).count(), 2);
    }

    #[test]
    fn node_ports_come_from_the_upper_band_first() {
        let range = PortRange::new(30000..=32767);
        let all: Vec<_> = range.candidates(5).collect();
        assert_eq!((all[0], all.len()), (30091, 2768), "the lower band of the default range is 30000 to 30085");
        assert_eq!(all[2768 - 86..].first(), Some(&30000));
        assert_eq!(PortRange::new(1..=65535).candidates(0).count(), 65535);
        assert_eq!(
            PortRange::new(30000..=30004).candidates(2).collect::<Vec<_>>(),
            [30002, 30003, 30004, 30000, 30001]
        );
    }
}
