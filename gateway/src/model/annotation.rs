//! The annotations below `portico.dev/`: typed, with everything unknown reported and the rest obeyed.

use std::collections::BTreeMap;

use api::resource::service::{Balancing, ClientAddress};
use runtime::args::nearest::nearest;

use crate::{
    ipam::load_balancer::request::{ADDRESS_POOL, ALLOW_SHARED_IP, LOAD_BALANCER_IPS},
    problem::Problem,
    watch::object::ANNOTATION_PREFIX,
};

/// What is spoken on ports without `appProtocol`, or inside TLS that is terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    Tls,
    Tcp,
}

/// The annotations of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `portico.dev/protocol`
    pub protocol: Option<Protocol>,
    /// `portico.dev/tls-secret`: name of a Secret in the namespace of the Service.
    pub tls_secret: Option<String>,
    /// `portico.dev/balancing`
    pub balancing: Option<Balancing>,
    /// `portico.dev/client-address`
    pub client_address: ClientAddress,
    /// `portico.dev/local-overflow`
    pub local_overflow: bool,
}

const PROTOCOL: &str = "protocol";
const TLS_SECRET: &str = "tls-secret";
const BALANCING: &str = "balancing";
const CLIENT_ADDRESS: &str = "client-address";
const LOCAL_OVERFLOW: &str = "local-overflow";
const ACCEPT_PROXY_PROTOCOL: &str = "accept-proxy-protocol";
const SEND_PROXY_PROTOCOL: &str = "send-proxy-protocol";
const ECHO: &str = "echo";

const OF_SERVICES: [&str; 10] = [
    PROTOCOL,
    TLS_SECRET,
    BALANCING,
    CLIENT_ADDRESS,
    LOCAL_OVERFLOW,
    ACCEPT_PROXY_PROTOCOL,
    SEND_PROXY_PROTOCOL,
    LOAD_BALANCER_IPS,
    ADDRESS_POOL,
    ALLOW_SHARED_IP,
];
const OF_PODS: [&str; 1] = [ECHO];

/// Reads the annotations of a Service. Each that is unknown, or has a value that is, is reported and left out.
pub fn of_service(annotations: Option<&BTreeMap<String, String>>, report: &mut dyn FnMut(Problem)) -> Annotations {
    let mut found = Annotations::default();
    for (name, value) in ours(annotations) {
        let value = value.trim();
        let one_of = |known: &[&'static str], report: &mut dyn FnMut(Problem)| one_of(name, value, known, report);
        match name {
            PROTOCOL => {
                found.protocol = one_of(&["http", "http2", "grpc", "tls", "tcp"], report).map(|value| match value {
                    "http" => Protocol::Http,
                    "http2" => Protocol::Http2,
                    "grpc" => Protocol::Grpc,
                    "tls" => Protocol::Tls,
                    _ => Protocol::Tcp,
                });
            }
            TLS_SECRET if value.is_empty() || value.contains('/') => report(Problem::new(
                "INVALID_ANNOTATION",
                format!("{ANNOTATION_PREFIX}{name}: {value:?} is not the name of a Secret in the Service's namespace"),
            )),
            TLS_SECRET => found.tls_secret = Some(value.to_owned()),
            BALANCING => found.balancing = balancing(value, report),
            CLIENT_ADDRESS => {
                found.client_address = match one_of(&["keep", "pool", "auto"], report) {
                    Some("keep") => ClientAddress::Keep,
                    Some("pool") => ClientAddress::Pool,
                    _ => ClientAddress::Auto,
                };
            }
            LOCAL_OVERFLOW => found.local_overflow = one_of(&["true", "false"], report) == Some("true"),
            ACCEPT_PROXY_PROTOCOL | SEND_PROXY_PROTOCOL => {
                if value != "off" {
                    let message =
                        format!("{ANNOTATION_PREFIX}{name}: the PROXY protocol is not supported by this release");
                    report(Problem::new("UNSUPPORTED_ANNOTATION", message));
                }
            }
            // Read where addresses are assigned.
            LOAD_BALANCER_IPS | ADDRESS_POOL | ALLOW_SHARED_IP => {}
            _ => unknown(name, &OF_SERVICES, "Service", report),
        }
    }
    found
}

/// Reports what is wrong with the annotations of a Pod.
pub fn of_pod(annotations: Option<&BTreeMap<String, String>>, report: &mut dyn FnMut(Problem)) {
    for (name, value) in ours(annotations) {
        match name {
            ECHO => {
                one_of(name, value, &["true", "false"], report);
            }
            _ => unknown(name, &OF_PODS, "Pod", report),
        }
    }
}

/// Reports annotations on a kind that has none.
pub fn of_other(kind: &str, annotations: Option<&BTreeMap<String, String>>, report: &mut dyn FnMut(Problem)) {
    for (name, _) in ours(annotations) {
        unknown(name, &[], kind, report);
    }
}

fn ours(annotations: Option<&BTreeMap<String, String>>) -> impl Iterator<Item = (&str, &str)> {
    let all = annotations.into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.strip_prefix(ANNOTATION_PREFIX)?, value.as_str())))
}

