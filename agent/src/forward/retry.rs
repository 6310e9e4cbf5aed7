//! When a request may be sent again.
//!
//! A connection that could not be made has carried nothing, so any request may go on to the next endpoint. A request that
//! was sent may have been acted on, even if no answer came: it is repeated only if acting twice is the same as acting once,
//! and only when an old connection was closed under it, which is what an endpoint does that never read it (RFC 9110
//! section 9.2.2, RFC 9112 section 9.3.1).

use http::Method;

use super::{body::RequestBody, h1::NoAnswer};
use crate::report::outcome::Outcome;

/// Whether a request that got no answer on a connection may be sent again, to the same endpoint or another.
pub fn may_repeat(method: &Method, body: &RequestBody, reused: bool, failure: &NoAnswer) -> bool {
    let closed = failure.silent && failure.outcome == Outcome::UpstreamClosed;
    reused && closed && is_idempotent(method) && body.is_untouched()
}

/// Methods that may be repeated (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, reused: bool, silent: bool, expected: bool) {
        let failure = NoAnswer { outcome: Outcome::UpstreamClosed, silent };
        assert_eq!(may_repeat(&method, &RequestBody::empty(), reused, &failure), expected, "{method}");
    }

    #[test]
    fn only_what_is_safe_is_repeated() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE] {
            check(method.clone(), true, true, true);
            check(method.clone(), false, true, false);
            check(method, true, false, false);
        }
        for method in [Method::POST, Method::PATCH, Method::from_bytes(b"PURGE").expect("a token")] {
            check(method, true, true, false);
        }
    }
}
