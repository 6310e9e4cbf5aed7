//! What the sample backend saw of a connection, request or datagram, and the JSON that says so.
//!
//! Pure: nothing here reads a socket. The answer is written straight from the headers, without a tree in between,
//! because this backend also serves benchmarks.

use bytes::Bytes;
use http::HeaderMap;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The names the backend answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the Pod.
    pub pod: String,
    /// Namespace of the Pod.
    pub namespace: String,
    /// Name of the Node.
    pub node: String,
}

/// One connection, or one UDP exchange, below HTTP. Shared by all requests of the connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who answers.
    pub identity: Arc<Identity>,
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// The address that was dialled.
    pub local: SocketAddr,
    /// The source address a PROXY protocol header named.
    pub proxied: Option<IpAddr>,
}

/// How the backend was spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Protocol {
    /// HTTP/1.0.
    #[serde(rename = "http/1.0")]
    Http10,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http11,
    /// HTTP/2, always by prior knowledge.
    #[serde(rename = "http/2")]
    Http2,
    /// WebSocket, over HTTP/1.1 or HTTP/2.
    #[serde(rename = "websocket")]
    WebSocket,
    /// Bytes that are none of the above.
    #[serde(rename = "tcp")]
    Tcp,
    /// A datagram.
    #[serde(rename = "udp")]
    Udp,
}

/// Where the address of the client was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientSource {
    /// The leftmost address of X-Forwarded-For.
    XForwardedFor,
    /// A PROXY protocol header at the start of the connection.
    ProxyProtocol,
    /// The other end of the socket.
    Peer,
}

/// The answer. Fields that a protocol does not have are left out.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen<'a> {
    pod: &'a str,
    namespace: &'a str,
    node: &'a str,
    protocol: Protocol,
    #[serde(flatten)]
    request: Option<Request<'a>>,
    peer: SocketAddr,
    local: SocketAddr,
    client: IpAddr,
    client_source: ClientSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Fields<'a>>,
    /// Length of the body or of the datagram, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_bytes: Option<u64>,
    /// Trailers of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trailers: Option<Fields<'a>>,
    /// BLAKE3 of the body, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// The beginning of a datagram, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a str>,
}

#[derive(Debug, serde::Serialize)]
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    host: Option<&'a str>,
}

/// Header fields as `{name: [values]}`, in the order they came; bytes that are not UTF-8 become U+FFFD.
#[derive(Debug)]
pub struct Fields<'a>(pub &'a HeaderMap);

// === impl Connection ===

impl Connection {
    /// The address of the client as far as the backend can tell. What a sender says is believed: the purpose is to show
    /// what arrives here.
    pub fn client(&self, headers: Option<&HeaderMap>) -> (IpAddr, ClientSource) {
        if let Some(address) = headers.and_then(forwarded_for) {
            return (address, ClientSource::XForwardedFor);
        }
        match self.proxied {
            Some(address) => (address, ClientSource::ProxyProtocol),
            None => (self.peer.ip(), ClientSource::Peer),
        }
    }

    /// What was seen of a connection or datagram without a request.
    pub fn seen(&self, protocol: Protocol) -> Seen<'_> {
        self.describe(protocol, None, None)
    }

    /// What was seen of a request.
    pub fn seen_request<'a>(&'a self, protocol: Protocol, request: &'a http::request::Parts) -> Seen<'a> {
        // HTTP/2 carries the host in :authority, which is part of the URI here; so does an absolute-form target, which
        // outranks Host (RFC 9112 section 3.2.2).
        let host = match request.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
        };
        let line =
            Request { method: request.method.as_str(), path: request.uri.path(), query: request.uri.query(), host };
        self.describe(protocol, Some(line), Some(&request.headers))
    }

    fn describe<'a>(
        &'a self,
        protocol: Protocol,
        request: Option<Request<'a>>,
        headers: Option<&'a HeaderMap>,
    ) -> Seen<'a> {
        let (client, client_source) = self.client(headers);
        Seen {
            pod: &self.identity.pod,
            namespace: &self.identity.namespace,
            node: &self.identity.node,
            protocol,
            request,
            peer: self.peer,
            local: self.local,
            client,
            client_source,
            headers: headers.map(Fields),
            body_bytes: None,
            trailers: None,
            blake3: None,
            payload: None,
        }
    }
}

// === impl Protocol ===

impl Protocol {
    /// The protocol of a request that is neither gRPC nor a WebSocket.
    pub fn of(version: http::Version) -> Protocol {
        match version {
            http::Version::HTTP_2 => Protocol::Http2,
            http::Version::HTTP_11 => Protocol::Http11,
            _ => Protocol::Http10,
        }
    }
}

// === impl Seen ===

