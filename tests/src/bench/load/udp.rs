//! Messages over UDP.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{net::UdpSocket, time::timeout};

use super::{Tally, ensure_echo, stamp};
use crate::bench::scenario::{MESSAGE, client_address};

/// How long an answer may take. Loopback loses nothing while its buffers hold, and one message is under way per socket.
const LIMIT: Duration = Duration::from_secs(1);

/// Sends messages from one socket and awaits each back, until told to stop.
pub async fn ping_pong(index: usize, proxy: SocketAddr, tally: &Tally) -> Result<()> {
    let socket = UdpSocket::bind((client_address(index), 0)).await.context("bind a socket")?;
    socket.connect(proxy).await.context("connect a socket")?;
    let (mut message, mut answer) = ([0; MESSAGE], [0; 2048]);
    for number in 0.. {
        stamp(&mut message, number);
        let begin = Instant::now();
        socket.send(&message).await.context("send a message")?;
        let length =
            timeout(LIMIT, socket.recv(&mut answer)).await.context("a datagram was lost")?.context("receive")?;
        ensure_echo(&message, &answer[..length])?;
        if !tally.answered(begin) {
            break;
        }
    }
    Ok(())
}
