//! Certificates made here: an authority of our own, and what it signs for the discovery port.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};

use super::{
    Material,
    x509::{self, Facts},
};

/// How long an authority is valid.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// How long a certificate of the discovery port is valid.
pub const SERVING_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Certificates begin this long ago, for peers whose clocks are late.
pub const BACKDATED: Duration = Duration::from_secs(3600);

/// Why no certificate can be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Making or signing failed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// What is held cannot be read.
    #[error("cannot read a certificate")]
    Read(#[from] x509::Error),
}

/// An authority: what it signs is trusted by those who trust it.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate, as PEM.
    pub certificate: String,
    key: String,
    /// What its certificate says.
    pub facts: Facts,
}

/// A certificate of the discovery port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Certificate and key.
    pub material: Material,
    /// What the certificate says.
    pub facts: Facts,
}

// === impl Authority ===

impl Authority {
    /// Makes an authority that is valid from `now` on.
    ///
    /// # Errors
    /// [`Error::Make`] if the system has no randomness.
    pub fn make(now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // A name of its own, so that a verifier which trusts two of them takes the right one at once.
        let id = &blake3::hash(&key.subject_public_key_info()).to_hex()[..16];
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Portico");
        params.distinguished_name.push(DnType::CommonName, format!("discovery {id}"));
        // It signs servers, and no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, now + AUTHORITY_LIFE);
        let certificate = params.self_signed(&key)?.pem();
        Self::read(certificate, key.serialize_pem())
    }

    /// Reads an authority that was made before.
    ///
    /// # Errors
    /// [`Error`] if it is none, or the key is not its own.
    pub fn read(certificate: String, key: String) -> Result<Self, Error> {
        let facts = Facts::of_pem(&certificate)?;
        // Whether the key can be used is found out now, not when it is needed.
        KeyPair::from_pem(&key)?;
        Ok(Self { certificate, key, facts })
    }

    /// Its private key, as PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Signs a new certificate for `names`, which ends with the authority at the latest.
    ///
    /// # Errors
    /// [`Error::Make`] for a name that no certificate can hold.
    pub fn issue(&self, names: &[String], now: SystemTime) -> Result<Serving, Error> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Portico");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, (now + SERVING_LIFE).min(self.facts.not_after));
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Serving::read(certificate, key.serialize_pem())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Authority({})", self.facts.subject)
    }
}

// === impl Serving ===

impl Serving {
    /// Reads a certificate that was made before.
    ///
    /// # Errors
    /// [`Error`] if it is none, or there is no key.
    pub fn read(certificate: String, key: String) -> Result<Self, Error> {
        let facts = Facts::of_pem(&certificate)?;
        KeyPair::from_pem(&key)?;
        Ok(Self { material: Material { certificate, key }, facts })
    }
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970(from).saturating_sub(BACKDATED);
    params.not_after = epoch + since_1970(until);
}
