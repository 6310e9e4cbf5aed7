//! A stream whose first bytes were already read to find out what it speaks.

use bytes::{Buf, BytesMut};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives the bytes already read first, and then those of `inner`. Writes go straight through.
#[derive(Debug)]
pub struct Replay<T> {
    /// Freed as soon as it is empty, since connections may be long-lived and many.
    already_read: BytesMut,
    inner: T,
}

impl<T> Replay<T> {
    /// `already_read` was read from `inner`.
    pub fn new(already_read: BytesMut, inner: T) -> Self {
        Replay { already_read, inner }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Replay<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.already_read.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, into);
        }
        let length = self.already_read.len().min(into.remaining());
        into.put_slice(&self.already_read[..length]);
        self.already_read.advance(length);
        if self.already_read.is_empty() {
            self.already_read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Replay<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_come_once_and_in_order_whatever_the_reader_asks_for() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"defgh").await.unwrap();
        client.shutdown().await.unwrap();
        let mut replay = Replay::new(BytesMut::from(&b"abc"[..]), server);
        let mut two = [0; 2];
        replay.read_exact(&mut two).await.unwrap();
        let mut rest = Vec::new();
        replay.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&two[..], &rest[..]), (&b"ab"[..], &b"cdefgh"[..]));
        replay.write_all(b"back").await.unwrap();
        let mut back = [0; 4];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"back");
    }
}