fn unknown(name: &str, known: &[&str], kind: &str, report: &mut dyn FnMut(Problem)) {
    let hint = match nearest(name, known) {
        Some(near) => format!("; did you mean {ANNOTATION_PREFIX}{near}?"),
        None if known.is_empty() => String::new(),
        None => format!("; known are {}", known.join(", ")),
    };
    let message = format!("{ANNOTATION_PREFIX}{name} is not an annotation of a {kind}{hint}");
    report(Problem::new("UNKNOWN_ANNOTATION", message));
}

fn one_of(name: &str, value: &str, known: &[&'static str], report: &mut dyn FnMut(Problem)) -> Option<&'static str> {
    let found = known.iter().find(|known| **known == value).copied();
    if found.is_none() {
        let hint = nearest(value, known).map_or(String::new(), |near| format!("; did you mean {near}?"));
        let message = format!("{ANNOTATION_PREFIX}{name}: {value:?} is none of {}{hint}", known.join(", "));
        report(Problem::new("INVALID_ANNOTATION", message));
    }
    found
}

fn balancing(value: &str, report: &mut dyn FnMut(Problem)) -> Option<Balancing> {
    const KNOWN: [&str; 6] =
        ["least-request", "random", "round-robin", "client-hash", "header-hash:NAME", "cookie-hash:NAME"];
    let is_token = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    match value.split_once(':') {
        None => match value {
            "least-request" => return Some(Balancing::LeastRequest),
            "random" => return Some(Balancing::Random),
            "round-robin" => return Some(Balancing::RoundRobin),
            "client-hash" => return Some(Balancing::ClientHash),
            _ => {}
        },
        Some(("header-hash", name)) if is_token(name) => return Some(Balancing::HeaderHash(name.to_ascii_lowercase())),
        Some(("cookie-hash", name)) if is_token(name) => return Some(Balancing::CookieHash(name.to_owned())),
        Some(("header-hash" | "cookie-hash", name)) => {
            let message = format!("{ANNOTATION_PREFIX}{BALANCING}: {name:?} is not a header or cookie name");
            report(Problem::new("INVALID_ANNOTATION", message));
            return None;
        }
        Some(_) => {}
    }
    one_of(BALANCING, value, &KNOWN, report);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Annotations, Vec<String>) {
        let annotations = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut problems = Vec::new();
        let read = of_service(Some(&annotations), &mut |problem| problems.push(problem.to_string()));
        (read, problems)
    }

    #[test]
    fn known_annotations_are_typed() {
        let (read, problems) = read(&[
            ("portico.dev/protocol", "grpc"),
            ("portico.dev/tls-secret", "cert"),
            ("portico.dev/balancing", "header-hash:X-User"),
            ("portico.dev/client-address", "pool"),
            ("portico.dev/local-overflow", "true"),
            ("example.com/protocol", "anything"),
        ]);
        let expected = Annotations {
            protocol: Some(Protocol::Grpc),
            tls_secret: Some("cert".to_owned()),
            balancing: Some(Balancing::HeaderHash("x-user".to_owned())),
            client_address: ClientAddress::Pool,
            local_overflow: true,
        };
        assert_eq!((read, problems), (expected, vec![]));
    }

    #[test]
    fn unknown_names_and_values_are_reported_with_the_nearest_known() {
        let (found, problems) = read(&[
            ("portico.dev/protocoll", "grpc"),
            ("portico.dev/balancing", "roundrobin"),
            ("portico.dev/client-address", "pool"),
            ("portico.dev/protocol", "spdy"),
            ("portico.dev/tls-secret", "other/cert"),
        ]);
        assert_eq!(found, Annotations { client_address: ClientAddress::Pool, ..Annotations::default() });
        assert_eq!(
            problems,
            [
                "INVALID_ANNOTATION: portico.dev/balancing: \"roundrobin\" is none of least-request, random, round-robin, \
                 client-hash, header-hash:NAME, cookie-hash:NAME; did you mean round-robin?",
                "INVALID_ANNOTATION: portico.dev/protocol: \"spdy\" is none of http, http2, grpc, tls, tcp",
                "UNKNOWN_ANNOTATION: portico.dev/protocoll is not an annotation of a Service; did you mean \
                 portico.dev/protocol?",
                "INVALID_ANNOTATION: portico.dev/tls-secret: \"other/cert\" is not the name of a Secret in the Service's \
                 namespace",
            ]
        );
        let (found, problems) = read(&[("portico.dev/balancing", "header-hash: a b")]);
        assert_eq!((found.balancing, problems.len()), (None, 1));
    }
}
