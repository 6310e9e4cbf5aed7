//! One question to an echo Pod behind a Service, and what became of it.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use crate::sandbox::netns;

/// What a question goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// A datagram.
    Udp,
}

/// What a client sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// An echo Pod answered, and said whom it saw.
    Answer {
        /// Name of the Pod.
        pod: String,
        /// Whom it saw.
        source: IpAddr,
        /// The address that the Pod was reached at.
        local: IpAddr,
    },
    /// ECONNREFUSED: a reset in answer to the first packet, or ICMP port unreachable.
    Refused,
    /// Nothing came in time.
    Silence,
    /// Something else, such as a connection that is opened and then reset.
    Other(String),
}

/// Raw bytes to the echo Pod: nothing that could be the beginning of another protocol.
const HELLO: &[u8] = b"#\n";

/// Asks from a network namespace, and waits that long for each step.
pub async fn ask(namespace: &str, to: SocketAddr, transport: Transport, patience: Duration) -> Seen {
    let asked = match transport {
        Transport::Tcp => tcp(namespace, to, patience).await,
        Transport::Udp => udp(namespace, to, patience).await,
    };
    asked.unwrap_or_else(|error| Seen::Other(format!("{error:#}")))
}

async fn tcp(namespace: &str, to: SocketAddr, patience: Duration) -> anyhow::Result<Seen> {
    let connected = match timeout(patience, connect(namespace, to)?).await {
        Err(_) => return Ok(Seen::Silence),
        Ok(Err(error)) => return Ok(refusal(&error)),
        Ok(Ok(stream)) => stream,
    };
    let mut stream = BufReader::new(connected);
    let mut line = String::new();
    let exchange = async {
        stream.write_all(HELLO).await?;
        stream.read_line(&mut line).await
    };
    match timeout(patience, exchange).await {
        Err(_) => Ok(Seen::Other("connected, and then silence".to_owned())),
        Ok(Err(error)) => Ok(Seen::Other(format!("connected, and then {}", error.kind()))),
        Ok(Ok(0)) => Ok(Seen::Other("connected, and then closed".to_owned())),
        Ok(Ok(_)) => answer(line.as_bytes()),
    }
}

/// A connection from a network namespace, which its socket belongs to wherever it is used.
///
/// # Errors
/// When the namespace cannot be entered; failures of the connection are those of the future.
pub fn connect(namespace: &str, to: SocketAddr) -> anyhow::Result<impl Future<Output = io::Result<TcpStream>> + use<>> {
    let socket = netns::within(namespace, || {
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        socket.context("cannot make a socket")
    })?;
    Ok(socket.connect(to))
}

async fn udp(namespace: &str, to: SocketAddr, patience: Duration) -> anyhow::Result<Seen> {
    let socket = UdpSocket::from_std(datagrams(namespace, to)?)?;
    let mut buffer = [0; 2048];
    let exchange = async {
        match socket.send(HELLO).await {
            // A packet filter of the sender's own node took it. Whether the sender is told by ICMP as well shows next.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            sent => drop(sent?),
        }
        socket.recv(&mut buffer).await
    };
    match timeout(patience, exchange).await {
        Err(_) => Ok(Seen::Silence),
        Ok(Err(error)) => Ok(refusal(&error)),
        Ok(Ok(length)) => answer(&buffer[..length]),
    }
}

/// A socket of a network namespace that exchanges datagrams with one address. It is told of ICMP errors.
///
/// # Errors
/// When the namespace cannot be entered, or the address cannot be reached.
pub fn datagrams(namespace: &str, to: SocketAddr) -> anyhow::Result<std::net::UdpSocket> {
    netns::within(namespace, || {
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let socket = std::net::UdpSocket::bind((any, 0)).context("cannot make a socket")?;
        socket.set_nonblocking(true)?;
        socket.connect(to).with_context(|| format!("no way to {to}"))?;
        Ok(socket)
    })
}

fn refusal(error: &io::Error) -> Seen {
    match error.kind() {
        ErrorKind::ConnectionRefused => Seen::Refused,
        kind => Seen::Other(kind.to_string()),
    }
}

fn answer(json: &[u8]) -> anyhow::Result<Seen> {
    let json: Value = serde_json::from_slice(json).context("the answer is no JSON")?;
    let field = |name: &str| json[name].as_str().with_context(|| format!("the answer has no {name}: {json}"));
    let address = |name: &str| -> anyhow::Result<IpAddr> {
        let address: SocketAddr = field(name)?.parse().with_context(|| format!("{name} is an address"))?;
        Ok(address.ip().to_canonical())
    };
    Ok(Seen::Answer { pod: field("pod")?.to_owned(), source: address("peer")?, local: address("local")? })
}
