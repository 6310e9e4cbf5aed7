//! `portico echo`: a sample backend that answers with what it saw.
//!
//! HTTP/1.1, HTTP/2 with prior knowledge, gRPC, WebSocket and raw TCP share one port, told apart by the first bytes;
//! UDP has the same number. The answers are for people who want to know which pod they reached and as whom, and for
//! tests; `/bytes`, `/delay`, `/status`, `/upload`, `/trailers`, `/close` and `/sse` make it misbehave or work hard.

/// Options to configuration.
pub mod args;
mod body;
mod detect;
mod grpc;
/// The bytes of `/bytes/N`.
pub mod pattern;
mod raw;
mod replay;
/// The answer: what was seen.
pub mod seen;
mod socket;
mod tasks;
mod tcp;
mod udp;
mod web;
mod websocket;

use runtime::drain;
use seen::Identity;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};

/// One sample backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoConfig {
    /// Addresses to serve, each by TCP and UDP. Port 0 takes a free one. `0.0.0.0` is IPv4 only and `[::]` IPv6 only.
    pub listen: Vec<SocketAddr>,
    /// Name of the Pod, as it appears in answers.
    pub pod: String,
    /// Namespace of the Pod.
    pub namespace: String,
    /// Name of the Node.
    pub node: String,
}

/// Why a backend did not start.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    /// An address cannot be served.
    #[error(
        "cannot listen on {address}; check that it is an address of this machine and that nothing else uses the port"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptors built into the binary cannot be read.
    #[error("cannot set up gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A backend whose sockets are open. Clients can connect; they are answered once it is served.
#[derive(Debug)]
pub struct Bound {
    identity: Arc<Identity>,
    sockets: Vec<(TcpListener, UdpSocket)>,
    addresses: Vec<SocketAddr>,
}

/// Opens the sockets of a backend. Needs a tokio runtime with IO.
///
/// # Errors
/// [`EchoError::Listen`] for the first address that cannot be served; none stays open then.
pub fn bind(config: EchoConfig) -> Result<Bound, EchoError> {
    let EchoConfig { listen, pod, namespace, node } = config;
    let open = |address| {
        let failed = |source| EchoError::Listen { address, source };
        let (tcp, udp) = socket::open(address).map_err(failed)?;
        let bound = tcp.local_addr().map_err(failed)?;
        Ok(((tcp, udp), bound))
    };
    let opened: Vec<_> = listen.into_iter().map(open).collect::<Result<_, EchoError>>()?;
    let (sockets, addresses) = opened.into_iter().unzip();
    Ok(Bound { identity: Arc::new(Identity { pod, namespace, node }), sockets, addresses })
}

/// Opens the sockets of a backend and serves until `drain` starts and work in flight has ended, which takes at
/// most five seconds.
///
/// # Errors
/// Those of [`bind`] and [`Bound::serve`], all before the first answer.
pub async fn run(config: EchoConfig, drain: drain::Watch) -> Result<(), EchoError> {
    bind(config)?.serve(drain).await
}

impl Bound {
    /// The addresses served, in the order they were asked for, with the ports that were taken for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Serves until `drain` starts and work in flight has ended, which takes at most five seconds.
    ///
    /// # Errors
    /// [`EchoError::Reflection`], before the first answer.
    pub async fn serve(self, drain: drain::Watch) -> Result<(), EchoError> {
        let _guard = drain.guard();
        let tasks = tasks::Tasks::new(drain);
        let backend = tcp::Backend { identity: self.identity, rpc: grpc::Rpc::new(&tasks)?, tasks: tasks.clone() };
        for (tcp, udp) in self.sockets {
            tasks.spawn(tcp::accept(backend.clone(), tcp));
            tasks.spawn(udp::serve(backend.identity.clone(), tasks.clone(), udp));
        }
        tasks.finished().await;
        Ok(())
    }
}
