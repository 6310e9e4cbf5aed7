//! The certificate in force on the discovery port. It is exchanged between two handshakes; open connections keep what
//! they agreed on.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use opentelemetry::metrics::Meter;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use tokio::sync::watch;

use super::certificate::{Material, x509};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no certificate in the text.
    #[error("the certificate is not in PEM form; give a chain that begins with the certificate of the server")]
    Certificate,
    /// There is no key in the text.
    #[error("the key is not in PEM form; give the private key of the certificate")]
    Key,
    /// Key and certificate do not go together, or are of a kind that is not known.
    #[error("the key cannot be used with the certificate")]
    Pair(#[source] rustls::Error),
    /// The certificate cannot be read.
    #[error("the certificate cannot be read")]
    X509(#[from] x509::Error),
}

/// Gives the certificate in force to handshakes.
#[derive(Debug)]
pub struct Current(RwLock<(Arc<CertifiedKey>, SystemTime)>);

// === impl Current ===

impl Current {
    /// Starts with this certificate.
    ///
    /// # Errors
    /// [`Error`] if it cannot be used.
    pub fn new(material: &Material) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self(RwLock::new(usable(material)?))))
    }

    /// Uses another certificate from now on. One that cannot be used changes nothing.
    ///
    /// # Errors
    /// [`Error`] if it cannot be used.
    pub fn replace(&self, material: &Material) -> Result<(), Error> {
        let (key, expires) = usable(material)?;
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        tracing::info!(valid_for_seconds = left.as_secs(), "new certificate on the discovery port");
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (key, expires);
        Ok(())
    }

    /// Shows in metrics how long the certificate is valid.
    pub fn observe(self: &Arc<Self>, meter: &Meter) {
        let read = self.clone();
        meter
            .f64_observable_gauge("portico.discovery.certificate.remaining")
            .with_description("Time until the certificate of the discovery port expires")
            .with_unit("s")
            .with_callback(move |observer| {
                let expires = read.0.read().unwrap_or_else(PoisonError::into_inner).1;
                let left = expires
                    .duration_since(SystemTime::now())
                    .map_or_else(|over| -over.duration().as_secs_f64(), |left| left.as_secs_f64());
                observer.observe(left, &[]);
            })
            .build();
    }

    /// What handshakes are made with: TLS 1.3 and HTTP/2 only.
    ///
    /// # Errors
    /// None that depends on input.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).0.clone())
    }
}

/// Waits for the first certificate that can be used. [`follow`] takes those that come later.
pub async fn first(material: &mut watch::Receiver<Option<Material>>) -> Arc<Current> {
    loop {
        let now = material.borrow_and_update().clone();
        match now.as_ref().map(Current::new) {
            Some(Ok(current)) => return current,
            Some(Err(error)) => tell(&error),
            None => {}
        }
        if material.changed().await.is_err() {
            // Nobody looks for certificates any more, so the process ends.
            std::future::pending::<()>().await;
        }
    }
}

/// Puts every later certificate into force.
pub async fn follow(current: Arc<Current>, mut material: watch::Receiver<Option<Material>>) {
    while material.changed().await.is_ok() {
        let now = material.borrow_and_update().clone();
        if let Some(Err(error)) = now.map(|material| current.replace(&material)) {
            tell(&error);
        }
    }
}

fn tell(error: &Error) {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::error!(cause, "the certificate of the discovery port is of no use: {error}; the last one stays in force");
}

fn usable(material: &Material) -> Result<(Arc<CertifiedKey>, SystemTime), Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(material.certificate.as_bytes()).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(Error::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes()).map_err(|_| Error::Key)?;
    let expires = x509::Facts::of(&chain[0])?.not_after;
    let pair = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(Error::Pair)?;
    Ok((Arc::new(pair), expires))
}
