//! DNS names of Services, as clients write them in Host and `:authority`.

use std::sync::Arc;

use super::{Map, Target};
use crate::report::outcome::Outcome;

/// How far ExternalName may lead from one Service to the next.
const ALIAS_DEPTH: usize = 8;

/// Names of all Services.
#[derive(Debug, Default)]
pub struct Names {
    domain: Box<str>,
    services: Map<Box<str>, Named>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Named {
    /// The TCP ports of a Service, in its order.
    Service(Vec<Arc<Target>>),
    /// ExternalName: another name.
    Alias(Box<str>),
}

// === impl Names ===

impl Names {
    /// Names below `domain`, such as `cluster.local`; keys are `service.namespace`.
    pub fn new(domain: &str, services: impl IntoIterator<Item = (String, Named)>) -> Self {
        let services = services.into_iter().map(|(name, named)| (name.to_ascii_lowercase().into(), named)).collect();
        Self { domain: domain.trim_matches('.').to_ascii_lowercase().into(), services }
    }

    /// The target that an authority names: `svc`, `svc.ns`, `svc.ns.svc`, `svc.ns.svc.DOMAIN`, each with or without port
    /// and trailing dot. A bare `svc` is looked up in `namespace`. `listen_port` is the port that the client reached,
    /// which an authority may name without meaning a port of the Service.
    ///
    /// # Errors
    /// [`Outcome::UnknownName`], or [`Outcome::UnknownPort`] if the Service has no such HTTP port.
    pub fn resolve(&self, authority: &str, namespace: &str, listen_port: u16) -> Result<&Arc<Target>, Outcome> {
        let (host, port) = split_port(authority)?;
        let mut key = self.key(host, namespace).ok_or(Outcome::UnknownName)?;
        for _ in 0..ALIAS_DEPTH {
            match self.services.get(&*key).ok_or(Outcome::UnknownName)? {
                Named::Service(ports) => return choose(ports, port.filter(|port| *port != listen_port), port),
                Named::Alias(name) => key = self.key(name, "").ok_or(Outcome::UnknownName)?,
            }
        }
        Err(Outcome::UnknownName)
    }

    /// The targets of all names.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.services.values().flat_map(|named| match named {
            Named::Service(ports) => ports.as_slice(),
            Named::Alias(_) => &[],
        })
    }

    /// `service.namespace` of a host name.
    fn key(&self, host: &str, namespace: &str) -> Option<String> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let mut labels = host.split('.');
        let service = labels.next().filter(|label| !label.is_empty())?;
        let Some(named) = labels.next() else {
            return (!namespace.is_empty()).then(|| format!("{service}.{namespace}"));
        };
        let complete = match host[service.len() + 1 + named.len()..].strip_prefix('.') {
            None | Some("svc") => true,
            Some(rest) => rest.strip_prefix("svc.") == Some(&*self.domain),
        };
        complete.then(|| format!("{service}.{named}"))
    }
}

/// Host and port of an authority. IPv6 literals are addresses, not names.
fn split_port(authority: &str) -> Result<(&str, Option<u16>), Outcome> {
    match authority.rsplit_once(':') {
        None => Ok((authority, None)),
        Some((host, "")) => Ok((host, None)),
        Some((host, port)) => Ok((host, Some(port.parse().map_err(|_| Outcome::UnknownName)?))),
    }
}

/// The port that was asked for, else the first one that speaks HTTP.
fn choose(ports: &[Arc<Target>], asked: Option<u16>, written: Option<u16>) -> Result<&Arc<Target>, Outcome> {
    let http = |target: &&Arc<Target>| target.protocol.is_http();
    let exact = written.and_then(|port| ports.iter().find(|target| target.port == port && http(target)));
    match (exact, asked) {
        (Some(target), _) => Ok(target),
        (None, Some(_)) => Err(Outcome::UnknownPort),
        (None, None) => ports.iter().find(http).ok_or(Outcome::UnknownPort),
    }
}

#[cfg(test)]
mod tests {
    use api::resource::{
        name::NamespacedName,
        service::{AppProtocol, Transport},
    };

    use super::*;
    use crate::table::Family;

    fn port(service: &str, namespace: &str, port: u16, protocol: AppProtocol) -> Arc<Target> {
        Arc::new(Target {
            protocol,
            ..Target::new(NamespacedName::new(namespace, service), port, Transport::Tcp, Family::Ipv4)
        })
    }

    fn names() -> Names {
        let web = vec![port("web", "shop", 80, AppProtocol::Http), port("web", "shop", 9090, AppProtocol::Grpc)];
        let db = vec![port("db", "shop", 5432, AppProtocol::Opaque)];
        Names::new(
            "cluster.local",
            [
                ("web.shop".to_owned(), Named::Service(web)),
                ("db.shop".to_owned(), Named::Service(db)),
                ("shortcut.default".to_owned(), Named::Alias("web.shop.svc.cluster.local".into())),
                ("away.default".to_owned(), Named::Alias("example.com".into())),
                ("loop.default".to_owned(), Named::Alias("loop.default.svc.cluster.local".into())),
            ],
        )
    }

    fn check(authority: &str, namespace: &str, expected: Result<u16, Outcome>) {
        let names = names();
        let found = names.resolve(authority, namespace, 8080).map(|target| target.port);
        assert_eq!(found, expected, "{authority} in {namespace}");
    }

    #[test]
    fn every_form_of_a_name_is_known() {
        for form in ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "WEB.Shop.SVC.Cluster.Local"] {
            for dot in ["", "."] {
                for port in ["", ":80", ":8080", ":"] {
                    check(&format!("{form}{dot}{port}"), "default", Ok(80));
                }
            }
        }
        check("web", "shop", Ok(80));
        check("web.shop:9090", "default", Ok(9090));
        check("shortcut", "default", Ok(80));
    }

    #[test]
    fn other_names_are_not() {
        for name in [
            "",
            ".",
            "web",
            "web.",
            "web.default",
            "web.shop.pod",
            "web.shop.svc.cluster",
            "web.shop.svc.other.domain",
            "web.shop.svc.cluster.local.example",
            "web.shop.extra.svc.cluster.local",
            "away",
            "loop",
            "[::1]:80",
            "web.shop:x",
            ".shop",
            "web..svc",
            "10.0.0.1",
        ] {
            check(name, "default", Err(Outcome::UnknownName));
        }
    }

    #[test]
    fn a_port_must_exist_and_speak_http() {
        check("web.shop:81", "default", Err(Outcome::UnknownPort));
        check("db.shop", "default", Err(Outcome::UnknownPort));
        check("db.shop:5432", "default", Err(Outcome::UnknownPort));
    }
}
