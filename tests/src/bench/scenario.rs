//! What is asked of a proxy: five kinds of traffic, with their sizes and ports.
//!
//! Sizes are chosen so that the proxy's own work shows: small messages for the cost of a message, one large answer
//! for the cost of a byte.

use std::net::{Ipv4Addr, SocketAddr};

use clap::ValueEnum;
use serde::Serialize;

/// Bytes of an HTTP answer's body.
pub const HTTP_BODY: usize = 1024;

/// Bytes of a gRPC message, without its five bytes of framing.
pub const GRPC_MESSAGE: usize = 100;

/// Bytes of a TCP or UDP message, and of the line that asks for a download.
pub const MESSAGE: usize = 64;

/// Bytes of a download.
pub const DOWNLOAD: usize = 1024 * 1024;

/// Calls that are open at once on one gRPC connection.
pub const GRPC_STREAMS: usize = 16;

/// The backends' addresses; each serves all scenarios, one port each.
pub const BACKENDS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 3, 1), Ipv4Addr::new(127, 0, 3, 2), Ipv4Addr::new(127, 0, 3, 3)];

/// The network the clients dial from. Balancing goes by client address, so each connection has its own.
pub const CLIENT_NETWORK: [u8; 3] = [127, 0, 9];

/// One kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scenario {
    /// HTTP/1.1 on kept-alive connections, answers of 1 KiB.
    Http,
    /// gRPC unary calls, HTTP/2 without TLS on both sides, messages of 100 bytes there and back.
    Grpc,
    /// TCP, 64 bytes there and back.
    Tcp,
    /// TCP, a request of 64 bytes and an answer of 1 MiB on a kept connection.
    Download,
    /// UDP, 64 bytes there and back.
    Udp,
}

impl Scenario {
    /// All scenarios, in the order they are run and reported.
    pub const ALL: [Self; 5] = [Self::Http, Self::Grpc, Self::Tcp, Self::Download, Self::Udp];

    /// The name in the table's first column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1, 1 KiB, keep-alive",
            Self::Grpc => "gRPC unary, h2c to h2c, 100 B",
            Self::Tcp => "TCP ping-pong, 64 B",
            Self::Download => "TCP download, 1 MiB",
            Self::Udp => "UDP ping-pong, 64 B",
        }
    }

    /// Connections held open during a round (for UDP: sockets).
    pub fn connections(self) -> usize {
        match self {
            Self::Http | Self::Tcp | Self::Udp => 32,
            Self::Grpc => 4,
            Self::Download => 8,
        }
    }

    /// The port of this scenario on each of [`BACKENDS`].
    pub fn backend_port(self) -> u16 {
        17081 + self as u16
    }

    /// The port on which a proxy takes this scenario's traffic; for Portico a NodePort, hence the range.
    pub fn proxy_port(self) -> u16 {
        30081 + self as u16
    }

    /// Where the backends of this scenario listen.
    pub fn backends(self) -> [SocketAddr; 3] {
        BACKENDS.map(|address| SocketAddr::from((address, self.backend_port())))
    }
}

/// The bytes of a download: they differ along the way, so that a lost or doubled block is seen.
pub fn download() -> Vec<u8> {
    (0..DOWNLOAD as u32 / 4).flat_map(|word| word.wrapping_mul(0x9E37_79B1).to_le_bytes()).collect()
}

/// The body of an HTTP answer.
pub fn http_body() -> Vec<u8> {
    (0..HTTP_BODY).map(|at| b'a' + (at % 26) as u8).collect()
}

/// The address the client with this number dials from.
pub fn client_address(index: usize) -> Ipv4Addr {
    let [a, b, c] = CLIENT_NETWORK;
    Ipv4Addr::new(a, b, c, 1 + (index % 250) as u8)
}

/// Whether a value of `X-Forwarded-For` names a client of ours.
pub fn names_client(forwarded_for: &[u8]) -> bool {
    forwarded_for.starts_with(b"127.0.9.")
}
