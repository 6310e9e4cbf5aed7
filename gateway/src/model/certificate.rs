//! A `kubernetes.io/tls` Secret to a Certificate.

use api::resource::{certificate::Certificate, name::NamespacedName};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Secret;
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// A Secret as far as it is of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The newest content that can be used. Stays while newer content cannot, so that a botched renewal does not take
    /// a Service down.
    pub certificate: Option<Certificate>,
    /// Why the newest content cannot be used.
    pub problem: Option<String>,
}

/// Parses a Secret; `before` is what was known of it.
pub fn parse(name: &NamespacedName, secret: &Secret, before: Option<&Parsed>) -> Parsed {
    match read(name, secret) {
        Ok(certificate) => Parsed { certificate: Some(certificate), problem: None },
        Err(problem) => {
            let kept = before.and_then(|before| before.certificate.clone());
            Parsed { certificate: kept, problem: Some(problem) }
        }
    }
}

fn read(name: &NamespacedName, secret: &Secret) -> Result<Certificate, String> {
    if let Some(kind) = secret.type_.as_deref().filter(|kind| *kind != "kubernetes.io/tls") {
        return Err(format!("type is {kind:?}; it must be kubernetes.io/tls"));
    }
    let field = |field: &str| -> Result<Vec<u8>, String> {
        let data = secret.data.as_ref().and_then(|data| data.get(field)).map(|value| value.0.clone());
        let text = secret.string_data.as_ref().and_then(|data| data.get(field)).map(|value| value.clone().into_bytes());
        // stringData wins, as in the API server.
        text.or(data).ok_or_else(|| format!("{field} is missing"))
    };
    let (certificates, key) = (field("tls.crt")?, field("tls.key")?);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificates)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("tls.crt is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_owned());
    }
    let parsed = PrivateKeyDer::from_pem_slice(&key).map_err(|error| format!("tls.key is not a PEM key: {error}"))?;
    let signing = any_supported_type(&parsed).map_err(|error| format!("tls.key cannot be used: {error}"))?;
    let certified = CertifiedKey::new(chain.clone(), signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err("tls.key does not belong to tls.crt".to_owned()),
        Err(error) => return Err(format!("tls.crt cannot be used: {error}")),
    }
    let chain = chain.iter().map(|certificate| Bytes::copy_from_slice(certificate)).collect();
    Ok(Certificate { name: name.clone(), chain, private_key: key.into() })
}
