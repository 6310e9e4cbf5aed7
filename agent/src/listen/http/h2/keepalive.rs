//! Whether a silent client is still there.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};

use crate::{alarm::Alarm, local::Local};

/// A client from which nothing has come for so long is asked.
const INTERVAL: Duration = Duration::from_secs(60);

/// A client from which nothing comes for so long after it was asked is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks silent clients with pings. Any byte is an answer.
pub struct Keepalive {
    alarm: Alarm,
    ping: Option<PingPong>,
    asked: bool,
}

// === impl Keepalive ===

impl Keepalive {
    /// Of a connection that has begun.
    pub fn new(local: &Local, ping: Option<PingPong>) -> Self {
        let alarm = local.alarms.alarm();
        alarm.set(Some(local.now() + INTERVAL));
        Self { alarm, ping, asked: false }
    }

    /// Ready when the client is gone. `heard` says whether anything has come since it was called last.
    pub fn poll_dead(&mut self, cx: &mut Context<'_>, local: &Local, heard: impl Fn() -> bool) -> Poll<()> {
        while self.alarm.poll(cx).is_ready() {
            let silent = !heard();
            if silent && self.asked {
                return Poll::Ready(());
            }
            self.asked = silent;
            if let Some(ping) = self.ping.as_mut().filter(|_| silent) {
                // The answer to the last one has to be taken before the next is sent; that it has come is known.
                let _ = ping.poll_pong(cx);
                // This fails only when the connection is closed, which it notices itself.
                let _ = ping.send_ping(Ping::opaque());
            }
            self.alarm.set(Some(local.now() + if silent { PATIENCE } else { INTERVAL }));
        }
        Poll::Pending
    }
}
