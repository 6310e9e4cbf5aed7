//! A ClientHello as a client sends it, of which the data plane reads the server name before it passes everything on.
//!
//! What is read is a host name in lower case; more bytes never change an answer; and where rustls finds a name, it is
//! the same one.

#![no_main]

use agent::listen::detect::{Hello, client_hello};
use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

fuzz_target!(|data: &[u8]| {
    let hello = client_hello(data);
    if let Hello::Complete(Some(name)) = &hello {
        assert!(!name.is_empty() && name.len() < 254);
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
    }
    for end in [data.len() / 2, data.len().saturating_sub(1)] {
        let part = client_hello(&data[..end]);
        assert!(part == Hello::Incomplete || part == hello);
    }
    if let Some(name) = of_rustls(data) {
        assert_eq!(hello, Hello::Complete(Some(name.to_ascii_lowercase().into())));
    }
});

/// The name that rustls reads, if it takes the message for a good one.
fn of_rustls(mut data: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    while !data.is_empty() {
        acceptor.read_tls(&mut data).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return accepted.client_hello().server_name().map(str::to_owned);
        }
    }
    None
}
