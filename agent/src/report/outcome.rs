//! How a connection or a request ended: one closed set of reasons, from which log, metric, span and answer all derive.

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Both sides were done.
    Complete,
    /// The client left before its answer was complete.
    ClientClosed,
    /// The client sent something that is not the protocol.
    Malformed(&'static str),
    /// The client took too long to send the head of a request.
    HeaderTimeout,
    /// The head of a request is too large.
    HeaderTooLarge,
    /// Nothing happened for the idle time.
    IdleTimeout,
    /// No Service has this name or address.
    UnknownName,
    /// The Service exists, but has no port for this.
    UnknownPort,
    /// The authority of the request does not belong to the certificate of the connection.
    Misdirected,
    /// TLS could not be agreed on with the client.
    TlsHandshake,
    /// The certificate that the Service names is not there.
    NoCertificate,
    /// No endpoint in the cluster is ready or draining (S5.1 reject).
    NoEndpoints,
    /// Endpoints exist, but the policy allows none here (S5.1 drop).
    NoLocalEndpoints,
    /// The client is outside loadBalancerSourceRanges (S7).
    SourceRange,
    /// The endpoint refused the connection.
    ConnectRefused,
    /// The endpoint did not answer the connection attempt in time.
    ConnectTimeout,
    /// The connection attempt failed in another way.
    ConnectFailed,
    /// The endpoint closed or reset the connection before its answer was complete.
    UpstreamClosed,
    /// The endpoint answered something that is not the protocol.
    UpstreamProtocol,
    /// The endpoint took too long to answer.
    UpstreamTimeout,
    /// A limit of this node was reached.
    Overload,
    /// The drain deadline passed.
    Drained,
    /// The task was dropped before it could say how it ended.
    Dropped,
}

/// Whose doing an outcome is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Side {
    Nobody,
    Downstream,
    Upstream,
    Internal,
}

// === impl Outcome ===

