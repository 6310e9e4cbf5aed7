//! Both directions of a connection, with half-close, reset and idle timeout (S16.5).

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, Ready},
    net::TcpStream,
};

use super::half::{Fault, Half};
use crate::{
    alarm::Alarm,
    forward::socket::{Shared, reset_on_close},
    local::Local,
    report::outcome::Outcome,
};

/// Idle time of a connection one side of which has ended, unless the ordinary one is shorter: what conntrack grants in
/// CLOSE_WAIT as kube-proxy sets it.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3600);

/// How a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// `Complete`, `IdleTimeout`, `Drained`, or whose reset ended it: `ClientClosed`, `UpstreamClosed`.
    pub outcome: Outcome,
}

/// Copies between two sockets until both have ended, one was reset, nothing happens for `idle`, or draining is over.
/// `first` was read from the client before. Where bytes may be missing, dropping either socket sends a reset.
pub async fn sockets(
    local: &Local,
    client: &TcpStream,
    upstream: &TcpStream,
    first: Vec<u8>,
    idle: Duration,
) -> Copied {
    let scratch = &local.scratch;
    let mut directions = Directions::new(first);
    let mut watch: Option<Watch<'_>> = None;
    let mut idle = Idle::new(local, idle);
    let outcome = poll_fn(|cx| {
        let ended = directions.poll(|way, half| match way {
            Way::Up => half.poll_socket(cx, scratch, Shared(client), Shared(upstream)),
            Way::Down => half.poll_socket(cx, scratch, Shared(upstream), Shared(client)),
        });
        if ended.is_ready() {
            return ended;
        }
        if let Some(outcome) = directions.half_closed() {
            let ended = if outcome == Outcome::ClientClosed { client } else { upstream };
            let watch = watch.get_or_insert_with(|| Box::pin(ended.ready(Interest::ERROR)));
            if watch.as_mut().poll(cx).is_ready() {
                return Poll::Ready(outcome);
            }
        }
        idle.poll(cx, &directions)
    })
    .await;
    if matches!(outcome, Outcome::ClientClosed | Outcome::UpstreamClosed | Outcome::Drained) {
        reset_on_close(client);
        reset_on_close(upstream);
    }
    directions.copied(outcome)
}

/// As [`sockets`], for anything else that carries bytes, such as the inside of TLS. What a reset means is up to the
/// caller.
pub async fn streams<C, U>(local: &Local, client: &mut C, upstream: &mut U, idle: Duration) -> Copied
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let scratch = &local.scratch;
    let mut directions = Directions::new(Vec::new());
    let mut idle = Idle::new(local, idle);
    let outcome = poll_fn(|cx| {
        let (mut client, mut upstream) = (Pin::new(&mut *client), Pin::new(&mut *upstream));
        let ended = directions.poll(|way, half| match way {
            Way::Up => half.poll(cx, scratch, client.as_mut(), upstream.as_mut()),
            Way::Down => half.poll(cx, scratch, upstream.as_mut(), client.as_mut()),
        });
        if ended.is_ready() { ended } else { idle.poll(cx, &directions) }
    })
    .await;
    directions.copied(outcome)
}

/// A socket that has ended, watched for its reset: nobody reads from it any more, so nobody else would see that.
type Watch<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>;

/// One of the two directions.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// Both directions and how they ended.
struct Directions {
    up: Half,
    down: Half,
    up_end: Option<Result<(), Fault>>,
    down_end: Option<Result<(), Fault>>,
    /// Whose reset came first.
    fault: Option<Outcome>,
}

/// Idle time, looked at only when it may have passed, and the end of draining.
struct Idle<'a> {
    local: &'a Local,
    alarm: Alarm,
    limit: Duration,
    last: Instant,
    moved: u64,
    half_closed: bool,
}

// === impl Directions ===

impl Directions {
    fn new(first: Vec<u8>) -> Self {
        Self { up: Half::new(first), down: Half::default(), up_end: None, down_end: None, fault: None }
    }

    /// Moves what can be moved. A reader that was reset ends both directions at once; after the reset of a writer, what
    /// that side had said before is still delivered.
    fn poll(&mut self, mut half: impl FnMut(Way, &mut Half) -> Poll<Result<(), Fault>>) -> Poll<Outcome> {
        if self.up_end.is_none()
            && let Poll::Ready(end) = half(Way::Up, &mut self.up)
        {
            self.up_end = Some(end);
            self.note(end, Outcome::ClientClosed, Outcome::UpstreamClosed);
        }
        if self.down_end.is_none()
            && let Poll::Ready(end) = half(Way::Down, &mut self.down)
        {
            self.down_end = Some(end);
            self.note(end, Outcome::UpstreamClosed, Outcome::ClientClosed);
        }
        let reader_reset = [self.up_end, self.down_end].contains(&Some(Err(Fault::Reader)));
        if reader_reset || (self.up_end.is_some() && self.down_end.is_some()) {
            return Poll::Ready(self.fault.unwrap_or(Outcome::Complete));
        }
        Poll::Pending
    }

    fn note(&mut self, end: Result<(), Fault>, reader: Outcome, writer: Outcome) {
        let fault = end.err().map(|fault| if fault == Fault::Reader { reader } else { writer });
        self.fault = self.fault.or(fault);
    }

    /// Whose reset nobody would see, because only the other side has not ended yet.
    fn half_closed(&self) -> Option<Outcome> {
        match (self.up_end, self.down_end) {
            (Some(Ok(())), None) => Some(Outcome::ClientClosed),
            (None, Some(Ok(()))) => Some(Outcome::UpstreamClosed),
            _ => None,
        }
    }

    fn moved(&self) -> u64 {
        self.up.read + self.up.written + self.down.read + self.down.written
    }

    fn copied(&self, outcome: Outcome) -> Copied {
        Copied { received: self.up.read, sent: self.down.written, outcome }
    }
}

// === impl Idle ===

impl<'a> Idle<'a> {
    fn new(local: &'a Local, limit: Duration) -> Self {
        let (alarm, last) = (local.alarms.alarm(), local.now());
        alarm.set(Some(last + limit));
        Self { local, alarm, limit, last, moved: 0, half_closed: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>, directions: &Directions) -> Poll<Outcome> {
        let (now, moved) = (self.local.now(), directions.moved());
        if moved != self.moved {
            (self.last, self.moved) = (now, moved);
        }
        if !self.half_closed && directions.half_closed().is_some() {
            self.half_closed = true;
            self.limit = self.limit.min(HALF_CLOSED_IDLE);
            self.last = now;
            self.alarm.set(Some(now + self.limit));
        }
        while self.alarm.poll(cx).is_ready() {
            if now.saturating_duration_since(self.last) >= self.limit {
                return Poll::Ready(Outcome::IdleTimeout);
            }
            self.alarm.set(Some(self.last + self.limit));
        }
        if self.local.drain.is_over() { Poll::Ready(Outcome::Drained) } else { Poll::Pending }
    }
}
