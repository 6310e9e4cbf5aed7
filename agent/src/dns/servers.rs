//! Whom to ask what is not ours: servers of an option, or those of resolv.conf, which is read again when it changes.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

/// Where the system says whom to ask.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The port of DNS.
pub const PORT: u16 = 53;

/// How often the file is looked at. Leases of addresses change it now and then.
const LOOK: Duration = Duration::from_secs(5);

/// The C library reads as many; more would only make failing slower.
const MOST: usize = 3;

/// Whom to ask, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These servers.
    Servers(Vec<SocketAddr>),
    /// Those of this resolv.conf.
    File(PathBuf),
}

/// Servers in the order in which they are asked.
pub type Servers = Arc<[SocketAddr]>;

impl Default for Source {
    fn default() -> Self {
        Source::File(PathBuf::from(RESOLV_CONF))
    }
}

/// The name servers of a resolv.conf. Lines that cannot be used are skipped, as the C library does. Of `own` addresses
/// asking would go in circles: they are left out, and given apart.
pub fn parse(text: &str, own: &[SocketAddr]) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address: IpAddr = match words.next() {
            // A zone, as in fe80::1%eth0, cannot be expressed without the interface's number, and is left out.
            Some("nameserver") => words.next()?.parse().ok()?,
            _ => return None,
        };
        Some(SocketAddr::new(address, PORT))
    };
    let (ours, mut servers): (Vec<_>, Vec<_>) =
        text.lines().filter_map(server).partition(|server| own.contains(server));
    servers.truncate(MOST);
    (servers, ours)
}

/// Follows a resolv.conf. The first reading is done when this returns; the future reads again whenever the file changes,
/// and never ends.
pub fn follow(path: PathBuf, own: Vec<SocketAddr>) -> (watch::Receiver<Servers>, impl Future<Output = ()> + Send) {
    let mut seen = changed(&path);
    let (sender, receiver) = watch::channel(read(&path, &own));
    let follow = async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = changed(&path);
            if now != seen {
                seen = now;
                let servers = read(&path, &own);
                sender.send_if_modified(|known| {
                    let differs = *known != servers;
                    *known = servers;
                    differs
                });
            }
        }
    };
    (receiver, follow)
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn read(path: &Path, own: &[SocketAddr]) -> Servers {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), "cannot read the name servers: {error}");
        }
        String::new()
    });
    let (servers, ours) = parse(&text, own);
    if !ours.is_empty() {
        tracing::warn!(
            path = %path.display(), ?ours,
            "left out name servers that are this agent itself, because its questions would go in circles; give its Pod \
             dnsPolicy: Default, or set --dns-upstream"
        );
    }
    if servers.is_empty() {
        tracing::warn!(
            path = %path.display(),
            "no name server to ask what is not in the cluster domain; such questions are refused. Set --dns-upstream"
        );
    } else {
        tracing::info!(?servers, "name servers for what is not in the cluster domain");
    }
    servers.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# made by hand\nsearch example.com\nnameserver 10.0.0.2\nnameserver   fd00::2 # second\n\
                    nameserver 169.254.20.53\nnameserver fe80::1%eth0\nnameserver nobody\nnameserver\noptions ndots:2\n";
        let own = ["169.254.20.53:53".parse().expect("an address")];
        let expected: Vec<SocketAddr> = ["10.0.0.2:53", "[fd00::2]:53"].map(|s| s.parse().expect("an address")).into();
        assert_eq!(parse(text, &own), (expected, own.to_vec()), "our own address is no server to ask");
        assert_eq!(parse("", &own), (vec![], vec![]));
        let many: String = (1..9).map(|last| format!("nameserver 10.0.0.{last}\n")).collect();
        assert_eq!(parse(&many, &[]).0.len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        let (mut servers, follow) = follow(path.clone(), vec![]);
        assert!(servers.borrow().is_empty());
        let follow = tokio::spawn(follow);
        std::fs::write(&path, "nameserver 10.0.0.2\n").expect("is written");
        servers.changed().await.expect("the follower lives");
        assert_eq!(servers.borrow().to_vec(), ["10.0.0.2:53".parse().expect("an address")]);
        follow.abort();
    }
}
