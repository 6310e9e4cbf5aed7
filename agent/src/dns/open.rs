//! The sockets of DNS: one of each kind for each worker, opened when the agent starts, and tried again for as long as
//! they cannot be.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::resource::service::Transport;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use opentelemetry::metrics::Meter;
use tokio::sync::watch;

use super::{
    address,
    answer::PodNames,
    metrics::Metrics,
    serve::{Opened, Settings},
    servers::{self, Servers, Source},
};
use crate::{
    listen::socket::{self, Listening},
    table::Destination,
};

/// How often an address that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Receive buffer for datagrams: 20,000 questions may wait, which a worker answers long before a resolver gives them up.
/// What the system allows by default holds 300, which a burst fills while the worker does something else for 30 ms.
const BUFFER: usize = 8 << 20;

/// Options of DNS, as used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Where to answer; nowhere if empty.
    pub listen: Vec<SocketAddr>,
    /// Whom to ask what is not ours.
    pub upstream: Source,
    /// Whether Pods have names.
    pub pods: PodNames,
}

/// Opens everything for so many workers, and calls `hand` with the number of a worker and what is for it. The returned
/// future does what is left: it tries again what cannot be opened, and follows the name servers of the system.
pub fn start<F: Fn(usize, Opened) + Send + 'static>(
    options: Options,
    workers: usize,
    meter: &Meter,
    hand: F,
) -> impl Future<Output = ()> + Send + use<F> {
    let own = options.listen.clone();
    let (servers, follow) = match options.upstream {
        Source::Servers(servers) => (watch::channel(Servers::from(servers)).1, None),
        Source::File(path) => {
            let (servers, follow) = servers::follow(path, own.clone());
            (servers, Some(follow))
        }
    };
    let metrics = Metrics::new(meter, workers);
    let addresses: Arc<[IpAddr]> = own.iter().map(SocketAddr::ip).collect();
    let pods = options.pods;
    let mut missing: BTreeMap<SocketAddr, Option<io::ErrorKind>> =
        own.into_iter().map(|address| (address, None)).collect();
    let settings = move |worker| Settings {
        addresses: addresses.clone(),
        pods,
        servers: servers.clone(),
        counters: metrics.worker(worker),
        forward: metrics.forward.clone(),
    };
    let mut try_all = move || {
        missing.retain(|address, said| match open(*address, workers) {
            Ok(sockets) => {
                tracing::info!(%address, "answering DNS questions");
                for (worker, sockets) in sockets.into_iter().enumerate() {
                    hand(worker, Opened { settings: settings(worker), address: *address, sockets });
                }
                false
            }
            Err(error) => {
                if *said != Some(error.kind()) {
                    tracing::warn!(%address, "cannot answer DNS questions: {error}{}; trying again", advice(*address, &error));
                    *said = Some(error.kind());
                }
                true
            }
        });
        missing.is_empty()
    };
    let mut done = try_all();
    async move {
        let retry = async {
            while !done {
                tokio::time::sleep(RETRY).await;
                done = try_all();
            }
        };
        let follow = async {
            if let Some(follow) = follow {
                follow.await;
            }
        };
        tokio::join!(retry, follow);
    }
}

/// Takes away the addresses that were made for answering, once all sockets are closed. Until the next agent makes them
/// again, questions are lost rather than refused: a resolver asks again after a while, and gives up what is refused.
pub fn close(listen: &[SocketAddr]) {
    for address in listen {
        let SocketAddr::V4(address) = address else { continue };
        if !address::may_add(*address.ip()) {
            continue;
        }
        match address::remove(*address) {
            Ok(true) => tracing::info!(address = %address.ip(), "removed from the loopback interface"),
            Ok(false) => {}
            Err(error) => tracing::warn!(address = %address.ip(), "cannot remove from the loopback interface: {error}"),
        }
    }
}

/// The sockets of one address for so many workers. The address is made first if it is missing and is ours to make.
fn open(address: SocketAddr, workers: usize) -> io::Result<Vec<[Listening; 2]>> {
    let open_all = || (0..workers).map(|_| open_pair(address)).collect::<io::Result<Vec<_>>>();
    match (open_all(), address.ip()) {
        (Err(error), IpAddr::V4(ip)) if error.kind() == io::ErrorKind::AddrNotAvailable && address::may_add(ip) => {
            address::add(ip)?;
            tracing::info!(address = %ip, "added to the loopback interface");
            open_all()
        }
        (opened, _) => opened,
    }
}

fn open_pair(address: SocketAddr) -> io::Result<[Listening; 2]> {
    let open = |transport| socket::open(&Destination { address, transport });
    let udp = open(Transport::Udp)?;
    if let Listening::Udp(socket) = &udp {
        // Without NET_ADMIN it stays at what the system allows.
        let _ = setsockopt(socket, RcvBufForce, &BUFFER);
    }
    Ok([udp, open(Transport::Tcp)?])
}

fn advice(address: SocketAddr, error: &io::Error) -> &'static str {
    match (error.kind(), address.ip()) {
        (io::ErrorKind::PermissionDenied, IpAddr::V4(ip)) if address::may_add(ip) => {
            " (adding the address needs the capability NET_ADMIN, ports below 1024 need NET_BIND_SERVICE)"
        }
        (io::ErrorKind::PermissionDenied, _) => " (ports below 1024 need the capability NET_BIND_SERVICE)",
        (io::ErrorKind::AddrInUse, _) => " (another process answers there)",
        (io::ErrorKind::AddrNotAvailable, _) => {
            " (this node does not have the address; set --dns-listen to one that it has)"
        }
        _ => "",
    }
}
