//! Listening sockets. They are opened before a worker sees them, one for each worker, so that the kernel spreads
//! connections over workers and none of them waits for another.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use api::resource::service::Transport;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{forward::socket::OWN_MARK, table::Destination};

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
    open_with(destination, |_| Ok(()))
}

fn open_with(destination: &Destination, configure: impl Fn(&Socket) -> io::Result<()>) -> io::Result<Listening> {
    let Destination { address, transport } = *destination;
    let domain = Domain::for_address(address);
    match transport {
        Transport::Tcp => {
            let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
            prepare(&socket, address)?;
            configure(&socket)?;
            // Accepted sockets inherit it, which saves a call for each.
            socket.set_tcp_nodelay(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Listening::Tcp(socket.into()))
        }
        Transport::Udp => {
            let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
            prepare(&socket, address)?;
            configure(&socket)?;
            // The kernel grants what net.core.rmem_max allows; less is no error.
            socket.set_recv_buffer_size(UDP_BUFFER)?;
            socket.bind(&address.into())?;
            Ok(Listening::Udp(socket.into()))
        }
        Transport::Sctp => Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP is not served in user space (S17.3)")),
    }
}

/// Opens the transparent sockets of all workers for one protocol at the loopback address of one family, and returns the
/// port they share. Packet rules lead traffic for any address there; no other packet reaches them.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn open_transparent(loopback: IpAddr, transport: Transport, workers: usize) -> io::Result<(Vec<Listening>, u16)> {
    let mut port = 0;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let destination = Destination { address: SocketAddr::new(loopback, port), transport };
        let listening = open_with(&destination, |socket| {
            transparent(socket, loopback)?;
            match (transport, loopback) {
                (Transport::Udp, IpAddr::V4(_)) => Ok(setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?),
                (Transport::Udp, IpAddr::V6(_)) => Ok(setsockopt(socket, sockopt::Ipv6OrigDstAddr, &true)?),
                (Transport::Tcp | Transport::Sctp, _) => Ok(()),
            }
        })?;
        port = match &listening {
            Listening::Tcp(listener) => listener.local_addr()?.port(),
            Listening::Udp(socket) => socket.local_addr()?.port(),
        };
        sockets.push(listening);
    }
    Ok((sockets, port))
}

/// A socket that answers from `address`, which need not be one of this host. Clients do not reach it: packets to the
/// address go to the listener.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN.
pub fn answering(address: SocketAddr) -> io::Result<UdpSocket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    prepare(&socket, address)?;
    transparent(&socket, address.ip())?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Allows addresses that this host does not have, and marks what is sent as ours. Accepted sockets inherit both.
fn transparent(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(OWN_MARK)
}

fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)
}
