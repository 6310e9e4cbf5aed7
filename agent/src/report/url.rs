//! What of a URL may be shown: signatures and tokens in a query are not.

use http::uri::Authority;

/// Keys whose values grant access, in lower case. The first four are those of the semantic conventions for `url.query`.
const SECRET: [&str; 10] = [
    "awsaccesskeyid",
    "signature",
    "sig",
    "x-goog-signature",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-credential",
    "access_token",
    "token",
];
const REDACTED: &str = "REDACTED";

/// Appends `query` to `out`, with the values of secret keys replaced.
pub fn push_query(query: &str, out: &mut String) {
    for (at, pair) in query.split('&').enumerate() {
        if at > 0 {
            out.push('&');
        }
        match pair.split_once('=') {
            Some((key, value)) if !value.is_empty() && SECRET.iter().any(|secret| key.eq_ignore_ascii_case(secret)) => {
                out.push_str(key);
                out.push('=');
                out.push_str(REDACTED);
            }
            _ => out.push_str(pair),
        }
    }
}

/// Host and port of an authority; the port of the scheme if it names none. Brackets of an IPv6 address go, as
/// `server.address` has none. `None` if it is no authority at all.
pub fn server(authority: &[u8], tls: bool) -> Option<(String, u16)> {
    let authority = Authority::try_from(authority).ok()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), authority.port_u16().unwrap_or(if tls { 443 } else { 80 })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_a_query_are_not_shown() {
        for (query, expected) in [
            ("", ""),
            ("a=1&b=2", "a=1&b=2"),
            ("sig=abc&x=1", "sig=REDACTED&x=1"),
            ("x=1&X-Amz-Signature=abc", "x=1&X-Amz-Signature=REDACTED"),
            ("SIGNATURE=a%3Db=c&&y", "SIGNATURE=REDACTED&&y"),
            ("sig&sig=", "sig&sig="),
            ("design=1", "design=1"),
        ] {
            let mut shown = String::new();
            push_query(query, &mut shown);
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn an_authority_names_a_server() {
        let server = |text: &str, tls| server(text.as_bytes(), tls);
        assert_eq!(server("web.shop", false), Some(("web.shop".into(), 80)));
        assert_eq!(server("web.shop", true), Some(("web.shop".into(), 443)));
        assert_eq!(server("web.shop:8080", true), Some(("web.shop".into(), 8080)));
        assert_eq!(server("[2001:db8::1]:81", false), Some(("2001:db8::1".into(), 81)));
        assert_eq!(server("not a host", false), None);
        assert_eq!(server("", false), None);
    }
}
