//! What the entry node tells the exit node of a connection: who the client is, where it wanted to go, and to which
//! endpoint it is to be taken.

use std::{
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use api::resource::{name::NamespacedName, service::Transport};

use super::proxy::{self, Header};
use crate::report::trace::SpanContext;

/// Types of values, of the range that the specification leaves to applications.
mod kind {
    pub const SERVICE: u8 = 0xe0;
    pub const ENDPOINT: u8 = 0xe1;
    pub const ENTRY: u8 = 0xe2;
    pub const TRACE: u8 = 0xe3;
    pub const STAMP: u8 = 0xe4;
    pub const CODE: u8 = 0xef;
}

/// Length of a code, which is HMAC-SHA256.
pub const CODE: usize = 32;

const SAMPLED: u8 = 0x01;
const RANDOM: u8 = 0x02;

/// A connection that is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// TCP or UDP.
    pub transport: Transport,
    /// The client, as the endpoint is to see it.
    pub client: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
    /// The Service behind that.
    pub service: NamespacedName,
    /// The endpoint chosen, which is on the exit node.
    pub endpoint: SocketAddr,
    /// Name of the entry node.
    pub entry: Box<str>,
    /// The attempt of the entry node at the endpoint, under which the exit continues the trace.
    pub trace: SpanContext,
}

/// When a header was made, and what no other header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Microseconds since 1970.
    pub micros: u64,
    /// Random.
    pub nonce: u128,
}

/// Why a header introduces nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("the header {0}")]
    Header(#[from] proxy::Error),
    #[error("the value {0} is missing, there twice, or not what it should be")]
    Value(&'static str),
    #[error("the header does not end with a code")]
    Unsigned,
}

// === impl Stamp ===

impl Stamp {
    /// A new one.
    pub fn new(now: SystemTime, nonce: u128) -> Self {
        Self { micros: micros(now), nonce }
    }
}

// === impl Introduction ===

impl Introduction {
    /// The header, whose last [`CODE`] bytes are made by `code` from all before them.
    ///
    /// # Errors
    /// When names are too long, or addresses do not go together.
    pub fn encode(&self, stamp: Stamp, code: impl FnOnce(&[u8]) -> [u8; CODE]) -> Result<Vec<u8>, proxy::Error> {
        let service = self.service.to_string();
        let endpoint = write_endpoint(self.endpoint);
        let (mut trace, mut stamped) = ([0; 25], [0; 24]);
        trace[..16].copy_from_slice(&self.trace.trace.to_be_bytes());
        trace[16..24].copy_from_slice(&self.trace.span.to_be_bytes());
        trace[24] = if self.trace.sampled { SAMPLED } else { 0 } | if self.trace.random { RANDOM } else { 0 };
        stamped[..8].copy_from_slice(&stamp.micros.to_be_bytes());
        stamped[8..].copy_from_slice(&stamp.nonce.to_be_bytes());
        let header = Header {
            transport: self.transport,
            source: self.client,
            destination: self.destination,
            tlvs: vec![
                (kind::SERVICE, service.as_bytes()),
                (kind::ENDPOINT, &endpoint),
                (kind::ENTRY, self.entry.as_bytes()),
                (kind::TRACE, &trace),
                (kind::STAMP, &stamped),
                (kind::CODE, &[0; CODE]),
            ],
        };
        let mut bytes = header.encode()?;
        let covered = bytes.len() - CODE;
        let (said, last) = bytes.split_at_mut(covered);
        last.copy_from_slice(&code(said));
        Ok(bytes)
    }

    /// Takes `bytes`, all of them, for a header. `check` sees all that the code covers, and the code.
    ///
    /// # Errors
    /// [`Error`], or what `check` says.
    pub fn parse<E: From<Error>>(
        bytes: &[u8],
        check: impl FnOnce(&[u8], &[u8; CODE]) -> Result<(), E>,
    ) -> Result<(Self, Stamp), E> {
        let header = Header::parse(bytes).map_err(Error::from)?;
        let code = match header.tlvs.last() {
            Some((kind::CODE, code)) => <&[u8; CODE]>::try_from(*code).map_err(|_| Error::Unsigned)?,
            _ => return Err(Error::Unsigned.into()),
        };
        check(&bytes[..bytes.len() - CODE], code)?;
        Ok(Self::read(&header)?)
    }

    /// Values that are not known come from later releases, and are passed over.
    fn read(header: &Header<'_>) -> Result<(Self, Stamp), Error> {
        let value = |kind: u8, name: &'static str| {
            let mut values = header.tlvs.iter().filter(|(found, _)| *found == kind);
            match (values.next(), values.next()) {
                (Some((_, value)), None) => Ok(*value),
                _ => Err(Error::Value(name)),
            }
        };
        let text = |kind, name| std::str::from_utf8(value(kind, name)?).map_err(|_| Error::Value(name));
        let trace: &[u8; 25] = value(kind::TRACE, "trace")?.try_into().map_err(|_| Error::Value("trace"))?;
        let stamp: &[u8; 24] = value(kind::STAMP, "stamp")?.try_into().map_err(|_| Error::Value("stamp"))?;
        let (id, span) = (number(&trace[..16]), number(&trace[16..24]) as u64);
        let flags = trace[24];
        let introduction = Self {
            transport: header.transport,
            client: header.source,
            destination: header.destination,
            service: text(kind::SERVICE, "service")?.parse().map_err(|_| Error::Value("service"))?,
            endpoint: read_endpoint(value(kind::ENDPOINT, "endpoint")?).ok_or(Error::Value("endpoint"))?,
            entry: text(kind::ENTRY, "entry")?.into(),
            trace: SpanContext {
                trace: id,
                span,
                parent: 0,
                sampled: flags & SAMPLED != 0,
                random: flags & RANDOM != 0,
            },
        };
        if introduction.endpoint.is_ipv4() != introduction.client.is_ipv4() {
            return Err(Error::Value("endpoint"));
        }
        Ok((introduction, Stamp { micros: number(&stamp[..8]) as u64, nonce: number(&stamp[8..]) }))
    }
}

