//! HTTP/2 from a client. The protocol itself is hyper's; here is what it is told, and when the connection ends.

use std::{cell::Cell, convert::Infallible, future::poll_fn, pin::pin, rc::Rc, task::Poll, time::Duration};

use bytes::BytesMut;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, ext::Protocol, server::conn::http2, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_local,
};

use crate::{
    alarm::Alarm,
    forward::{
        body::RequestBody,
        coalesce::{Coalesced, StreamExecutor},
        http::{Session, forward},
        reply::{ReplyBody, Tunnel},
        tunnel::{self, End},
    },
};

/// Bytes that a client may send before they are passed on: per stream, and for all streams of a connection. The second must
/// be much larger, or one slow endpoint would stop the others; half of it is also the budget for small frames, beyond which
/// the codec gives up the connection.
const WINDOWS: (u32, u32) = (1 << 20, 16 << 20);

/// Streams that a client may have open.
const STREAMS: u32 = 200;

/// A client that does not answer a ping within this time is gone, and how often it is asked.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));

/// Time for a client to close an idle connection after GOAWAY.
const GOODBYE: Duration = Duration::from_secs(5);

/// Counts a stream as open until dropped.
struct Open(Rc<Cell<usize>>);

/// Serves a connection of which `read` was read already. `alarm` is set to the time for the first request.
pub async fn serve<IO>(session: Rc<Session>, io: IO, read: BytesMut, alarm: Alarm)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = Coalesced::new(io, read);
    let local = session.local.clone();
    let (open, served) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0u64)));
    let service = {
        let (open, served) = (open.clone(), served.clone());
        service_fn(move |request| {
            served.set(served.get() + 1);
            let (session, open) = (session.clone(), Open::new(&open));
            // Boxed, because it is moved several times until it runs, and holds all that a request needs.
            Box::pin(async move {
                let response = respond(&session, request).await;
                drop(open);
                Ok::<_, Infallible>(response)
            })
        })
    };
    let mut builder = http2::Builder::new(StreamExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(local.limits.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_timeout(PING.0)
        .keep_alive_interval(PING.1)
        .auto_date_header(false)
        .enable_connect_protocol();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io.clone()), service));
    let (mut leaving, mut seen) = (false, 0);
    poll_fn(|cx| {
        loop {
            // How it ended is known from its requests.
            if io.poll_run(cx, connection.as_mut()).is_ready() {
                return Poll::Ready(());
            }
            let rung = alarm.poll(cx).is_ready();
            if local.drain.is_over() {
                return Poll::Ready(());
            }
            if leaving {
                // Requests in flight end by themselves, or with the drain.
                return if rung && open.get() == 0 { Poll::Ready(()) } else { Poll::Pending };
            }
            let active = open.get() > 0 || served.get() > seen;
            if local.drain.is_draining() || (rung && !active) {
                leaving = true;
                connection.as_mut().graceful_shutdown();
                alarm.set(Some(local.now() + GOODBYE));
            } else if rung {
                // Something was asked since the alarm was set, so the connection is idle for less than it takes.
                seen = served.get();
                alarm.set(Some(local.now() + local.limits.idle_timeout));
            } else {
                return Poll::Pending;
            }
        }
    })
    .await;
}

async fn respond(session: &Rc<Session>, mut request: Request<Incoming>) -> Response<ReplyBody> {
    let alarm = session.local.alarms.alarm();
    let tunnelling = match request.extensions().get::<Protocol>() {
        Some(protocol) => {
            let protocol = HeaderValue::from_str(protocol.as_str());
            let upgrade = request.extensions_mut().remove::<OnUpgrade>();
            protocol.ok().zip(upgrade)
        }
        None => None,
    };
    // Informational answers have no way through hyper's server of HTTP/2, so none is asked for.
    request.headers_mut().remove(header::EXPECT);
    let Some((protocol, upgrade)) = tunnelling else {
        let request = request.map(RequestBody::http2);
        return forward(session, request, false, &alarm, |_| ()).await.into_mapped().0;
    };
    let reply = forward(session, as_upgrade(request, protocol), true, &alarm, |_| ()).await;
    let (mut response, tunnel) = reply.into_mapped();
    if tunnel.is_none() && response.status().is_success() {
        // To this client, success would mean that the tunnel stands.
        *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
    }
    if let Some(tunnel) = tunnel {
        spawn_local(carry(session.clone(), upgrade, tunnel, alarm));
        // HTTP/2 has no 101: the stream is the connection (RFC 8441 section 5).
        *response.status_mut() = StatusCode::OK;
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
    }
    response
}

/// Extended CONNECT as the upgrade of HTTP/1.1 that means the same (RFC 8441 section 5.1).
fn as_upgrade(request: Request<Incoming>, protocol: HeaderValue) -> Request<RequestBody> {
    let mut request = request.map(|_| RequestBody::empty());
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    if let Ok(key) = HeaderValue::from_bytes(&websocket_key()) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    request
}

/// 16 random bytes in base64, which HTTP/1.1 wants and HTTP/2 leaves out.
fn websocket_key() -> [u8; 24] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key = [b'='; 24];
    // 128 bits are 21 digits of 6 bits and one of 2 bits, followed by two signs that fill up.
    for digit in &mut key[..21] {
        *digit = DIGITS[fastrand::usize(..64)];
    }
    key[21] = DIGITS[fastrand::usize(..4) << 4];
    key
}

/// Carries the other protocol over a stream of HTTP/2.
async fn carry(session: Rc<Session>, upgrade: OnUpgrade, tunnel: Tunnel, alarm: Alarm) {
    // Without the stream the tunnel is dropped, which closes the record.
    let Ok(upgraded) = upgrade.await else { return };
    let (stream, read, account) = tunnel.open();
    let client = End { io: TokioIo::new(upgraded), read: BytesMut::new() };
    let passed = tunnel::run(&session.local, client, End { io: stream, read }, &alarm).await;
    account.close(passed);
}

// === impl Open ===

impl Open {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
