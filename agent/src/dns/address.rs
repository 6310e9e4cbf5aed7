//! The link-local address that Pods ask: put on the loopback interface of the node, as NodeLocal DNSCache does, so that
//! it needs no route and no other node ever sees it.
//!
//! What an agent adds carries a label, and only that is taken away, by the last agent of the node that answers there: two
//! agents may overlap while one replaces the other.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

/// What `ip address` shows beside an address that an agent has added. It begins with the interface, as labels must.
const LABEL: &[u8; 11] = b"lo:portico\0";

/// RTM_NEWADDR and RTM_DELADDR (linux/rtnetlink.h).
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
/// NLM_F_REQUEST with NLM_F_ACK, and NLM_F_CREATE (linux/netlink.h).
const REQUEST: u16 = 0x0001 | 0x0004;
const CREATE: u16 = 0x0400;
/// The kind of message that carries the outcome.
const ERROR: u16 = 2;
/// Bytes of a netlink header, of `ifaddrmsg` behind it, and of each attribute's own header.
const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ATTRIBUTE_HEADER: usize = 4;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
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
    match ask(NEW_ADDRESS, REQUEST | CREATE, address) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

/// Takes away what an agent has added, unless somebody answers at this address and port. Gives whether it was taken away.
///
/// # Errors
/// As [`add`].
pub fn remove(address: SocketAddrV4) -> io::Result<bool> {
    // Whoever wants to listen here meanwhile is told that the address is in use, tries again, and then adds the address.
    let _alone = match UdpSocket::bind(address) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    match ask(DELETE_ADDRESS, REQUEST, *address.ip()) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

fn ask(kind: u16, flags: u16, address: Ipv4Addr) -> io::Result<()> {
    let interface = if_nametoindex("lo")?;
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.send(&request(kind, flags, address, interface))?;
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
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The message that asks for the address with our label, in the byte order of this machine as netlink wants it.
fn request(kind: u16, flags: u16, address: Ipv4Addr, interface: u32) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[libc::AF_INET as u8, 32, 0, SCOPE_HOST]);
    message.extend_from_slice(&interface.to_ne_bytes());
    debug_assert_eq!(message.len(), HEADER + ADDRESS_HEADER);
    attribute(&mut message, IFA_LOCAL, &address.octets());
    attribute(&mut message, IFA_LABEL, LABEL);
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// Appends an attribute. Each begins at a multiple of four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (ATTRIBUTE_HEADER + value.len()) as u16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
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
    fn a_request_carries_address_and_label() {
        let message = request(NEW_ADDRESS, REQUEST | CREATE, Ipv4Addr::new(169, 254, 20, 53), 1);
        assert_eq!(message.len(), 48);
        assert_eq!(message[..4], 48_u32.to_ne_bytes());
        assert_eq!(message[28..32], [169, 254, 20, 53]);
        assert_eq!(message[36..47], *LABEL);
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
        let denied = outcome(&message(ERROR, -libc::EPERM)).map_err(|error| error.kind());
        assert_eq!(denied, Err(io::ErrorKind::PermissionDenied));
        assert!(outcome(&message(3, 0)).is_err() && outcome(&[0; 10]).is_err());
    }
}
