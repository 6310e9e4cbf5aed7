//! Receiving many datagrams by one call. Their buffers belong to the worker, so no datagram costs memory of its own.

use std::{
    array,
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd as _,
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmmsg,
    },
};
use tokio::{io::Interest, net::UdpSocket};

/// Datagrams received at once.
const COUNT: usize = 16;

/// More than a datagram can hold, so none is ever cut.
const SIZE: usize = 64 << 10;

/// Buffers for one call.
pub struct Batch {
    buffers: Box<[u8]>,
    plain: Families,
    redirected: Families,
}

/// Headers of one call. The kernel writes back how long an address was, and reads that again as the space for the next one:
/// each family has its own headers, so that there is always space.
struct Families {
    ipv4: Headers,
    ipv6: Headers,
}

type Headers = MultiHeaders<SockaddrStorage>;

type Datagram<'a> = RecvMsg<'a, 'a, SockaddrStorage>;

// === impl Batch ===

impl Default for Batch {
    fn default() -> Self {
        Self { buffers: vec![0; COUNT * SIZE].into(), plain: Families::plain(), redirected: Families::redirected() }
    }
}

impl Batch {
    /// Receives what is there, up to a batch, and calls `each` with the sender and the content of each datagram. `Ok` says
    /// that there may be more.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is drained, also after datagrams were received; on connected sockets the errors that
    /// ICMP brought.
    pub fn receive(
        &mut self,
        socket: &UdpSocket,
        ipv6: bool,
        mut each: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<()> {
        receive(&mut self.buffers, self.plain.of(ipv6), socket, |datagram| {
            if let Some(sender) = sender(&datagram) {
                each(sender, content(&datagram));
            }
        })
    }

    /// As [`Batch::receive`], from a transparent socket: `each` gets the sender, the address that it sent to, and the content.
    ///
    /// # Errors
    /// As [`Batch::receive`].
    pub fn receive_redirected(
        &mut self,
        socket: &UdpSocket,
        ipv6: bool,
        mut each: impl FnMut(SocketAddr, SocketAddr, &[u8]),
    ) -> io::Result<()> {
        let mut complete = true;
        let received = receive(&mut self.buffers, self.redirected.of(ipv6), socket, |datagram| {
            match (sender(&datagram), destination(&datagram)) {
                (Some(sender), Some(destination)) => each(sender, destination, content(&datagram)),
                _ => complete = false,
            }
        });
        if !complete {
            // Without a destination there is nobody to give it to; and its header has no space for the next one.
            self.redirected = Families::redirected();
        }
        received
    }
}

// === impl Families ===

impl Families {
    fn plain() -> Self {
        let headers = || MultiHeaders::preallocate(COUNT, None);
        Self { ipv4: headers(), ipv6: headers() }
    }

    fn redirected() -> Self {
        Self {
            ipv4: MultiHeaders::preallocate(COUNT, Some(cmsg_space!(libc::sockaddr_in))),
            ipv6: MultiHeaders::preallocate(COUNT, Some(cmsg_space!(libc::sockaddr_in6))),
        }
    }

    fn of(&mut self, ipv6: bool) -> &mut Headers {
        if ipv6 { &mut self.ipv6 } else { &mut self.ipv4 }
    }
}

fn receive(
    buffers: &mut [u8],
    headers: &mut Headers,
    socket: &UdpSocket,
    mut each: impl FnMut(Datagram<'_>),
) -> io::Result<()> {
    let mut buffers = buffers.chunks_exact_mut(SIZE);
    let mut slices: [[IoSliceMut<'_>; 1]; COUNT] =
        array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
    socket.try_io(Interest::READABLE, || {
        let mut count = 0;
        for datagram in recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), MsgFlags::empty(), None)? {
            count += 1;
            each(datagram);
        }
        // Fewer than asked for: the socket is empty. Saying so saves the call that would find out.
        if count < COUNT { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    })
}

fn content<'a>(datagram: &Datagram<'a>) -> &'a [u8] {
    datagram.iovs().next().unwrap_or_default()
}

fn sender(datagram: &Datagram<'_>) -> Option<SocketAddr> {
    datagram.address.and_then(|address| socket_address(&address))
}

/// Where a datagram was sent to, which packet rules have led to a socket of another address.
fn destination(datagram: &Datagram<'_>) -> Option<SocketAddr> {
    datagram.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(SocketAddr::V4(SockaddrIn::from(address).into())),
        ControlMessageOwned::Ipv6OrigDstAddr(address) => Some(SocketAddr::V6(SockaddrIn6::from(address).into())),
        _ => None,
    })
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(ipv4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*ipv4).into()));
    }
    address.as_sockaddr_in6().map(|ipv6| SocketAddr::V6((*ipv6).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(address: &str) {
        let receiver = UdpSocket::bind(address).await.expect("loopback");
        let sender = UdpSocket::bind(address).await.expect("loopback");
        let (to, from) = (receiver.local_addr().expect("bound"), sender.local_addr().expect("bound"));
        let largest = vec![7; 65_507];
        let sent: Vec<&[u8]> = vec![b"one", b"", b"three", &largest];
        for datagram in &sent {
            sender.send_to(datagram, to).await.expect("loopback takes it");
        }
        let mut batch = Batch::default();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            receiver.readable().await.expect("open");
            let drained = batch.receive(&receiver, from.is_ipv6(), |sender, bytes| {
                assert_eq!(sender, from);
                received.push(bytes.to_vec());
            });
            assert_eq!(drained.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
        }
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn datagrams_of_any_size_arrive_with_their_sender() {
        check("127.0.0.1:0").await;
        check("[::1]:0").await;
    }

    #[tokio::test]
    async fn families_take_turns() {
        let mut batch = Batch::default();
        for address in ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0", "[::1]:0"] {
            let receiver = UdpSocket::bind(address).await.expect("loopback");
            let sender = UdpSocket::bind(address).await.expect("loopback");
            sender.send_to(b"x", receiver.local_addr().expect("bound")).await.expect("loopback takes it");
            receiver.readable().await.expect("open");
            let from = sender.local_addr().expect("bound");
            let mut senders = Vec::new();
            let _drained = batch.receive(&receiver, from.is_ipv6(), |sender, _| senders.push(sender));
            assert_eq!(senders, [from]);
        }
    }

    #[tokio::test]
    async fn more_than_a_batch_takes_another_call() {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        let sender = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
        for _ in 0..COUNT + 1 {
            sender.send_to(b"x", receiver.local_addr().expect("bound")).await.expect("loopback takes it");
        }
        let mut batch = Batch::default();
        receiver.readable().await.expect("open");
        let mut count = 0;
        assert!(batch.receive(&receiver, false, |_, _| count += 1).is_ok());
        assert_eq!(count, COUNT);
        assert!(batch.receive(&receiver, false, |_, _| count += 1).is_err());
        assert_eq!(count, COUNT + 1);
    }
}