impl Outcome {
    /// The word in Proxy-Status details, access log, span and metric.
    pub fn reason(self) -> &'static str {
        match self {
            Outcome::Complete => "COMPLETE",
            Outcome::ClientClosed => "CLIENT_CLOSED",
            Outcome::Malformed(_) => "MALFORMED",
            Outcome::HeaderTimeout => "HEADER_TIMEOUT",
            Outcome::HeaderTooLarge => "HEADER_TOO_LARGE",
            Outcome::IdleTimeout => "IDLE_TIMEOUT",
            Outcome::UnknownName => "UNKNOWN_NAME",
            Outcome::UnknownPort => "UNKNOWN_PORT",
            Outcome::Misdirected => "MISDIRECTED",
            Outcome::TlsHandshake => "TLS_HANDSHAKE",
            Outcome::NoCertificate => "NO_CERTIFICATE",
            Outcome::NoEndpoints => "NO_ENDPOINTS",
            Outcome::NoLocalEndpoints => "NO_LOCAL_ENDPOINTS",
            Outcome::SourceRange => "SOURCE_RANGE",
            Outcome::ConnectRefused => "CONNECT_REFUSED",
            Outcome::ConnectTimeout => "CONNECT_TIMEOUT",
            Outcome::ConnectFailed => "CONNECT_FAILED",
            Outcome::UpstreamClosed => "UPSTREAM_CLOSED",
            Outcome::UpstreamProtocol => "UPSTREAM_PROTOCOL",
            Outcome::UpstreamTimeout => "UPSTREAM_TIMEOUT",
            Outcome::Overload => "OVERLOAD",
            Outcome::Drained => "DRAINED",
            Outcome::Dropped => "DROPPED",
        }
    }

    /// The `error.type` of the OpenTelemetry conventions; `None` on success.
    pub fn error_type(self) -> Option<&'static str> {
        Some(match self {
            Outcome::Complete | Outcome::IdleTimeout => return None,
            Outcome::ClientClosed => "client_closed",
            Outcome::Malformed(_) | Outcome::HeaderTooLarge | Outcome::UpstreamProtocol => "protocol_error",
            Outcome::HeaderTimeout | Outcome::UpstreamTimeout => "timeout",
            Outcome::UnknownName | Outcome::UnknownPort | Outcome::Misdirected | Outcome::SourceRange => "no_route",
            Outcome::TlsHandshake | Outcome::NoCertificate => "tls_handshake_failed",
            Outcome::NoEndpoints | Outcome::NoLocalEndpoints => "no_healthy_endpoint",
            Outcome::ConnectRefused => "connection_refused",
            Outcome::ConnectTimeout => "connect_timeout",
            Outcome::UpstreamClosed => "connection_reset",
            Outcome::Overload => "overload",
            Outcome::ConnectFailed | Outcome::Drained | Outcome::Dropped => "_OTHER",
        })
    }

    /// The HTTP status of the answer that Portico makes itself.
    pub fn status(self) -> u16 {
        match self {
            Outcome::Complete => 200,
            Outcome::Malformed(_) => 400,
            Outcome::SourceRange => 403,
            Outcome::UnknownName | Outcome::UnknownPort => 404,
            Outcome::HeaderTimeout | Outcome::IdleTimeout => 408,
            Outcome::Misdirected => 421,
            Outcome::HeaderTooLarge => 431,
            // nginx's status for a client that left; it reaches logs only.
            Outcome::ClientClosed => 499,
            Outcome::ConnectRefused | Outcome::ConnectFailed | Outcome::UpstreamClosed | Outcome::UpstreamProtocol => {
                502
            }
            Outcome::NoEndpoints
            | Outcome::NoLocalEndpoints
            | Outcome::NoCertificate
            | Outcome::TlsHandshake
            | Outcome::Overload
            | Outcome::Drained
            | Outcome::Dropped => 503,
            Outcome::ConnectTimeout | Outcome::UpstreamTimeout => 504,
        }
    }

    /// The grpc-status that belongs to [`Outcome::status`], by the gRPC mapping of HTTP statuses.
    pub fn grpc_status(self) -> u8 {
        match self.status() {
            200 => 0,
            400 | 431 => 13,
            403 => 7,
            404 => 12,
            408 | 504 => 4,
            499 => 1,
            _ => 14,
        }
    }

    /// The registered error type of RFC 9209.
    pub fn proxy_error(self) -> &'static str {
        match self {
            Outcome::Complete => "",
            Outcome::ClientClosed | Outcome::IdleTimeout | Outcome::Dropped => "connection_terminated",
            Outcome::Malformed(_) => "http_request_error",
            Outcome::HeaderTimeout | Outcome::HeaderTooLarge | Outcome::Misdirected => "http_request_error",
            Outcome::UnknownName | Outcome::UnknownPort => "destination_not_found",
            Outcome::TlsHandshake | Outcome::NoCertificate => "tls_certificate_error",
            Outcome::NoEndpoints | Outcome::NoLocalEndpoints => "destination_unavailable",
            Outcome::SourceRange => "http_request_denied",
            Outcome::ConnectRefused => "connection_refused",
            Outcome::ConnectTimeout => "connection_timeout",
            Outcome::ConnectFailed => "destination_ip_unroutable",
            Outcome::UpstreamClosed => "connection_terminated",
            Outcome::UpstreamProtocol => "http_protocol_error",
            Outcome::UpstreamTimeout => "http_response_timeout",
            Outcome::Overload => "proxy_internal_error",
            Outcome::Drained => "proxy_internal_response",
        }
    }

    /// One line for people: what to check.
    pub fn hint(self) -> &'static str {
        match self {
            Outcome::Complete => "nothing is wrong",
            Outcome::ClientClosed => "the client closed the connection before the answer was complete",
            Outcome::Malformed(what) => what,
            Outcome::HeaderTimeout => "the head of the request took too long; check the client or the network to it",
            Outcome::HeaderTooLarge => "the head of the request is too large; check cookies and tokens",
            Outcome::IdleTimeout => "nothing was sent for the idle time",
            Outcome::UnknownName => "no Service has this name; check the Host header against `portico get services -A`",
            Outcome::UnknownPort => {
                "the Service has no HTTP port of this number; set appProtocol: http on it, or check the port"
            }
            Outcome::Misdirected => "the authority does not match the certificate of this connection; connect anew",
            Outcome::TlsHandshake => "the TLS handshake failed; check server name and protocol versions of the client",
            Outcome::NoCertificate => {
                "the Secret named by portico.dev/tls-secret is missing or invalid; check `portico get services`"
            }
            Outcome::NoEndpoints => {
                "the Service has no ready endpoint; check selector and readiness with `portico get endpoints`"
            }
            Outcome::NoLocalEndpoints => {
                "the traffic policy is Local and this node has no ready endpoint; use another node or policy Cluster"
            }
            Outcome::SourceRange => "the client address is outside loadBalancerSourceRanges of the Service",
            Outcome::ConnectRefused => {
                "the endpoint refused the connection; check that the container listens on the target port"
            }
            Outcome::ConnectTimeout => {
                "the endpoint did not accept the connection in time; check the Pod network and its load"
            }
            Outcome::ConnectFailed => "the endpoint cannot be reached; check the route to the Pod network",
            Outcome::UpstreamClosed => {
                "the endpoint closed the connection before its answer was complete; check the Pod's log"
            }
            Outcome::UpstreamProtocol => {
                "the endpoint answered something that is not HTTP; check appProtocol and target port"
            }
            Outcome::UpstreamTimeout => "the endpoint did not answer in time; check its load",
            Outcome::Overload => "this node is at its connection limit; check `--max-connections`",
            Outcome::Drained => "this node is shutting down; connect again",
            Outcome::Dropped => "the connection was given up inside the proxy",
        }
    }

    /// Whose doing it is.
    pub fn side(self) -> Side {
        match self {
            Outcome::Complete | Outcome::IdleTimeout => Side::Nobody,
            Outcome::ClientClosed
            | Outcome::Malformed(_)
            | Outcome::HeaderTimeout
            | Outcome::HeaderTooLarge
            | Outcome::UnknownName
            | Outcome::UnknownPort
            | Outcome::Misdirected
            | Outcome::TlsHandshake
            | Outcome::SourceRange => Side::Downstream,
            Outcome::ConnectRefused
            | Outcome::ConnectTimeout
            | Outcome::ConnectFailed
            | Outcome::UpstreamClosed
            | Outcome::UpstreamProtocol
            | Outcome::UpstreamTimeout => Side::Upstream,
            Outcome::NoCertificate
            | Outcome::NoEndpoints
            | Outcome::NoLocalEndpoints
            | Outcome::Overload
            | Outcome::Drained
            | Outcome::Dropped => Side::Internal,
        }
    }

    /// Whether nothing of the request can have reached an endpoint, so that any request may go to the next one: a
    /// connect that failed has sent no byte (S16.6).
    pub fn is_before_send(self) -> bool {
        matches!(self, Outcome::ConnectRefused | Outcome::ConnectTimeout | Outcome::ConnectFailed)
    }
}
