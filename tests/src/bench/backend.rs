//! The servers behind the proxies: as little work as an answer takes, on one thread.
//!
//! They share a processor with the clients and are not measured, but what they spend is missing elsewhere. They do
//! check that a proxy of HTTP passed the client's address on, because a proxy that does not has done less work.

use std::{convert::Infallible, rc::Rc};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::{JoinSet, LocalSet},
};

use super::scenario::{self, DOWNLOAD, MESSAGE, Scenario};

/// Unary gRPC calls, answered with their own message.
mod grpc;

/// What the backends say once all of them listen.
pub const READY: &str = "backends are ready";

/// Listens for every scenario at every backend address, says so on standard output, and serves until killed.
///
/// # Errors
///
/// Fails if an address is taken or a listener breaks.
pub async fn serve_all() -> Result<Infallible> {
    let local = LocalSet::new();
    let mut servers = JoinSet::new();
    for scenario in Scenario::ALL {
        for address in scenario.backends() {
            if scenario == Scenario::Udp {
                let socket = UdpSocket::bind(address)
                    .await
                    .with_context(|| format!("listen on udp {address}: is another comparison running?"))?;
                servers.spawn_local_on(serve_udp(socket), &local);
            } else {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("listen on tcp {address}: is another comparison running?"))?;
                servers.spawn_local_on(serve_tcp(scenario, listener), &local);
            }
        }
    }
    println!("{READY}");
    let ended = local.run_until(servers.join_next()).await.context("there are no backends")?;
    ended.context("a backend panicked")?
}

/// Serves one scenario over TCP on one listener.
///
/// # Errors
///
/// Fails if accepting does.
///
/// # Panics
///
/// Panics outside a [`LocalSet`].
pub async fn serve_tcp(scenario: Scenario, listener: TcpListener) -> Result<Infallible> {
    let answer: Rc<[u8]> = match scenario {
        Scenario::Http => http_answer().into(),
        Scenario::Download => scenario::download().into(),
        Scenario::Grpc | Scenario::Tcp | Scenario::Udp => Rc::new([]),
    };
    loop {
        let (stream, _) = listener.accept().await.with_context(|| format!("accept for {scenario:?}"))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let answer = answer.clone();
        // How a connection ends is the client's business; it notices a missing answer.
        tokio::task::spawn_local(async move {
            match scenario {
                Scenario::Http => http(stream, &answer).await,
                Scenario::Grpc => grpc::serve(stream).await,
                Scenario::Tcp | Scenario::Udp => echo(stream).await,
                Scenario::Download => download(stream, &answer).await,
            }
        });
    }
}

/// Sends every datagram back to where it came from.
///
/// # Errors
///
/// Fails if the socket does, other than by refusals that belong to single clients.
pub async fn serve_udp(socket: UdpSocket) -> Result<Infallible> {
    let mut datagram = [0; 2048];
    loop {
        match socket.recv_from(&mut datagram).await {
            // A client that is gone already shows as an error of this or a later call, and is nobody's fault.
            Ok((length, from)) => drop(socket.send_to(&datagram[..length], from).await),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("receive for udp"),
        }
    }
}

fn http_answer() -> Vec<u8> {
    let body = scenario::http_body();
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend(body);
    answer
}

/// Answers each request head; requests have no bodies here.
async fn http(mut stream: TcpStream, answer: &[u8]) {
    const REFUSAL: &[u8] = b"HTTP/1.1 500 No X-Forwarded-For\r\ncontent-length: 0\r\n\r\n";
    let mut buffer = [0; 8192];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(length) => filled += length,
        }
        let mut begin = 0;
        while let Some(length) = head_length(&buffer[begin..filled]) {
            let known = forwarded_for(&buffer[begin..begin + length]).is_some_and(scenario::names_client);
            if stream.write_all(if known { answer } else { REFUSAL }).await.is_err() {
                return;
            }
            begin += length;
        }
        buffer.copy_within(begin..filled, 0);
        filled -= begin;
    }
}

/// The length of the first head in `bytes`, with the empty line that ends it.
pub(super) fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of the first header `name`, which is in lower case, from a complete head.
pub(super) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

fn forwarded_for(head: &[u8]) -> Option<&[u8]> {
    header(head, "x-forwarded-for")
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) if stream.write_all(&buffer[..length]).await.is_err() => return,
            Ok(_) => {}
        }
    }
}

async fn download(mut stream: TcpStream, answer: &[u8]) {
    debug_assert_eq!(answer.len(), DOWNLOAD);
    let mut request = [0; MESSAGE];
    while stream.read_exact(&mut request).await.is_ok() {
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_whatever_their_case() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\nX-Forwarded-For:  127.0.9.1 \r\n\r\n";
        assert_eq!(forwarded_for(head), Some(&b"127.0.9.1"[..]));
        assert_eq!(header(head, "host"), Some(&b"a"[..]));
        assert_eq!(header(head, "forwarded"), None);
        assert_eq!(head_length(head), Some(head.len()));
        assert_eq!(head_length(&head[..head.len() - 1]), None);
    }
}
