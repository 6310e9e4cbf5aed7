//! PROXY protocol, version 2, as bytes: what HAProxy's `doc/proxy-protocol.txt` describes in section 2.2, for connections
//! and datagrams of both families. Pure.
//!
//! The command LOCAL, the families UNSPEC and UNIX and the text form (version 1) have no meaning here, and are refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use api::resource::service::Transport;

/// What every header begins with.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes up to and with the length of the rest.
pub const PREFIX: usize = 16;

/// Bytes of a whole header at most. The specification allows 64 KiB, and asks senders to stay below 536.
pub const MAX_LENGTH: usize = 1024;

/// Version 2, command PROXY.
const PROXY: u8 = 0x21;

/// A header. Source and destination are of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// TCP or UDP.
    pub transport: Transport,
    /// Who began the connection.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// Type and value of what else is told, in order.
    pub tlvs: Vec<(u8, &'a [u8])>,
}

/// Why bytes are no header, or not one of use, or a header cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("does not begin as a PROXY header of version 2")]
    Signature,
    #[error("has version and command {0:#04x}; only 0x21, PROXY of version 2, is taken")]
    Command(u8),
    #[error("has family and protocol {0:#04x}; only TCP and UDP over IPv4 and IPv6 are taken")]
    Family(u8),
    #[error("is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("ends within its addresses or values")]
    Truncated,
    #[error("has a source and a destination of different families, or a protocol that is neither TCP nor UDP")]
    Mixed,
}

/// The length of the whole header that begins with these bytes.
///
/// # Errors
/// When they begin no header, or one that is too long.
pub fn length(prefix: &[u8; PREFIX]) -> Result<usize, Error> {
    if prefix[..12] != SIGNATURE {
        return Err(Error::Signature);
    }
    let length = PREFIX + usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
    if length > MAX_LENGTH { Err(Error::TooLong) } else { Ok(length) }
}

// === impl Header ===

impl<'a> Header<'a> {
    /// Takes `bytes`, all of them, for a header.
    ///
    /// # Errors
    /// When they are none, too few or too many.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let (prefix, rest) = bytes.split_first_chunk::<PREFIX>().ok_or(Error::Truncated)?;
        if length(prefix)? != bytes.len() {
            return Err(Error::Truncated);
        }
        if prefix[12] != PROXY {
            return Err(Error::Command(prefix[12]));
        }
        let transport = match prefix[13] & 0x0f {
            1 => Transport::Tcp,
            2 => Transport::Udp,
            _ => return Err(Error::Family(prefix[13])),
        };
        let (source, destination, rest) = match prefix[13] >> 4 {
            1 => addresses::<4>(rest)?,
            2 => addresses::<16>(rest)?,
            _ => return Err(Error::Family(prefix[13])),
        };
        Ok(Self { transport, source, destination, tlvs: tlvs(rest)? })
    }

    /// The bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`] and [`Error::Mixed`].
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let protocol = match self.transport {
            Transport::Tcp => 1,
            Transport::Udp => 2,
            Transport::Sctp => return Err(Error::Mixed),
        };
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&SIGNATURE);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend_from_slice(&[PROXY, 0x10 | protocol, 0, 0]);
                bytes.extend_from_slice(&source.octets());
                bytes.extend_from_slice(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend_from_slice(&[PROXY, 0x20 | protocol, 0, 0]);
                bytes.extend_from_slice(&source.octets());
                bytes.extend_from_slice(&destination.octets());
            }
            _ => return Err(Error::Mixed),
        }
        bytes.extend_from_slice(&self.source.port().to_be_bytes());
        bytes.extend_from_slice(&self.destination.port().to_be_bytes());
        for (kind, value) in &self.tlvs {
            let length = u16::try_from(value.len()).map_err(|_| Error::TooLong)?;
            bytes.push(*kind);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(value);
        }
        let length = u16::try_from(bytes.len() - PREFIX).map_err(|_| Error::TooLong)?;
        bytes[14..PREFIX].copy_from_slice(&length.to_be_bytes());
        if bytes.len() > MAX_LENGTH { Err(Error::TooLong) } else { Ok(bytes) }
    }
}

