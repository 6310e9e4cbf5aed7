//! What the Secret of the gateways holds, as values and as its data.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::ByteString;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    authority::{self, Authority, Serving},
    x509::Facts,
};

/// Data of a Secret.
pub type Data = BTreeMap<String, ByteString>;

/// What is held at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What the discovery port shows.
    pub serving: Serving,
    /// What has signed it, and signs its successor.
    pub signer: Authority,
    /// The next authority, which is trusted already and signs nothing yet.
    pub next: Option<Next>,
    /// Earlier authorities that are still valid, as PEM with their end.
    pub former: Vec<(String, SystemTime)>,
}

/// An authority that will sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The authority.
    pub authority: Authority,
    /// Since when agents can have it; `None` until that was seen.
    pub published: Option<SystemTime>,
}

/// Why the data of the Secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is not there.
    #[error("{0}: is missing or not text")]
    Missing(&'static str),
    /// Something cannot be read.
    #[error("{field}: {source}")]
    Invalid {
        /// The key of the data.
        field: &'static str,
        /// Why.
        source: authority::Error,
    },
}

// === impl Held ===

impl Held {
    /// Everything anew. Nobody trusts it before its bundle is published.
    ///
    /// # Errors
    /// Those of [`Authority::make`].
    pub fn make(names: &[String], now: SystemTime) -> Result<Self, authority::Error> {
        let signer = Authority::make(now)?;
        Ok(Self { serving: signer.issue(names, now)?, signer, next: None, former: vec![] })
    }

    /// What agents are to trust: the authority that signs, the one that will, and those that did.
    pub fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| next.authority.certificate.as_str());
        let former = self.former.iter().map(|(certificate, _)| certificate.as_str());
        std::iter::once(self.signer.certificate.as_str()).chain(next).chain(former).collect()
    }

    /// As data of the Secret. `tls.crt`, `tls.key` and `ca.crt` are where tools look for them.
    pub fn data(&self) -> Data {
        let mut data = vec![
            ("tls.crt", self.serving.material.certificate.clone()),
            ("tls.key", self.serving.material.key.clone()),
            ("ca.crt", self.bundle()),
            ("signer.crt", self.signer.certificate.clone()),
            ("signer.key", self.signer.key().to_owned()),
        ];
        if let Some(Next { authority, published }) = &self.next {
            data.push(("next.crt", authority.certificate.clone()));
            data.push(("next.key", authority.key().to_owned()));
            if let Some(published) = published {
                let seconds = published.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                data.push(("next.published", seconds.to_string()));
            }
        }
        data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()
    }

    /// From data of the Secret.
    ///
    /// # Errors
    /// [`Error`] with the key that is wrong.
    pub fn read(data: &Data) -> Result<Self, Error> {
        let optional = |field: &str| String::from_utf8(data.get(field)?.0.clone()).ok();
        let text = |field: &'static str| optional(field).ok_or(Error::Missing(field));
        let invalid = |field| move |source| Error::Invalid { field, source };
        let serving = Serving::read(text("tls.crt")?, text("tls.key")?).map_err(invalid("tls.crt"))?;
        let signer = Authority::read(text("signer.crt")?, text("signer.key")?).map_err(invalid("signer.crt"))?;
        let next = match optional("next.crt") {
            Some(certificate) => {
                let authority = Authority::read(certificate, text("next.key")?).map_err(invalid("next.crt"))?;
                let seconds = optional("next.published").and_then(|seconds| seconds.parse().ok());
                let published = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
                Some(Next { authority, published })
            }
            None => None,
        };
        let mut held = Self { serving, signer, next, former: vec![] };
        held.former = former(&text("ca.crt")?, &held.bundle());
        Ok(held)
    }
}

/// The authorities of a bundle that are not in `current`. What cannot be read is trusted by nobody, and dropped.
fn former(bundle: &str, current: &str) -> Vec<(String, SystemTime)> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let certificates = bundle.split_inclusive(END).filter(|certificate| !current.contains(*certificate));
    certificates
        .filter_map(|certificate| {
            let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
            Some((certificate.to_owned(), Facts::of(&der).ok()?.not_after))
        })
        .collect()
}
