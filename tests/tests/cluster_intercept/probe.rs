//! Clients: each asks once, in the network namespace of its choice, and says what a program there would have seen.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

/// Silence for so long is taken for silence: several times what an answer takes on a busy machine.
const SILENCE: Duration = Duration::from_secs(4);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Http(SocketAddr),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An endpoint answered, and saw this peer.
    From(SocketAddr),
    /// RST, or ICMP port unreachable.
    Refused,
    /// Nothing.
    Silence,
    /// Bytes that no endpoint sends.
    Other(String),
}

// === impl Answer ===

impl Answer {
    /// The address that the endpoint saw; `None` if there was no endpoint.
    pub fn seen(&self) -> Option<String> {
        match self {
            Answer::From(peer) => Some(peer.ip().to_string()),
            _ => None,
        }
    }

    fn failed(error: &std::io::Error) -> Self {
        match error.kind() {
            // A process on the node gets EPERM for a datagram that a rule of the output hook refuses.
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::PermissionDenied => Answer::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Answer::Silence,
            _ => Answer::Other(error.to_string()),
        }
    }

    /// Endpoints answer with what they saw.
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let peer = text.split_once("\"peer\":\"").and_then(|(_, rest)| rest.split('"').next());
        peer.and_then(|peer| peer.parse().ok()).map_or(Answer::Other(text), Answer::From)
    }
}

/// Runs `work` on a thread of its own in a namespace.
fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace exists");
    let run = || {
        setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
        work()
    };
    thread::scope(|scope| scope.spawn(run).join()).expect("a probe does not panic")
}

/// Asks once.
pub fn ask(namespace: &str, ask: Ask) -> Answer {
    let asked = within(namespace, || match ask {
        Ask::Tcp(address) => exchange(address, b"hello\n"),
        Ask::Http(address) => exchange(address, b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"),
        Ask::Udp(address) => datagram(address),
    });
    asked.map_or_else(|error| Answer::failed(&error), |bytes| Answer::parse(&bytes))
}

/// A connection that stays open: it was answered once.
pub fn connect(namespace: &str, address: SocketAddr) -> TcpStream {
    within(namespace, || {
        let mut stream = open(address).expect("somebody accepts");
        speak(&mut stream, b"hello\n").expect("somebody answers");
        stream
    })
}

/// Connects, however often the kernel has to try in that time.
pub fn connect_within(namespace: &str, address: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    within(namespace, || TcpStream::connect_timeout(&address, patience))
}

/// Sends and reads once.
pub fn speak(stream: &mut TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(words)?;
    let mut answer = vec![0; 64 << 10];
    let length = stream.read(&mut answer)?;
    answer.truncate(length);
    if answer.is_empty() { Err(ErrorKind::ConnectionReset.into()) } else { Ok(answer) }
}

/// Whether an agent says that it serves.
pub fn is_ready(namespace: &str, address: &str) -> bool {
    let admin = format!("{address}:18081").parse().expect("an address");
    let asked =
        within(namespace, || exchange(admin, b"GET /readyz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n"));
    asked.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}

/// What an agent says of itself.
pub fn metrics(namespace: &str, address: &str) -> String {
    let admin = format!("{address}:18081").parse().expect("an address");
    let asked = within(namespace, || {
        let mut stream = open(admin)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    });
    asked.expect("the admin port answers")
}

fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    Ok(stream)
}

fn exchange(address: SocketAddr, words: &[u8]) -> std::io::Result<Vec<u8>> {
    speak(&mut open(address)?, words)
}

fn datagram(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(SILENCE))?;
    // Connected: an answer from any other address than the one that was dialled does not arrive.
    socket.connect(address)?;
    socket.send(b"hello")?;
    let mut answer = vec![0; 64 << 10];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}