/// Source, destination and what follows them.
fn addresses<const N: usize>(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr, &[u8]), Error>
where
    [u8; N]: IntoAddress,
{
    let (source, rest) = bytes.split_first_chunk::<N>().ok_or(Error::Truncated)?;
    let (destination, rest) = rest.split_first_chunk::<N>().ok_or(Error::Truncated)?;
    let (ports, rest) = rest.split_first_chunk::<4>().ok_or(Error::Truncated)?;
    let source = SocketAddr::new(source.address(), u16::from_be_bytes([ports[0], ports[1]]));
    let destination = SocketAddr::new(destination.address(), u16::from_be_bytes([ports[2], ports[3]]));
    Ok((source, destination, rest))
}

fn tlvs(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, Error> {
    let mut tlvs = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(Error::Truncated)?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(Error::Truncated)?;
        tlvs.push((*kind, value));
        bytes = rest;
    }
    Ok(tlvs)
}

/// Octets of one of the two lengths.
trait IntoAddress {
    fn address(&self) -> IpAddr;
}

impl IntoAddress for [u8; 4] {
    fn address(&self) -> IpAddr {
        Ipv4Addr::from(*self).into()
    }
}

impl IntoAddress for [u8; 16] {
    fn address(&self) -> IpAddr {
        Ipv6Addr::from(*self).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn v4() -> Vec<u8> {
        let source = "192.0.2.7:40000".parse().expect("an address");
        let destination = "10.96.0.1:80".parse().expect("an address");
        let header = Header { transport: Transport::Tcp, source, destination, tlvs: vec![(0xe0, b"x")] };
        header.encode().expect("fits")
    }

    #[test]
    fn bytes_are_those_of_the_specification() {
        let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\xc0\0\x02\x07\x0a\x60\0\x01\x9c\x40\0\x50\xe0\0\x01x";
        assert_eq!(v4(), expected);
    }

    #[test]
    fn what_cannot_be_used_is_told_apart() {
        let check = |change: fn(&mut Vec<u8>), expected| {
            let mut bytes = v4();
            change(&mut bytes);
            assert_eq!(Header::parse(&bytes), Err(expected));
        };
        check(|bytes| bytes[0] = b'P', Error::Signature);
        check(|bytes| bytes[12] = 0x20, Error::Command(0x20));
        check(|bytes| bytes[12] = 0x11, Error::Command(0x11));
        check(|bytes| bytes[13] = 0x31, Error::Family(0x31));
        check(|bytes| bytes[13] = 0x13, Error::Family(0x13));
        check(|bytes| bytes[14] = 4, Error::TooLong);
        check(|bytes| bytes.truncate(15), Error::Truncated);
        check(|bytes| bytes.push(0), Error::Truncated);
        // As long as it says, but the value is not.
        check(|bytes| bytes[30] = 2, Error::Truncated);
        let mixed = Header {
            transport: Transport::Tcp,
            source: "[::1]:1".parse().expect("an address"),
            destination: "10.0.0.1:2".parse().expect("an address"),
            tlvs: vec![],
        };
        assert_eq!(mixed.encode(), Err(Error::Mixed));
        let destination = mixed.source;
        assert_eq!(Header { destination, tlvs: vec![(1, &[0; 1024])], ..mixed }.encode(), Err(Error::TooLong));
    }

    fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
            .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
        let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
            .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (source, destination) in addresses(),
            udp in any::<bool>(),
            values in vec((any::<u8>(), vec(any::<u8>(), 0..80)), 0..8),
        ) {
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            let tlvs = values.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            let header = Header { transport, source, destination, tlvs };
            let bytes = header.encode().expect("fits");
            prop_assert_eq!(length(bytes.first_chunk().expect("long enough")), Ok(bytes.len()));
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
        }

        #[test]
        fn any_bytes_are_read_as_they_were_written_or_refused(bytes in vec(any::<u8>(), 0..64)) {
            let mut whole = v4();
            let tail = whole.len() - 4;
            whole.truncate(tail);
            whole.extend(&bytes);
            whole[15] = (whole.len() - PREFIX) as u8;
            if let Ok(header) = Header::parse(&whole) {
                prop_assert_eq!(header.encode(), Ok(whole.clone()));
            }
        }
    }
}