impl Seen<'_> {
    /// The answer as one line of JSON with a newline at its end.
    pub fn line(&self) -> Bytes {
        let mut line = Vec::with_capacity(1024);
        // Writing to a Vec does not fail, and no value in here refuses to be written: all map keys are strings.
        serde_json::to_writer(&mut line, self).expect("an answer is plain data");
        line.push(b'\n');
        line.into()
    }
}

// === impl Fields ===

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.keys_len()))?;
        for name in self.0.keys() {
            map.serialize_entry(name.as_str(), &Values(self.0, name))?;
        }
        map.end()
    }
}

struct Values<'a>(&'a HeaderMap, &'a http::HeaderName);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.get_all(self.1).iter().map(|value| String::from_utf8_lossy(value.as_bytes())))
    }
}

/// The leftmost element of X-Forwarded-For, if it is an address. Some senders add a port.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let first = headers.get("x-forwarded-for")?.to_str().ok()?.split(',').next()?.trim();
    let bare = first.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(first);
    bare.parse().ok().or_else(|| first.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(proxied: Option<&str>) -> Connection {
        let identity = Identity { pod: "web-0".into(), namespace: "shop".into(), node: "one".into() };
        Connection {
            identity: Arc::new(identity),
            peer: "127.0.0.9:4000".parse().unwrap(),
            local: "127.0.0.1:8080".parse().unwrap(),
            proxied: proxied.map(|address| address.parse().unwrap()),
        }
    }

    #[test]
    fn the_client_is_taken_from_the_outermost_source() {
        let cases: [(Option<&str>, Option<&str>, &str, ClientSource); 9] = [
            (None, None, "127.0.0.9", ClientSource::Peer),
            (None, Some("192.0.2.7"), "192.0.2.7", ClientSource::ProxyProtocol),
            (Some("192.0.2.1, 10.0.0.1"), Some("192.0.2.7"), "192.0.2.1", ClientSource::XForwardedFor),
            (Some(" 2001:db8::1 ,10.0.0.1"), None, "2001:db8::1", ClientSource::XForwardedFor),
            (Some("192.0.2.1:1234"), None, "192.0.2.1", ClientSource::XForwardedFor),
            (Some("[2001:db8::1]:1234"), None, "2001:db8::1", ClientSource::XForwardedFor),
            (Some("[2001:db8::1]"), None, "2001:db8::1", ClientSource::XForwardedFor),
            (Some("unknown, 192.0.2.1"), None, "127.0.0.9", ClientSource::Peer),
            (Some(""), None, "127.0.0.9", ClientSource::Peer),
        ];
        for (header, proxied, client, source) in cases {
            let mut headers = HeaderMap::new();
            if let Some(value) = header {
                headers.insert("x-forwarded-for", value.parse().unwrap());
            }
            let found = connection(proxied).client(Some(&headers));
            assert_eq!(found, (client.parse().unwrap(), source), "{header:?} {proxied:?}");
        }
    }

    #[test]
    fn a_request_is_described_with_all_values_of_each_header() {
        let (request, ()) = http::Request::builder()
            .method("POST")
            .uri("/a/b?c=d")
            .header("host", "web.shop")
            .header("x-many", "1")
            .header("x-many", "2")
            .header("x-odd", http::HeaderValue::from_bytes(b"\xff").unwrap())
            .body(())
            .unwrap()
            .into_parts();
        let connection = connection(None);
        let mut seen = connection.seen_request(Protocol::Http11, &request);
        seen.body_bytes = Some(3);
        let line = seen.line();
        assert_eq!(line.last(), Some(&b'\n'));
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "pod": "web-0", "namespace": "shop", "node": "one", "protocol": "http/1.1",
            "method": "POST", "path": "/a/b", "query": "c=d", "host": "web.shop",
            "peer": "127.0.0.9:4000", "local": "127.0.0.1:8080", "client": "127.0.0.9", "clientSource": "peer",
            "headers": {"host": ["web.shop"], "x-many": ["1", "2"], "x-odd": ["\u{fffd}"]},
            "bodyBytes": 3,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_authority_of_the_target_outranks_the_host_header() {
        let (request, ()) = http::Request::builder()
            .uri("http://a.example:81/")
            .header("host", "b.example")
            .body(())
            .unwrap()
            .into_parts();
        let line = connection(None).seen_request(Protocol::Http2, &request).line();
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["host"], "a.example:81");
    }

    #[test]
    fn what_has_no_request_has_no_request_fields() {
        let line = connection(Some("192.0.2.7")).seen(Protocol::Tcp).line();
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "pod": "web-0", "namespace": "shop", "node": "one", "protocol": "tcp", "peer": "127.0.0.9:4000",
            "local": "127.0.0.1:8080", "client": "192.0.2.7", "clientSource": "proxy-protocol",
        });
        assert_eq!(json, expected);
    }
}
