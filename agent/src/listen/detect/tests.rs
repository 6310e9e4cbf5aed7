//! First bytes in, protocol out.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};

use super::*;

/// The first flight of rustls for `name`, which may be an address.
fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("memory takes everything");
    }
    bytes
}

/// Cuts the first record of `bytes` into records of `size` bytes.
fn fragment(bytes: &[u8], size: usize) -> Vec<u8> {
    let cut = |part: &[u8]| [&[0x16, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    bytes[5..].chunks(size).flat_map(cut).collect()
}

fn named(name: &str) -> Hello {
    Hello::Complete(Some(name.into()))
}

/// A ClientHello whose extensions are `extensions`.
fn with_extensions(extensions: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| (bytes.len() as u16).to_be_bytes();
    let fields = [&[3, 3], &[7; 32][..], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let body = [&fields[..], &length(extensions), extensions].concat();
    let message = [&[1, 0], &length(&body)[..], &body].concat();
    [&[0x16, 3, 1], &length(&message)[..], &message].concat()
}

/// The server_name extension with one name of `kind`.
fn name_extension(kind: u8, name: &[u8]) -> Vec<u8> {
    let length = |more: usize| ((name.len() + more) as u16).to_be_bytes();
    [&[0, 0], &length(5)[..], &length(3), &[kind], &length(0), name].concat()
}

#[test]
fn the_name_of_a_real_client_is_found() {
    assert_eq!(client_hello(&hello("web.example.com")), named("web.example.com"));
    assert_eq!(client_hello(&hello("WEB.Example.com")), named("web.example.com"));
    assert_eq!(client_hello(&hello("127.0.0.1")), Hello::Complete(None));
}

#[test]
fn it_is_found_in_records_of_any_size() {
    let hello = hello("web.example.com");
    for size in [1, 2, 3, 4, 5, 100, 1_000, 16_000] {
        assert_eq!(client_hello(&fragment(&hello, size)), named("web.example.com"), "{size}");
    }
}

#[test]
fn every_part_of_a_hello_is_incomplete() {
    for bytes in [hello("web.example.com"), fragment(&hello("web.example.com"), 7)] {
        for end in 0..bytes.len() {
            assert_eq!(client_hello(&bytes[..end]), Hello::Incomplete, "{end}");
        }
    }
}

#[test]
fn what_follows_the_hello_is_not_looked_at() {
    let bytes = [&hello("web.example.com")[..], b"anything"].concat();
    assert_eq!(client_hello(&bytes), named("web.example.com"));
}

#[test]
fn odd_names_are_none() {
    let name = |kind, name: &[u8]| client_hello(&with_extensions(&name_extension(kind, name)));
    assert_eq!(name(0, b"web"), named("web"));
    assert_eq!(name(0, b"_a-b.example"), named("_a-b.example"));
    assert_eq!(name(0, &[b'a'; 253]), named(&"a".repeat(253)));
    for odd in [&b""[..], &[b'a'; 254], b"web\0.example", b"w b", b"\xff\xfe", "wéb".as_bytes(), b"../../etc"] {
        assert_eq!(name(0, odd), Hello::Complete(None), "{odd:?}");
    }
    assert_eq!(name(1, b"web"), Hello::Complete(None));
    assert_eq!(client_hello(&with_extensions(&[])), Hello::Complete(None));
    assert_eq!(client_hello(&with_extensions(&[0, 0, 0, 9, 0])), Hello::Complete(None));
}

#[test]
fn other_protocols_are_not_hellos() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x80\x2e\x01\x00\x02",
        b"\x16\x02\x00\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x16\x03\x01\xff\xff\x01\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
    ] {
        assert_eq!(client_hello(bytes), Hello::Other, "{bytes:?}");
    }
}

#[test]
fn openings_are_told_apart() {
    let check = |bytes: &[u8], expected: Option<Opening>| assert_eq!(opening(bytes), expected, "{bytes:?}");
    check(&hello("web"), Some(Opening::Tls));
    check(b"\x16", None);
    check(b"\x16\x16", Some(Opening::Other));
    check(b"GET / HTTP/1.1\r\n", Some(Opening::Http1));
    check(b"GET ", Some(Opening::Http1));
    check(b"GET", None);
    check(b"VERSION-CONTROL /", Some(Opening::Http1));
    check(b"PR", None);
    check(b"PROPFIND / HTTP/1.1", Some(Opening::Http1));
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None);
    check(HTTP2_PREFACE, Some(Opening::Http2));
    check(&[HTTP2_PREFACE, b"more"].concat(), Some(Opening::Http2));
    check(b"PRI * HTTP/1.1\r\n", Some(Opening::Http1));
    check(b"", None);
    check(b" GET /", Some(Opening::Other));
    check(b"*1\r\n$4\r\nPING\r\n", Some(Opening::Other));
    check(b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Opening::Other));
    check(&[b'A'; METHOD_LIMIT], Some(Opening::Other));
    check(&[b'A'; METHOD_LIMIT - 1], None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        client_hello(&bytes);
        client_hello(&with_extensions(&bytes));
        opening(&bytes);
    }

    #[test]
    fn more_bytes_never_change_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..60), end in 0usize..60) {
        let begin = &bytes[..end.min(bytes.len())];
        if let Some(known) = opening(begin) {
            prop_assert_eq!(opening(&bytes), Some(known));
        }
        let known = client_hello(begin);
        if known != Hello::Incomplete {
            prop_assert_eq!(client_hello(&bytes), known);
        }
    }
}
