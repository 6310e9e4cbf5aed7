//! Hashes of clients, the same on every node, in every process and release.

use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_64;

/// A 64-bit hash of whatever a choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowHash(pub u64);

// === impl FlowHash ===

impl FlowHash {
    /// Of a client address. An IPv4 address and its IPv6-mapped form are one client (S8.2).
    pub fn of_client(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(xxh3_64(&address.octets())),
            IpAddr::V6(address) => Self(xxh3_64(&address.octets())),
        }
    }

    /// Of a header or cookie value.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(xxh3_64(bytes))
    }
}
