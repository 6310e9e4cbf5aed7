//! Messages and downloads over TCP.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Tally, ensure_echo, stamp};
use crate::bench::scenario::MESSAGE;

/// Bytes read at once: as much as loopback hands over in one piece when the reader is behind.
const READ: usize = 256 * 1024;

/// Sends messages on one connection and awaits each back, until told to stop.
pub async fn ping_pong(mut stream: TcpStream, tally: &Tally) -> Result<()> {
    let (mut message, mut answer) = ([0; MESSAGE], [0; MESSAGE]);
    for number in 0.. {
        stamp(&mut message, number);
        let begin = Instant::now();
        stream.write_all(&message).await.context("send a message")?;
        stream.read_exact(&mut answer).await.context("read an answer")?;
        ensure_echo(&message, &answer)?;
        if !tally.answered(begin) {
            break;
        }
    }
    Ok(())
}

/// Asks for downloads on one connection, one after the other, until told to stop.
pub async fn download(mut stream: TcpStream, expected: &[u8], tally: &Tally) -> Result<()> {
    let request = [b'\n'; MESSAGE];
    let mut buffer = vec![0; READ];
    loop {
        let begin = Instant::now();
        stream.write_all(&request).await.context("ask for a download")?;
        let mut at = 0;
        while at < expected.len() {
            let length = stream.read(&mut buffer).await.context("read a download")?;
            ensure!(length > 0, "the connection was closed after {at} of {} bytes", expected.len());
            let wanted = expected.get(at..at + length).context("the download is longer than it should be")?;
            ensure!(wanted == &buffer[..length], "the download differs between bytes {at} and {}", at + length);
            at += length;
        }
        if !tally.answered(begin) {
            return Ok(());
        }
    }
}
