use http::HeaderValue;

use super::*;

const NOW: u64 = 1_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn account() -> Account {
    Account { namespace: "portico-system".into(), name: "portico-agent".into() }
}

fn jwt(payload: &str) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
}

fn read(values: &[&str]) -> Result<(Token, Option<String>), (Reason, Option<String>)> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
    }
    Token::of(&headers, &account(), now()).map_err(|(refusal, claimed)| (refusal.reason, claimed))
}

fn claim(aud: &str, sub: &str, rest: &str) -> String {
    format!("Bearer {}", jwt(&format!(r#"{{"aud":{aud},"sub":"{sub}"{rest}}}"#)))
}

const SUB: &str = "system:serviceaccount:portico-system:portico-agent";

#[test]
fn what_cannot_be_right_is_refused_without_asking() {
    let exp = format!(r#","exp":{}"#, NOW + 1);
    let over = format!(r#","exp":{NOW}"#);
    let cases: [(&[&str], Reason); 13] = [
        (&[], Reason::NoCredential),
        (&["Bearer"], Reason::Malformed),
        (&["Bearer "], Reason::Malformed),
        (&["Basic YTpi"], Reason::Malformed),
        (&["Bearer a.b"], Reason::Malformed),
        (&["Bearer a.*.c"], Reason::Malformed),
        (&["Bearer a.e30.c.d"], Reason::Malformed),
        (&[&claim("[]", SUB, &exp)], Reason::WrongAudience),
        (&[&claim(r#""api""#, SUB, &exp)], Reason::WrongAudience),
        (&[&claim(r#"["portico-discovery"]"#, "system:serviceaccount:a:b", &exp)], Reason::WrongAccount),
        (&[&claim(r#"["portico-discovery"]"#, SUB, "")], Reason::Malformed),
        (&[&claim(r#"["portico-discovery"]"#, SUB, &over)], Reason::Expired),
        (&["Bearer a.e30.c", "Bearer a.e30.c"], Reason::Malformed),
    ];
    for (values, expected) in cases {
        assert_eq!(read(values).map(drop).map_err(|(reason, _)| reason), Err(expected), "{values:?}");
    }
}

#[test]
fn a_token_is_taken_with_its_end_and_the_node_it_names_and_shows_nothing() {
    let rest = format!(r#","exp":{},"kubernetes.io":{{"node":{{"name":"n1","uid":"u"}}}}"#, NOW + 600);
    for scheme in ["Bearer ", "bearer  "] {
        let header = claim(r#"["other","portico-discovery"]"#, SUB, &rest).replacen("Bearer ", scheme, 1);
        let (token, claimed) = read(&[&header]).expect("is one");
        assert_eq!(token.expires(), now() + Duration::from_secs(600));
        assert_eq!(claimed.as_deref(), Some("n1"));
        assert!(header.ends_with(token.expose()) && !token.expose().contains(' '));
        assert!(!format!("{token:?}").contains(token.expose()));
    }
}

#[test]
fn a_refused_token_still_tells_the_node_it_claims() {
    let rest = format!(r#","exp":{NOW},"kubernetes.io":{{"node":{{"name":"n1"}}}}"#);
    let refused = read(&[&claim(r#"["portico-discovery"]"#, SUB, &rest)]).map(drop);
    assert_eq!(refused, Err((Reason::Expired, Some("n1".to_owned()))));
}
