//! Networks of the loopback range, 127.N.0.0/16, each held by one test at a time.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

/// Networks that are handed out. Others are for people, and for tests that name theirs.
const NUMBERS: std::ops::RangeInclusive<u8> = 10..=240;

/// A network of its own, until dropped.
#[derive(Debug)]
pub struct Net {
    number: u8,
    _claim: TcpListener,
}

// === impl Net ===

impl Net {
    /// Takes a free network. The claim is a listening socket, so that it also holds against other processes, and ends
    /// with this one however that ends. Listeners of a data plane share ports with each other and would not notice.
    ///
    /// # Panics
    /// When all are taken.
    pub fn claim() -> Self {
        let free = NUMBERS.into_iter().find_map(|number| {
            let claim = TcpListener::bind((Ipv4Addr::new(127, number, 255, 254), 18_999)).ok()?;
            Some(Self { number, _claim: claim })
        });
        free.expect("no network of 127.0.0.0/8 is free: other tests hold them all")
    }

    /// An address: `ip("1.1")` is 127.N.1.1.
    ///
    /// # Panics
    /// When `rest` is not two octets.
    pub fn ip(&self, rest: &str) -> IpAddr {
        let address: Ipv4Addr = format!("127.{}.{rest}", self.number).parse().expect("two octets");
        address.into()
    }

    /// An address with port: `at("1.1", 80)` is 127.N.1.1:80.
    pub fn at(&self, rest: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(rest), port)
    }

    /// Text with `127.N.` written out.
    pub fn place(&self, text: &str) -> String {
        text.replace("127.N.", &format!("{self}."))
    }
}

/// The first two octets, `127.N`.
impl fmt::Display for Net {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "127.{}", self.number)
    }
}
