use super::*;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&str, &str)| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a token");
        (name, HeaderValue::from_str(value).expect("visible"))
    };
    fields.iter().map(field).collect()
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn hop_by_hop_headers_go() {
    let mut request = headers(&[
        ("host", "a"),
        ("connection", "keep-alive, X-Secret"),
        ("connection", "x-other, host"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip;q=0.5, Trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
        ("x-secret", "1"),
        ("x-secret", "2"),
        ("x-other", "3"),
        ("accept", "*/*"),
    ]);
    strip_request(&mut request, false);
    assert_eq!(names(&request), ["accept", "host", "te"]);
    assert_eq!(request["te"], "trailers");
}

#[test]
fn an_upgrade_stays_when_it_is_one() {
    let mut request = headers(&[("connection", "Upgrade, keep-alive"), ("upgrade", "websocket"), ("te", "gzip")]);
    strip_request(&mut request, true);
    assert_eq!(names(&request), ["connection", "upgrade"]);
    assert_eq!(request["connection"], "upgrade");
}

/// Trusted are 10.0.0.0/8 and fd00::/8.
fn resolve(peer: &str, chain: &[&str]) -> (String, bool) {
    let fields: Vec<(&str, &str)> = chain.iter().map(|value| ("x-forwarded-for", *value)).collect();
    let trusts = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets()[0] == 10,
        IpAddr::V6(address) => address.octets()[0] == 0xfd,
    };
    let peer = SocketAddr::new(peer.parse().expect("an address"), 1);
    let client = client(&headers(&fields), peer, ClientSource::Peer, trusts);
    (client.address.ip().to_string(), client.source == ClientSource::XForwardedFor)
}

fn check(peer: &str, chain: &[&str], expected: &str, believed: bool) {
    assert_eq!(resolve(peer, chain), (expected.to_owned(), believed), "{chain:?} from {peer}");
}

#[test]
fn the_client_is_the_first_stranger_from_the_right() {
    check("10.0.0.1", &[], "10.0.0.1", false);
    check("10.0.0.1", &["1.2.3.4"], "1.2.3.4", true);
    check("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"], "1.2.3.4", true);
    check("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2,10.0.0.3"], "1.2.3.4", true);
    check("10.0.0.1", &["10.0.0.9, 10.0.0.2"], "10.0.0.9", true);
    check("fd00::1", &["[2001:db8::1]:443"], "2001:db8::1", true);
    check("fd00::1", &["[2001:db8::2]"], "2001:db8::2", true);
    check("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4", true);
    check("10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4", true);
}

#[test]
fn what_strangers_say_and_what_is_malformed_is_not_believed() {
    check("9.9.9.9", &["1.2.3.4"], "9.9.9.9", false);
    for chain in ["unknown", "1.2.3.4, unknown", "", "1.2.3.4,", "1.2.3", "_hidden", "10.0.0.2,,10.0.0.3"] {
        check("10.0.0.1", &[chain], "10.0.0.1", false);
    }
    let long = vec!["10.0.0.2"; 40].join(", ");
    check("10.0.0.1", &[&long], "10.0.0.1", false);
    let most = format!("1.2.3.4, {}", vec!["10.0.0.2"; 31].join(", "));
    check("10.0.0.1", &[&most], "1.2.3.4", true);
}

#[test]
fn a_refused_chain_is_noted() {
    let peer = SocketAddr::from(([9, 9, 9, 9], 1));
    let with = |name| client(&headers(&[(name, "1.2.3.4")]), peer, ClientSource::Peer, |_| false).untrusted_chain;
    assert!(with("x-forwarded-for") && with("forwarded") && !with("x-other"));
}

fn forwarded(trusted: bool, fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = headers(fields);
    let peer = HeaderValue::from_static("9.9.9.9");
    let authority = HeaderValue::from_static("web.shop");
    forward(&mut headers, Forwarded { peer: &peer, trusted, tls: true, authority: Some(&authority) });
    headers
}

#[test]
fn forwarding_headers_of_strangers_are_replaced() {
    let headers = forwarded(
        false,
        &[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "ftp"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
        ],
    );
    assert_eq!(names(&headers), ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
    assert_eq!(headers["x-forwarded-for"], "9.9.9.9");
    assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    assert_eq!(
        (&headers["x-forwarded-proto"], &headers["x-forwarded-host"]),
        (&"https".parse().unwrap(), &"web.shop".parse().unwrap())
    );
}

#[test]
fn those_of_trusted_peers_are_continued() {
    let headers = forwarded(
        true,
        &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("x-forwarded-proto", "http")],
    );
    assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 9.9.9.9");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "web.shop");
}

#[test]
fn cookies_are_found_by_their_whole_name() {
    let headers = headers(&[("cookie", "xid=1; id=2;id2=3"), ("cookie", "last=4")]);
    assert_eq!(cookie(&headers, "id"), Some(&b"2"[..]));
    assert_eq!(cookie(&headers, "last"), Some(&b"4"[..]));
    assert_eq!(cookie(&headers, "i"), None);
}
