//! What is read of a certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Why a certificate cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not in PEM form.
    #[error("not a certificate in PEM form")]
    Pem,
    /// It is not an X.509 certificate.
    #[error("not an X.509 certificate")]
    X509,
}

/// What matters of a certificate here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The distinguished name of whom it is for.
    pub subject: String,
    /// The distinguished name of whom it is signed by.
    pub issuer: String,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
    /// DNS names that it is for.
    pub names: Vec<String>,
}

// === impl Facts ===

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Error`] if it is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| Error::X509)?;
        let alternatives = parsed.subject_alternative_name().map_err(|_| Error::X509)?;
        let names = alternatives.map(|alternatives| &alternatives.value.general_names).into_iter().flatten();
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            names: names.collect(),
        })
    }

    /// Reads the first certificate of a text in PEM form.
    ///
    /// # Errors
    /// [`Error`] if there is none.
    pub fn of_pem(pem: &str) -> Result<Self, Error> {
        Self::of(&CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Pem)?)
    }
}
