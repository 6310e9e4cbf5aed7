//! UDP: each datagram is answered with one of JSON.

use super::seen::{Connection, Identity, Protocol};
use super::tasks::Tasks;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The largest datagram there is.
const LARGEST: usize = 65_535;

/// How much of a datagram is repeated, in bytes.
const PAYLOAD: usize = 1024;

/// How long receiving rests after a failure.
const REST: Duration = Duration::from_millis(50);

/// Answers datagrams until the drain starts.
pub async fn serve(identity: Arc<Identity>, tasks: Tasks, socket: UdpSocket) {
    let mut drain = tasks.drain();
    let mut buffer = vec![0; LARGEST];
    loop {
        let received = tokio::select! {
            received = receive(&socket, &mut buffer) => received,
            () = drain.started() => return,
        };
        let answered = match received {
            Ok(datagram) => {
                let answer = answer(&identity, &datagram, &buffer[..datagram.length]);
                send(&socket, &datagram, &answer).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "cannot answer a datagram");
            tokio::time::sleep(REST).await;
        }
    }
}

/// Where a datagram came from and where it went.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    peer: SocketAddr,
    local: SocketAddr,
    length: usize,
}

fn answer(identity: &Arc<Identity>, datagram: &Datagram, bytes: &[u8]) -> bytes::Bytes {
    let connection =
        Connection { identity: identity.clone(), peer: datagram.peer, local: datagram.local, proxied: None };
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(PAYLOAD)]);
    let mut seen = connection.seen(Protocol::Udp);
    seen.body_bytes = Some(bytes.len() as u64);
    seen.payload = Some(&text);
    seen.line()
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let bound = socket.local_addr()?;
    socket
        .async_io(Interest::READABLE, || {
            let mut control = nix::cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message =
                recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
            let local = message.cmsgs()?.find_map(|control| match control {
                // The address the answer should leave from; for a datagram sent to one address it is that address.
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr))))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))),
                _ => None,
            });
            let local = SocketAddr::new(local.unwrap_or(bound.ip()), bound.port());
            let peer = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok(Datagram { peer, local, length: message.bytes })
        })
        .await
}

async fn send(socket: &UdpSocket, datagram: &Datagram, answer: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(answer)];
    let fd = socket.as_raw_fd();
    let write = || {
        match (datagram.local.ip(), datagram.peer) {
            (IpAddr::V4(from), SocketAddr::V4(to)) => {
                let from = libc::in_addr { s_addr: u32::from(from).to_be() };
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: libc::in_addr { s_addr: 0 } };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&SockaddrIn::from(to)))
            }
            (IpAddr::V6(from), SocketAddr::V6(to)) => {
                let from = libc::in6_addr { s6_addr: from.octets() };
                // A link-local peer names its interface in the scope of its address.
                let info = libc::in6_pktinfo { ipi6_addr: from, ipi6_ifindex: 0 };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&SockaddrIn6::from(to)))
            }
            _ => Err(nix::Error::EAFNOSUPPORT),
        }?;
        Ok(())
    };
    socket.async_io(Interest::WRITABLE, write).await
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}
