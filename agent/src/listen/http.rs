//! A connection that speaks HTTP: which version, and then request after request. Each one takes the table of its moment,
//! so a change concerns also connections that have been open for long.

use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{alarm::Alarm, forward::http::Session, local::Local, report::record::Downstream, table::Frontend};

pub mod wire;
pub mod respond;
pub mod h1;
pub mod h2;

/// What every client of HTTP/2 says first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How requests of a connection find their Service.
#[derive(Clone, Debug)]
pub enum HttpRoute {
    /// By the address that was dialled.
    Frontend(Frontend),
    /// By the name in each request.
    Shared,
}

/// Serves a connection until it ends. `alpn_h2` is what TLS has agreed on; without TLS the first bytes tell.
pub async fn serve<IO>(
    local: Rc<Local>,
    mut io: IO,
    downstream: Arc<Downstream>,
    route: HttpRoute,
    alpn_h2: Option<bool>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _counted = local.reporter.count(downstream.frontend);
    let certified = match route {
        HttpRoute::Frontend(frontend) if downstream.tls => frontend.target,
        HttpRoute::Frontend(_) | HttpRoute::Shared => None,
    };
    let alarm = local.alarms.alarm();
    // A new connection has something to say; one that stays silent is not kept for as long as one that has proved itself.
    alarm.set(Some(local.now() + local.limits.header_timeout));
    let mut read = BytesMut::new();
    let http2 = match alpn_h2 {
        Some(http2) => http2,
        None => match detect(&local, &mut io, &mut read, &alarm).await {
            Some(http2) => http2,
            None => return,
        },
    };
    let session = Rc::new(Session::new(local, downstream, certified));
    if http2 {
        // Boxed, so that it does not make every idle connection of HTTP/1.1 as large as itself.
        Box::pin(h2::serve(session, io, read, alarm)).await;
    } else {
        h1::serve(session, io, read, alarm).await;
    }
}

/// Reads until the first bytes are the preface of HTTP/2 or cannot be; `None` if the client leaves or stays silent.
async fn detect<IO: AsyncRead + Unpin>(local: &Local, io: &mut IO, read: &mut BytesMut, alarm: &Alarm) -> Option<bool> {
    poll_fn(|cx| {
        loop {
            let seen = read.len().min(PREFACE.len());
            if read[..seen] != PREFACE[..seen] {
                return Poll::Ready(Some(false));
            }
            if seen == PREFACE.len() {
                return Poll::Ready(Some(true));
            }
            match local.buffers.poll_read(io, cx, read, 0) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    ready!(alarm.poll(cx));
                    // What has come is half a head; HTTP/1.1 has an answer for that.
                    return Poll::Ready((!read.is_empty()).then_some(false));
                }
            }
        }
    })
    .await
}
