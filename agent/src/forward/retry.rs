//! When a request may be sent again.
//!
//! A connection that could not be made has carried nothing, so any request may go on to the next endpoint. A request that
//! was sent may have been acted on, even if no answer came: it is repeated only if acting twice is the same as acting once
//! (RFC 9110 section 9.2.2), and only when the connection was closed without a byte of an answer. That is what becomes of
//! an old connection that idled for too long (RFC 9112 section 9.3.1), and of a new one that a Pod which is ending had not
//! accepted yet. The same endpoint is asked again only after an old connection; after a new one it is the next one's turn.
//!
//! Over HTTP/2 an endpoint can say that it has not acted on a request, which may then be repeated whatever it asks for (RFC
//! 9113 section 8.7). A server that ends says so of requests that have crossed its GOAWAY.

use h2::Reason;
use http::Method;

use super::{body::RequestBody, h1::NoAnswer};
use crate::report::outcome::Outcome;

/// Whether a request that got no answer on a connection may be sent again, to the same endpoint or another.
pub fn may_repeat(method: &Method, body: &RequestBody, failure: &NoAnswer) -> bool {
    let closed = failure.silent && failure.outcome == Outcome::UpstreamClosed;
    closed && is_idempotent(method) && body.is_untouched()
}

/// As [`may_repeat`], of a request whose stream ended like this before an answer began. Its body has to be there still.
pub fn may_repeat_stream(method: &Method, error: &h2::Error) -> bool {
    let refused = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
    refused || (error.is_io() && is_idempotent(method))
}

/// Methods that may be repeated (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, silent: bool, expected: bool) {
        let failure = NoAnswer { outcome: Outcome::UpstreamClosed, silent };
        assert_eq!(may_repeat(&method, &RequestBody::empty(), &failure), expected, "{method}");
    }

    #[test]
    fn only_what_is_safe_is_repeated() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE] {
            check(method.clone(), true, true);
            check(method, false, false);
        }
        for method in [Method::POST, Method::PATCH, Method::from_bytes(b"PURGE").expect("a token")] {
            check(method, true, false);
        }
    }
}
