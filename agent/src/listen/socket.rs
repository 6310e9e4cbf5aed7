//! Listening sockets. They are opened before a worker sees them, one for each worker, so that the kernel spreads
//! connections over workers and none of them waits for another.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use api::resource::service::Transport;
use socket2::{Domain, Protocol, Socket, Type};

use crate::table::Destination;

/// Connections that wait to be accepted, per worker. The kernel lowers it to net.core.somaxconn (4096 by default).
const BACKLOG: i32 = 4096;

/// Receive buffer of a UDP listener: a burst of 1,000 full datagrams while the worker is busy.
const UDP_BUFFER: usize = 2 << 20;

/// A socket that listens.
#[derive(Debug)]
pub enum Listening {
    /// Accepts connections.
    Tcp(TcpListener),
    /// Receives datagrams.
    Udp(UdpSocket),
}

/// Opens one of the sockets of a destination. All of them share the address by `SO_REUSEPORT`.
///
/// # Errors
/// `AddrInUse` if somebody else listens there, `AddrNotAvailable` if this host has no such address.
pub fn open(destination: &Destination) -> io::Result<Listening> {
    let Destination { address, transport } = *destination;
    let domain = Domain::for_address(address);
    match transport {
        Transport::Tcp => {
            let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
            prepare(&socket, address)?;
            // Accepted sockets inherit it, which saves a call for each.
            socket.set_tcp_nodelay(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Listening::Tcp(socket.into()))
        }
        Transport::Udp => {
            let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
            prepare(&socket, address)?;
            // The kernel grants what net.core.rmem_max allows; less is no error.
            socket.set_recv_buffer_size(UDP_BUFFER)?;
            socket.bind(&address.into())?;
            Ok(Listening::Udp(socket.into()))
        }
        Transport::Sctp => Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP is not served in user space (S17.3)")),
    }
}

fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)
}
