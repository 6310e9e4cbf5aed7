//! The link-local address that Pods ask: put on the loopback interface of the node, as NodeLocal DNSCache does, so that
//! it needs no route and no other node ever sees it.
//!
//! It is never taken away. Two agents overlap while one replaces the other, and the one that ends must not take the
//! address from the one that begins; and while there is none, clients learn at once that nobody listens.

use std::{io, net::Ipv4Addr};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

/// RTM_NEWADDR with NLM_F_REQUEST, NLM_F_ACK and NLM_F_CREATE (linux/netlink.h, linux/rtnetlink.h).
const NEW_ADDRESS: u16 = 20;
const FLAGS: u16 = 0x0001 | 0x0004 | 0x0400;
/// The kind of message that carries the outcome.
const ERROR: u16 = 2;
/// Bytes of a netlink header, and of it with what an address needs: `ifaddrmsg` and one attribute.
const HEADER: usize = 16;
const LENGTH: usize = HEADER + 8 + 8;
const IFA_LOCAL: u16 = 2;
const SCOPE_HOST: u8 = 254;

/// Whether an address is one that an agent may put on its node: it means something on this node only, so that a mistake
/// cannot hide another machine.
pub fn may_add(address: Ipv4Addr) -> bool {
    address.is_link_local()
}

/// Puts `address` on the loopback interface of this network namespace. One that is there already is no error.
///
/// # Errors
/// `PermissionDenied` without the capability NET_ADMIN; otherwise what the system says.
pub fn add(address: Ipv4Addr) -> io::Result<()> {
    let interface = if_nametoindex("lo")?;
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.send(&request(address, interface))?;
    let mut buffer = [0; 4_096];
    let length = io::Read::read(&mut &socket, &mut buffer)?;
    outcome(&buffer[..length])
}

/// What the kernel says became of the request: zero, or a negative error number.
fn outcome(message: &[u8]) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "netlink answered with something else than an outcome");
    let kind = message.get(4..6).and_then(|bytes| bytes.first_chunk::<2>()).ok_or_else(bad)?;
    let code = message.get(HEADER..).and_then(|bytes| bytes.first_chunk::<4>()).ok_or_else(bad)?;
    if u16::from_ne_bytes(*kind) != ERROR {
        return Err(bad());
    }
    match -i32::from_ne_bytes(*code) {
        0 | libc::EEXIST => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The message that asks for the address, in the byte order of this machine as netlink wants it.
fn request(address: Ipv4Addr, interface: u32) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    message[..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&NEW_ADDRESS.to_ne_bytes());
    message[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
    message[HEADER..HEADER + 4].copy_from_slice(&[libc::AF_INET as u8, 32, 0, SCOPE_HOST]);
    message[HEADER + 4..HEADER + 8].copy_from_slice(&interface.to_ne_bytes());
    message[HEADER + 8..HEADER + 10].copy_from_slice(&8u16.to_ne_bytes());
    message[HEADER + 10..HEADER + 12].copy_from_slice(&IFA_LOCAL.to_ne_bytes());
    message[HEADER + 12..].copy_from_slice(&address.octets());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_node_alone_are_added() {
        assert!(may_add(Ipv4Addr::new(169, 254, 20, 53)));
        assert!(!may_add(Ipv4Addr::new(10, 0, 0, 1)) && !may_add(Ipv4Addr::UNSPECIFIED));
    }

    #[test]
    fn the_kernel_s_answer_is_read() {
        let message = |kind: u16, error: i32| {
            let mut message = vec![0; 36];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[16..20].copy_from_slice(&error.to_ne_bytes());
            message
        };
        assert!(outcome(&message(ERROR, 0)).is_ok());
        assert!(outcome(&message(ERROR, -libc::EEXIST)).is_ok());
        let denied = outcome(&message(ERROR, -libc::EPERM)).map_err(|error| error.kind());
        assert_eq!(denied, Err(io::ErrorKind::PermissionDenied));
        assert!(outcome(&message(3, 0)).is_err() && outcome(&[0; 10]).is_err());
    }
}
