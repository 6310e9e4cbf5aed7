//! Bytes both ways after an upgrade: WebSocket and whatever else two ends agree on. Each direction ends by itself.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{alarm::Alarm, local::Local, report::outcome::Outcome};

/// What passed through a tunnel, and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// One direction.
struct Direction {
    buffer: BytesMut,
    state: State,
    passed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Copying,
    /// The source ended; what is left is written, then the end is passed on.
    Ending,
    Ended,
}

/// An end and what was read from it before.
pub struct End<IO> {
    /// The connection.
    pub io: IO,
    /// Read already.
    pub read: BytesMut,
}

/// Copies between two ends until both directions have ended, one end fails, or nothing passed for the idle time of TCP
/// connections.
pub async fn run<A, B>(local: &Rc<Local>, client: End<A>, endpoint: End<B>, alarm: &Alarm) -> Passed
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::new(client.read), Direction::new(endpoint.read));
    let (mut client, mut endpoint) = (client.io, endpoint.io);
    let mut passed = 0;
    let idle = local.limits.tcp_idle_timeout;
    alarm.set(Some(local.now() + idle));
    let outcome = poll_fn(|cx| {
        let upward = up.poll(cx, local, &mut client, &mut endpoint);
        let downward = down.poll(cx, local, &mut endpoint, &mut client);
        match (upward, downward) {
            (Poll::Ready(Err(Failed::Source)), _) | (_, Poll::Ready(Err(Failed::Sink))) => {
                return Poll::Ready(Outcome::ClientClosed);
            }
            (Poll::Ready(Err(Failed::Sink)), _) | (_, Poll::Ready(Err(Failed::Source))) => {
                return Poll::Ready(Outcome::UpstreamClosed);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Outcome::Complete),
            (Poll::Pending, _) | (_, Poll::Pending) => {}
        }
        if local.drain.is_over() {
            return Poll::Ready(Outcome::Drained);
        }
        while alarm.poll(cx).is_ready() {
            let now = up.passed + down.passed;
            if now == passed {
                return Poll::Ready(Outcome::IdleTimeout);
            }
            // Something has passed since the alarm was set, so it is set anew, and not for each byte.
            passed = now;
            alarm.set(Some(local.now() + idle));
        }
        Poll::Pending
    })
    .await;
    Passed { received: up.passed, sent: down.passed, outcome }
}

/// Which end of a direction failed.
#[derive(Debug)]
enum Failed {
    Source,
    Sink,
}

// === impl Direction ===

impl Direction {
    fn new(read: BytesMut) -> Self {
        Self { passed: read.len() as u64, buffer: read, state: State::Copying }
    }

    fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        local: &Local,
        source: &mut S,
        sink: &mut D,
    ) -> Poll<Result<(), Failed>>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        loop {
            if !self.buffer.is_empty() {
                ready!(self.poll_write(cx, sink)).map_err(|_| Failed::Sink)?;
                continue;
            }
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    // An end that is gone already needs no end.
                    let _ = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                    self.state = State::Ended;
                }
                State::Copying => match local.buffers.poll_read(source, cx, &mut self.buffer, 0) {
                    Poll::Ready(Ok(0)) => self.state = State::Ending,
                    Poll::Ready(Ok(read)) => self.passed += read as u64,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Source)),
                    Poll::Pending => {
                        // Only TLS holds anything back.
                        ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(|_| Failed::Sink)?;
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn poll_write<D: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, sink: &mut D) -> Poll<io::Result<()>> {
        match ready!(Pin::new(sink).poll_write(cx, &self.buffer))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => self.buffer.advance(written),
        }
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}
