//! The gateway's replicas: which there are, in which order this node tries them, and how one is reached. What proves who is
//! who is read from files for each connection, because Kubernetes exchanges them while we run.

use std::{fmt, io, path::PathBuf, time::Duration};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::sync::watch;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use xxhash_rust::xxh3::xxh3_64;

/// Where the CA of the gateways is mounted.
pub const CA_FILE: &str = "/var/run/secrets/portico.dev/ca/ca.crt";

/// Where the token of the agent is mounted.
pub const TOKEN_FILE: &str = "/var/run/secrets/portico.dev/discovery/token";

/// The replicas, and the way in.
#[derive(Clone, Debug)]
pub struct Gateways {
    /// Their URLs at present.
    pub replicas: watch::Receiver<Vec<String>>,
    /// How they are reached.
    pub access: Access,
}

/// How replicas are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// File with the authorities that the certificate of a replica has to be signed by, for https URLs.
    pub ca: Option<PathBuf>,
    /// File with the token that says who we are; `None` shows none.
    pub token: Option<PathBuf>,
    /// The name that the certificate has to hold; `None` takes the host of the URL.
    pub name: Option<String>,
}

/// A connection to a replica.
#[derive(Clone, Debug)]
pub struct Link {
    /// The connection.
    pub channel: Channel,
    credential: Option<MetadataValue<Ascii>>,
}

/// Why a replica cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not a URL.
    #[error("{url:?} is not a URL of a gateway")]
    Url {
        /// As given.
        url: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A file is not there, or not yet.
    #[error("waiting for {option} {path:?}")]
    File {
        /// The option that names it.
        option: &'static str,
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{option} {path:?} does not hold {expected}")]
    Content {
        /// The option that names it.
        option: &'static str,
        /// As given.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The connection, or its TLS handshake, failed.
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
}

// === impl Gateways ===

impl Gateways {
    /// Replicas that stay the same.
    pub fn fixed(urls: Vec<String>, access: Access) -> Self {
        // The last value outlives its sender.
        Self { replicas: watch::channel(urls).1, access }
    }

    /// Completes when there may be other replicas; never if they stay the same.
    pub async fn changed(mut self) {
        if self.replicas.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The replica that `node` tries in its `attempt`-th attempt, counted from 0.
    pub fn choose(&self, node: &str, attempt: usize) -> Option<String> {
        let mut urls = self.replicas.borrow().clone();
        sort(&mut urls, node);
        (!urls.is_empty()).then(|| urls.swap_remove(attempt % urls.len()))
    }
}

/// Puts the replicas in the order in which `node` tries them. It is another one for each node, so that the nodes are spread
/// over the replicas; and it is the same each time, so that they are still so after everybody has connected again.
fn sort(urls: &mut [String], node: &str) {
    urls.sort_by_cached_key(|url| xxh3_64(format!("{node}\0{url}").as_bytes()));
}

// === impl Access ===

impl Access {
    /// Connects to the replica at `url`.
    ///
    /// # Errors
    /// An [`Error`] that names the file or the URL.
    pub async fn connect(&self, url: &str) -> Result<Link, Error> {
        let invalid = |source| Error::Url { url: url.to_owned(), source };
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(invalid)?
            .connect_timeout(Duration::from_secs(3))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if let (Some("https"), Some(path)) = (endpoint.uri().scheme_str(), &self.ca) {
            let mut tls = ClientTlsConfig::new().ca_certificate(authorities(path).await?);
            if let Some(name) = &self.name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls).map_err(invalid)?;
        }
        let credential = match &self.token {
            Some(path) => Some(credential(path).await?),
            None => None,
        };
        Ok(Link { channel: endpoint.connect().await.map_err(Error::Connect)?, credential })
    }
}

async fn read(option: &'static str, path: &PathBuf) -> Result<String, Error> {
    let content = tokio::fs::read_to_string(path).await;
    content.map_err(|source| Error::File { option, path: path.clone(), source })
}

async fn authorities(path: &PathBuf) -> Result<Certificate, Error> {
    let pem = read("--gateway-ca", path).await?;
    // Without any, every certificate would be refused, with a reason that leads nowhere.
    match CertificateDer::from_pem_slice(pem.as_bytes()) {
        Ok(_) => Ok(Certificate::from_pem(pem)),
        Err(_) => {
            Err(Error::Content { option: "--gateway-ca", path: path.clone(), expected: "a certificate in PEM form" })
        }
    }
}

async fn credential(path: &PathBuf) -> Result<MetadataValue<Ascii>, Error> {
    let token = read("--gateway-token", path).await?;
    let none = || Error::Content { option: "--gateway-token", path: path.clone(), expected: "a token" };
    let token = Some(token.trim()).filter(|token| !token.is_empty()).ok_or_else(none)?;
    let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| none())?;
    value.set_sensitive(true);
    Ok(value)
}

// === impl Link ===

impl Link {
    /// A request that says who we are.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(credential) = &self.credential {
            request.metadata_mut().insert("authorization", credential.clone());
        }
        request
    }
}

/// What lies behind an error, from the outside in; a refused certificate, for one, lies three errors deep.
pub fn causes(error: &dyn std::error::Error) -> Option<String> {
    let chain = std::iter::successors(error.source(), |error| error.source());
    let mut all: Vec<String> = chain.map(ToString::to_string).collect();
    all.dedup();
    (!all.is_empty()).then(|| all.join(": "))
}

/// The whole of an error in one line.
pub fn line(error: &(impl std::error::Error + 'static)) -> impl fmt::Display {
    match causes(error) {
        Some(causes) => format!("{error}: {causes}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
