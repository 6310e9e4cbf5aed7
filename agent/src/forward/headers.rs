//! Headers on their way through: what belongs to one connection goes, what tells of the client comes. Pure.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{http1::framing::options, report::record::ClientSource};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Elements of X-Forwarded-For that are looked at. A longer chain is not believed.
const CHAIN: usize = 32;

/// Who the client of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address; the port is 0 where only the address is known.
    pub address: SocketAddr,
    /// How it became known.
    pub source: ClientSource,
    /// A forwarding header was there but not believed.
    pub untrusted_chain: bool,
}

/// Removes from a request what concerns only the connection it came on. `upgrading` keeps the protocol that is asked
/// for.
pub fn strip_request(headers: &mut HeaderMap, upgrading: bool) {
    // What gRPC says with every call is what it would be replaced with.
    let passes =
        |(name, value): (&HeaderName, &HeaderValue)| !is_hop(name) || (*name == header::TE && value == "trailers");
    if headers.iter().all(passes) {
        return;
    }
    let trailers =
        headers.get_all(header::TE).iter().flat_map(options).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    let upgrade = headers.remove(header::UPGRADE).filter(|_| upgrading);
    strip_connection(headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn is_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "te" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" | "http2-settings"
    )
}

fn strip_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(options)
        .filter(|option| !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close"))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        // Without a Host the request would not be one, and the length is what the body is framed by.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    // Most requests have one of them at most.
    while let Some(name) = headers.keys().find(|name| is_hop(name) || named.contains(name)).cloned() {
        headers.remove(name);
    }
}

/// Who the client is, given that the connection comes from `peer`. If that is trusted, X-Forwarded-For is read from the
/// right, past other trusted proxies, to the first address that is not; if all are trusted, it is the leftmost. A chain
/// that is malformed or too long is not believed.
pub fn client(headers: &HeaderMap, peer: SocketAddr, source: ClientSource, trusts: impl Fn(IpAddr) -> bool) -> Client {
    let connection = Client { address: peer, source, untrusted_chain: false };
    if !headers.contains_key(X_FORWARDED_FOR) && !headers.contains_key(header::FORWARDED) {
        return connection;
    }
    if !trusts(peer.ip()) {
        return Client { untrusted_chain: true, ..connection };
    }
    let chain = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let mut elements = chain.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    let mut found = None;
    for _ in 0..CHAIN {
        let Some(element) = elements.next() else { break };
        match address(element.trim_ascii()) {
            Some(address) => found = Some(address),
            None => return connection,
        }
        if found.is_some_and(|address| !trusts(address.ip())) {
            break;
        }
    }
    match found {
        // A chain of trusted proxies that goes on beyond what is looked at.
        Some(address) if trusts(address.ip()) && elements.next().is_some() => connection,
        Some(address) => Client { address, source: ClientSource::XForwardedFor, ..connection },
        None => connection,
    }
}

/// An address, with a port or without, an IPv6 one in brackets or not.
fn address(element: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(element).ok()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address.to_canonical(), 0));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let bracketed = text.strip_prefix('[')?.strip_suffix(']')?;
    bracketed.parse().ok().map(|address| SocketAddr::new(IpAddr::V6(address), 0))
}

/// What a request tells of its client.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// The address at the other end of the connection.
    pub peer: &'a HeaderValue,
    /// That peer is believed: what it says stays.
    pub trusted: bool,
    /// TLS was terminated here.
    pub tls: bool,
    /// The authority that the client asked for.
    pub authority: Option<&'a HeaderValue>,
}

/// Writes the forwarding headers: appended to those of a trusted peer, instead of those of a stranger.
pub fn forward(headers: &mut HeaderMap, forwarded: Forwarded<'_>) {
    let Forwarded { peer, trusted, tls, authority } = forwarded;
    let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
    if trusted {
        append(headers, peer);
        headers.entry(X_FORWARDED_PROTO).or_insert(proto);
        if let Some(authority) = authority {
            headers.entry(X_FORWARDED_HOST).or_insert_with(|| authority.clone());
        }
        return;
    }
    headers.insert(X_FORWARDED_FOR, peer.clone());
    headers.insert(X_FORWARDED_PROTO, proto);
    match authority {
        Some(authority) => headers.insert(X_FORWARDED_HOST, authority.clone()),
        None => headers.remove(X_FORWARDED_HOST),
    };
    for name in [header::FORWARDED, X_FORWARDED_PORT, X_REAL_IP] {
        headers.remove(name);
    }
}

/// Appends to X-Forwarded-For, as one line.
fn append(headers: &mut HeaderMap, peer: &HeaderValue) {
    let mut chain: Vec<u8> = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.as_bytes());
    // Joining valid values gives a valid value.
    headers.insert(X_FORWARDED_FOR, HeaderValue::from_maybe_shared(chain).unwrap_or_else(|_| peer.clone()));
}

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .next()
}

#[cfg(test)]
#[path = "headers/tests.rs"]
mod tests;
