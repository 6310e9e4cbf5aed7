//! Certificates of Secrets as TLS server configurations.

use std::sync::Arc;

use api::resource::{certificate::Certificate, invalid::Invalid};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::ProducesTickets,
    sign::{CertifiedKey, SingleCertAndKey},
};

/// What all TLS configurations of an agent share: the provider, and the ticket key, so that a session can be resumed on
/// any worker.
#[derive(Clone, Debug)]
pub struct TlsContext {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
}

/// Protocols offered by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/2 and HTTP/1.1.
    Http,
    /// None: what is inside is opaque.
    None,
}

// === impl TlsContext ===

impl TlsContext {
    /// A context with a fresh ticket key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, rustls::Error> {
        Ok(Self { provider: Arc::new(aws_lc_rs::default_provider()), tickets: aws_lc_rs::Ticketer::new()? })
    }

    /// The configuration that terminates TLS with a certificate.
    ///
    /// # Errors
    /// [`Invalid`] names the part of the Secret that cannot be used.
    pub fn server(&self, certificate: &Certificate, alpn: Alpn) -> Result<Arc<ServerConfig>, Invalid> {
        let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let key = PrivateKeyDer::from_pem_slice(&certificate.private_key)
            .map_err(|_| Invalid::new("private_key", "holds no PKCS#8, PKCS#1 or SEC1 key in PEM"))?;
        let certified = CertifiedKey::from_der(chain, key, &self.provider)
            .map_err(|error| Invalid::new("private_key", format!("cannot be used with the certificate: {error}")))?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Invalid::new("chain", error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.ticketer = self.tickets.clone();
        if alpn == Alpn::Http {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Ok(Arc::new(config))
    }
}
