//! The `authorization` header of whoever connects to the discovery port.
//!
//! Reading it never fails in any other way than by refusing; what is taken is not over, and neither it nor what is told to
//! the sender shows the token.

#![no_main]

use std::time::{Duration, SystemTime};

use gateway::identity::{Account, token::Token};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    let account = Account { namespace: "portico-system".into(), name: "portico-agent".into() };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    if let Ok((token, _)) = Token::of(&headers, &account, now) {
        assert!(token.expires() > now);
        assert!(data.ends_with(token.expose().as_bytes()) || data.ends_with(b" "));
        assert!(!format!("{token:?}").contains(token.expose()));
    }
});
