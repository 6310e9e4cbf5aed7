//! Headers that strangers send: nothing of a connection passes, no client is forged, and every value stays one line.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use agent::{
    forward::headers::{self, Forwarded},
    report::record::ClientSource,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((selector, bytes)) = data.split_first() else { return Corpus::Reject };
    let trusted = selector % 2 == 0;
    let mut fields = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            fields.append(name, value);
        }
    }
    let peer = SocketAddr::from(([10, 0, 0, 1], 1));
    let trusts = |address: IpAddr| trusted && matches!(address, IpAddr::V4(address) if address.octets()[0] == 10);
    let client = headers::client(&fields, peer, ClientSource::Peer, trusts);
    assert!(trusted || client.address == peer, "a stranger has named the client");
    headers::cookie(&fields, "id");

    headers::strip_request(&mut fields, selector % 4 < 2);
    let peer = HeaderValue::from_static("10.0.0.1");
    headers::forward(&mut fields, Forwarded { peer: &peer, trusted, tls: false, authority: None });
    for name in ["keep-alive", "proxy-connection", "transfer-encoding", "http2-settings"] {
        assert!(!fields.contains_key(name), "{name} has passed");
    }
    assert!(fields.get("te").is_none_or(|value| value == "trailers"));
    assert!(fields.get("connection").is_none_or(|value| value == "upgrade"));
    let chain: Vec<_> = fields.get_all("x-forwarded-for").iter().collect();
    assert_eq!(chain.len(), 1);
    assert!(chain[0].as_bytes().ends_with(b"10.0.0.1"));
    assert!(trusted || chain[0] == peer);
    Corpus::Keep
});
