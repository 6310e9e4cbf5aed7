//! Requests and answers over HTTP/1.1, by hand: the client must cost less than what it measures.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Tally;
use crate::bench::backend::{head_length, header};

const REQUEST: &[u8] = b"GET /bench HTTP/1.1\r\nhost: bench.default\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";

/// Sends requests on one connection until told to stop; every body must be `expected`.
pub async fn drive(mut stream: TcpStream, expected: &[u8], tally: &Tally) -> Result<()> {
    let mut buffer = [0; 8192];
    // A head that was looked through once need not be again; it changes with the Date header only.
    let mut known = Vec::new();
    loop {
        let begin = Instant::now();
        stream.write_all(REQUEST).await.context("send a request")?;
        let mut filled = 0;
        loop {
            let length = stream.read(&mut buffer[filled..]).await.context("read an answer")?;
            ensure!(length > 0, "the connection was closed instead of kept");
            filled += length;
            let bytes = &buffer[..filled];
            if !bytes.starts_with(&known) || known.is_empty() {
                let Some(length) = head_length(bytes) else { continue };
                check_head(&bytes[..length], expected.len())?;
                known = bytes[..length].to_vec();
            }
            if filled >= known.len() + expected.len() {
                break;
            }
        }
        ensure!(&buffer[known.len()..filled] == expected, "the body is not what the backend sent");
        if !tally.answered(begin) {
            return Ok(());
        }
    }
}

fn check_head(head: &[u8], body: usize) -> Result<()> {
    let text = || String::from_utf8_lossy(head);
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "expected status 200, got {}", text());
    let length =
        header(head, "content-length").and_then(|value| std::str::from_utf8(value).ok()?.parse::<usize>().ok());
    ensure!(length == Some(body), "expected a content-length of {body}, got {}", text());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_checked() {
        check_head(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 7).unwrap();
        for (head, flaw) in [
            (&b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 7\r\n\r\n"[..], "status 200"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n", "content-length of 7"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "content-length of 7"),
        ] {
            assert!(check_head(head, 7).unwrap_err().to_string().contains(flaw));
        }
    }
}
