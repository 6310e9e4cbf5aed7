//! Certificates that a test issues, and clients that trust one of them only.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A self-signed certificate with its key.
#[derive(Debug)]
pub struct Issued {
    /// In PEM.
    pub certificate: String,
    /// In PEM.
    pub key: String,
    /// In DER.
    pub der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

// === impl Issued ===

impl Issued {
    /// For this name.
    ///
    /// # Panics
    /// When the name is none.
    pub fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a name for a certificate");
        Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            der: made.cert.der().clone(),
            key_der: made.signing_key.serialize_der(),
        }
    }

    /// A Secret of type `kubernetes.io/tls`, with the separator of documents after it.
    pub fn secret(&self, name: &str) -> String {
        let (certificate, key) = (self.certificate.replace('\n', "\n    "), self.key.replace('\n', "\n    "));
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\nstringData:\n  \
             tls.crt: |\n    {certificate}\n  tls.key: |\n    {key}\n---\n"
        )
    }

    /// For a server that has this certificate for every name.
    ///
    /// # Panics
    /// Never: certificate and key belong together.
    pub fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key_der.clone()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions of TLS").with_no_client_auth();
        Arc::new(config.with_single_cert(vec![self.der.clone()], key).expect("key and certificate belong together"))
    }

    /// Connects, asks for a name, and trusts this certificate only.
    ///
    /// # Errors
    /// Those of the connection and of the handshake.
    pub async fn connect(&self, to: SocketAddr, name: &str, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(std::io::Error::other)?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(std::io::Error::other)?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(to).await?).await
    }
}
