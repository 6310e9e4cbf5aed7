//! A stream as bytes both ways, which is what extended CONNECT makes of it (RFC 8441 section 5).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are taken over at once for writing: that many are copied.
const PIECE: usize = 16 << 10;

/// Both directions of a stream.
pub struct StreamBytes {
    send: SendStream<Bytes>,
    receive: RecvStream,
    read: Bytes,
}

// === impl StreamBytes ===

impl StreamBytes {
    /// Of a stream on which heads were exchanged.
    pub fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, read: Bytes::new() }
    }
}

impl AsyncRead for StreamBytes {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        while stream.read.is_empty() {
            match ready!(stream.receive.poll_data(cx)) {
                Some(Ok(data)) => stream.read = data,
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let length = stream.read.len().min(into.remaining());
        into.put_slice(&stream.read[..length]);
        stream.read.advance(length);
        // This fails only for more than what came.
        let _ = stream.receive.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamBytes {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        stream.send.reserve_capacity(bytes.len().min(PIECE));
        while stream.send.capacity() == 0 {
            match ready!(stream.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = stream.send.capacity().min(bytes.len()).min(PIECE);
        stream.send.send_data(Bytes::copy_from_slice(&bytes[..length]), false).map_err(into_io)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().send.send_data(Bytes::new(), true).map_err(into_io))
    }
}

fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}
