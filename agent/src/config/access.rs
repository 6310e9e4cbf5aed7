//! How gateways are found and known, as typed and as used.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use runtime::args::Problems;

use crate::gateways::{Access, CA_FILE, TOKEN_FILE};

/// How gateways are found and known.
#[derive(Clone, Debug, ClapArgs)]
pub struct AccessArgs {
    /// Service of the gateways in the cluster: its ready endpoints are connected to, without DNS
    #[arg(long, env = "PORTICO_GATEWAY_SERVICE", value_name = "NAMESPACE/NAME", conflicts_with = "gateway")]
    pub gateway_service: Option<String>,
    /// File with the CA certificates of the gateways, PEM, read for each connection [default with --gateway-service:
    /// /var/run/secrets/portico.dev/ca/ca.crt]
    #[arg(long, env = "PORTICO_GATEWAY_CA", value_name = "FILE")]
    pub gateway_ca: Option<PathBuf>,
    /// File with the token that proves who this agent is, read for each connection [default with --gateway-service:
    /// /var/run/secrets/portico.dev/discovery/token]
    #[arg(long, env = "PORTICO_GATEWAY_TOKEN", value_name = "FILE")]
    pub gateway_token: Option<PathBuf>,
    /// Name in the certificate of the gateways [default: <NAME>.<NAMESPACE>.svc of --gateway-service, else the host of
    /// the URL]
    #[arg(long, env = "PORTICO_GATEWAY_NAME", value_name = "NAME")]
    pub gateway_name: Option<String>,
    /// Connect to the endpoints of --gateway-service in plain text and without a token
    #[arg(long, env = "PORTICO_INSECURE_DISCOVERY", requires = "gateway_service")]
    pub insecure_discovery: bool,
    /// Credentials of the cluster, for --gateway-service [default: those of the Pod, else $KUBECONFIG or ~/.kube/config]
    #[arg(long, env = "PORTICO_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// A Service whose endpoints are gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Scheme of the URLs: https, or http where discovery is insecure.
    pub scheme: &'static str,
    /// Credentials of the cluster; `None` means those of the environment.
    pub kubeconfig: Option<PathBuf>,
}

// === impl AccessArgs ===

impl AccessArgs {
    /// The Service, if one is given; the inner `None` means that `problems` got an entry.
    pub fn service(&self, problems: &mut Problems) -> Option<Option<GatewayService>> {
        let raw = self.gateway_service.as_ref()?;
        let parse = |raw: &str| match raw.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok((namespace.to_owned(), name.to_owned()))
            }
            Some(_) | None => Err("is not the name of a Service".to_owned()),
        };
        let expected = "give namespace and name, such as portico-system/portico-gateway";
        let name = problems.value("--gateway-service", raw, parse, expected);
        Some(name.map(|(namespace, name)| GatewayService {
            namespace,
            name,
            scheme: if self.insecure_discovery { "http" } else { "https" },
            kubeconfig: self.kubeconfig.clone(),
        }))
    }

    /// How they are known, when they are the endpoints of `service`.
    pub fn of_service(&self, service: &GatewayService) -> Access {
        if self.insecure_discovery {
            return Access::default();
        }
        let name = || format!("{}.{}.svc", service.name, service.namespace);
        Access {
            ca: Some(self.gateway_ca.clone().unwrap_or_else(|| CA_FILE.into())),
            token: Some(self.gateway_token.clone().unwrap_or_else(|| TOKEN_FILE.into())),
            name: Some(self.gateway_name.clone().unwrap_or_else(name)),
        }
    }

    /// How they are known at `urls`; `None` if `problems` got an entry.
    pub fn of_urls(&self, urls: &[String], problems: &mut Problems) -> Option<Access> {
        let is_tls = |url: &&String| url.to_ascii_lowercase().starts_with("https://");
        if self.gateway_ca.is_none() && urls.iter().any(|url| is_tls(&url)) {
            problems.push("--gateway-ca", "is missing; an https URL needs the CA certificates of the gateway");
            return None;
        }
        if self.gateway_token.is_some() && !urls.iter().all(|url| is_tls(&url)) {
            problems.push("--gateway-token", "must not be sent in plain text; give https URLs only");
            return None;
        }
        let (ca, token, name) = (self.gateway_ca.clone(), self.gateway_token.clone(), self.gateway_name.clone());
        Some(Access { ca, token, name })
    }
}
