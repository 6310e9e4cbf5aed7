//! TLS: terminated with the certificate in force, or passed through with its server name noted.

use std::{net::Shutdown, time::Duration};

use rustls::server::Acceptor;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::detect::{HELLO_LIMIT, HTTP2_PREFACE, Hello, Opening, client_hello, opening};
use crate::{local::Local, report::outcome::Outcome, table::Terminate};

/// Fatal alert `handshake_failure`, as a record (RFC 8446 section 6): what a server says that cannot negotiate.
const HANDSHAKE_FAILURE: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];

/// Answer to HTTP on a port for HTTPS. Clients that get TLS bytes instead show them to people.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 60\r\n\
    connection: close\r\n\
    \r\n\
    this port speaks TLS: use https instead of http in the URL.\n";

/// How long, and for how many bytes, we read what a client still sends after its last answer. Closing on unread bytes
/// would send RST, which can overtake the answer.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 << 10);

/// Terminates TLS with the certificate that is in force when the ClientHello has arrived. `server_name` gets the name in
/// it, also if the handshake fails.
///
/// # Errors
/// [`Outcome::ClientClosed`], [`Outcome::HeaderTimeout`], [`Outcome::TlsHandshake`], [`Outcome::NoCertificate`], or
/// [`Outcome::Malformed`] for plain HTTP. The client has been told as far as it can be.
pub async fn terminate(
    local: &Local,
    stream: TcpStream,
    server_name: &mut Option<Box<str>>,
    certificate: impl FnOnce() -> Terminate,
) -> Result<TlsStream<TcpStream>, Outcome> {
    let deadline = Instant::now() + local.limits.header_timeout;
    let timed_out = |_| Outcome::HeaderTimeout;
    let stream = timeout_at(deadline, expect_tls(stream)).await.map_err(timed_out)??;
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = timeout_at(deadline, hello).await.map_err(timed_out)?.map_err(|_| Outcome::TlsHandshake)?;
    *server_name = start.client_hello().server_name().map(Into::into);
    match certificate() {
        Terminate::With(config) => {
            let handshake = timeout_at(deadline, start.into_stream(config)).await.map_err(timed_out)?;
            handshake.map_err(|_| Outcome::TlsHandshake)
        }
        Terminate::Missing(_) | Terminate::No => {
            farewell(start.io, HANDSHAKE_FAILURE).await;
            Err(Outcome::NoCertificate)
        }
    }
}

/// The stream, if what it begins with may be TLS; nothing has been read from it then.
async fn expect_tls(mut stream: TcpStream) -> Result<TcpStream, Outcome> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(Outcome::ClientClosed),
        Ok(_) if first == [0x16] => return Ok(stream),
        Ok(_) => {}
    }
    let mut begin = Vec::with_capacity(HTTP2_PREFACE.len());
    loop {
        match opening(&begin) {
            Some(Opening::Http1 | Opening::Http2) => {
                farewell(stream, PLAIN_HTTP).await;
                return Err(Outcome::Malformed("the client sent an HTTP request to a TLS port"));
            }
            Some(Opening::Tls | Opening::Other) => return Err(Outcome::TlsHandshake),
            None => {}
        }
        match stream.read_buf(&mut begin).await {
            Ok(0) | Err(_) => return Err(Outcome::ClientClosed),
            Ok(_) => {}
        }
    }
}

/// Says the last thing, and closes so that it arrives.
async fn farewell(mut stream: TcpStream, words: &[u8]) {
    let (time, bytes) = LINGER;
    let rest = async {
        stream.write_all(words).await?;
        SockRef::from(&stream).shutdown(Shutdown::Write)?;
        let mut read = (&mut stream).take(bytes as u64);
        tokio::io::copy(&mut read, &mut tokio::io::sink()).await
    };
    // Whoever does not wait for the answer does not get it.
    let _ = timeout(time, rest).await;
}

/// Reads the ClientHello of a connection that is passed through: what was read, which is to be sent to the endpoint
/// first, and the server name. Whatever else the client sends, or that it sends nothing, is for the endpoint to judge.
pub async fn sniff(local: &Local, stream: &mut TcpStream) -> (Vec<u8>, Option<Box<str>>) {
    let deadline = Instant::now() + local.limits.header_timeout;
    let mut bytes = Vec::new();
    loop {
        match client_hello(&bytes) {
            Hello::Complete(server_name) => return (bytes, server_name),
            Hello::Incomplete if bytes.len() < HELLO_LIMIT => {}
            Hello::Incomplete | Hello::Other => return (bytes, None),
        }
        bytes.reserve(2 << 10);
        match timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            // The end, or the error, shows again while copying.
            Ok(Ok(0) | Err(_)) | Err(_) => return (bytes, None),
        }
    }
}