/// Microseconds since 1970; earlier times count as its first moment.
pub fn micros(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

fn write_endpoint(endpoint: SocketAddr) -> Vec<u8> {
    let mut bytes = match endpoint.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.extend_from_slice(&endpoint.port().to_be_bytes());
    bytes
}

fn read_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let (address, port) = bytes.split_last_chunk::<2>()?;
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(*port)))
}

/// A number of at most 16 bytes, the most significant first.
fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Values<'a> = Vec<(u8, &'a [u8])>;

    fn introduction(client: SocketAddr, endpoint: SocketAddr, trace: u128) -> Introduction {
        Introduction {
            transport: Transport::Tcp,
            client,
            destination: SocketAddr::new(endpoint.ip(), 80),
            service: NamespacedName::new("shop", "cart"),
            endpoint,
            entry: "node-1".into(),
            trace: SpanContext { trace, span: 7, parent: 0, sampled: true, random: true },
        }
    }

    fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<([u8; 4], [u8; 4], u16)>()
            .prop_map(|(a, b, port)| (SocketAddr::from((a, port)), SocketAddr::from((b, 8080))));
        let v6 = any::<([u8; 16], [u8; 16], u16)>()
            .prop_map(|(a, b, port)| (SocketAddr::from((a, port)), SocketAddr::from((b, 8080))));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_told_arrives((client, endpoint) in addresses(), trace: u128, micros: u64, nonce: u128) {
            let said = introduction(client, endpoint, trace);
            let stamp = Stamp { micros, nonce };
            let mut covered = Vec::new();
            let bytes = said.encode(stamp, |bytes| { covered = bytes.to_vec(); [9; CODE] }).expect("fits");
            let heard = Introduction::parse::<Error>(&bytes, |bytes, code| {
                assert_eq!((bytes, *code), (covered.as_slice(), [9; CODE]));
                Ok(())
            });
            prop_assert_eq!(heard, Ok((said, stamp)));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let client = "192.0.2.1:5".parse().expect("an address");
        let endpoint = "10.0.0.1:80".parse().expect("an address");
        let whole = introduction(client, endpoint, 1).encode(Stamp { micros: 1, nonce: 2 }, |_| [0; CODE]);
        let whole = whole.expect("fits");
        let check = |change: &dyn Fn(&mut Values<'_>), expected: Error| {
            let mut header = Header::parse(&whole).expect("a header");
            change(&mut header.tlvs);
            let bytes = header.encode().expect("fits");
            assert_eq!(Introduction::parse::<Error>(&bytes, |_, _| Ok(())), Err(expected));
        };
        check(&|tlvs| tlvs.truncate(5), Error::Unsigned);
        check(&|tlvs| tlvs[5].1 = b"short", Error::Unsigned);
        check(&|tlvs| tlvs.insert(0, tlvs[0]), Error::Value("service"));
        check(&|tlvs| tlvs[0].1 = b"cart", Error::Value("service"));
        check(&|tlvs| tlvs[1].1 = b"\x0a\0\0\x01\0", Error::Value("endpoint"));
        check(&|tlvs| tlvs[1].1 = &[0; 18], Error::Value("endpoint"));
        check(&|tlvs| tlvs[2].1 = b"\xff", Error::Value("entry"));
        check(&|tlvs| tlvs[3].0 = 0xea, Error::Value("trace"));
        check(&|tlvs| tlvs[4].1 = &[0; 23], Error::Value("stamp"));
        // What a later release adds does no harm.
        let mut header = Header::parse(&whole).expect("a header");
        header.tlvs.insert(2, (0xea, b"more"));
        let bytes = header.encode().expect("fits");
        assert!(Introduction::parse::<Error>(&bytes, |_, _| Ok(())).is_ok());
    }
}
