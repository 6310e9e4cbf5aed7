//! The answers that Portico makes itself. Each says what went wrong three times: to programs in the status, to proxies in
//! Proxy-Status (RFC 9209), and to people in one line.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::report::outcome::Outcome;

/// RFC 9209.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Status, headers and body for a request that ended with `outcome`. A gRPC call gets the form that its library
/// understands: status 200, and the failure in headers without a body.
pub fn answer(outcome: Outcome, grpc: bool) -> (StatusCode, HeaderMap, Bytes) {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(PROXY_STATUS, proxy_status(outcome));
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(outcome.grpc_status())));
        headers.insert(GRPC_MESSAGE, grpc_message(outcome.hint()));
        return (StatusCode::OK, headers, Bytes::new());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let body = Bytes::from(format!("{}\n", outcome.hint()));
    (StatusCode::from_u16(outcome.status()).unwrap_or(StatusCode::BAD_GATEWAY), headers, body)
}

/// `portico; error=TYPE; details="REASON"`.
fn proxy_status(outcome: Outcome) -> HeaderValue {
    let value = format!("portico; error={}; details=\"{}\"", outcome.proxy_error(), outcome.reason());
    HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static("portico"))
}

/// Percent-encoded as the gRPC protocol has it: printable ASCII stays, except the percent sign.
fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).unwrap_or_else(|_| HeaderValue::from_static("failed"))
}

/// grpc-status in headers or trailers.
pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    parse_status(headers.get(GRPC_STATUS)?.as_bytes())
}

/// The value of grpc-status.
pub fn parse_status(value: &[u8]) -> Option<u8> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_programs_and_proxies_are_told() {
        let (status, headers, body) = answer(Outcome::NoEndpoints, false);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(headers[PROXY_STATUS], "portico; error=destination_unavailable; details=\"NO_ENDPOINTS\"");
        assert!(body.ends_with(b"\n") && body.starts_with(b"the Service has no ready endpoint"));
    }

    #[test]
    fn grpc_calls_get_a_grpc_status() {
        let (status, headers, body) = answer(Outcome::UpstreamTimeout, true);
        assert_eq!((status, grpc_status(&headers)), (StatusCode::OK, Some(4)));
        assert!(body.is_empty() && headers.contains_key(PROXY_STATUS));
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(grpc_message("50% of ä\n"), "50%25 of %C3%A4%0A");
    }
}
