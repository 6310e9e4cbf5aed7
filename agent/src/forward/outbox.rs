//! What is to be written. Small pieces are gathered, so that a head and a small body leave with one call; large ones are
//! written from where they are.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::http1::write;

/// Pieces up to this size are copied: cheaper than a second slice in a call.
const SMALL: usize = 8 << 10;

/// Gathered bytes from which writing is due.
const ENOUGH: usize = 32 << 10;

/// Bytes to be written to one connection.
#[derive(Debug, Default)]
pub struct Outbox {
    gathered: BytesMut,
    /// Comes after `gathered`.
    large: Bytes,
    /// Comes after `large`: the line end of a chunk.
    tail: &'static [u8],
}

// === impl Outbox ===

impl Outbox {
    /// Where heads are written. Only while [`Outbox::is_due`] is false, or the order would be lost.
    pub fn gather(&mut self) -> &mut BytesMut {
        debug_assert!(self.large.is_empty(), "a large piece must be written before more is gathered");
        &mut self.gathered
    }

    /// Adds a piece of a body. Only while [`Outbox::is_due`] is false.
    pub fn push(&mut self, piece: Bytes) {
        if piece.len() <= SMALL {
            self.gather().extend_from_slice(&piece);
        } else {
            debug_assert!(self.large.is_empty(), "one large piece at a time");
            self.large = piece;
        }
    }

    /// Adds a chunk of a chunked body. Only while [`Outbox::is_due`] is false.
    pub fn push_chunk(&mut self, piece: Bytes) {
        write::chunk_size(self.gather(), piece.len());
        self.push(piece);
        if self.large.is_empty() {
            self.gathered.put_slice(b"\r\n");
        } else {
            self.tail = b"\r\n";
        }
    }

    /// Ends a chunked body without trailers, also right after a large chunk.
    pub fn end_chunks(&mut self) {
        if self.is_due() && !self.tail.is_empty() {
            self.tail = b"\r\n0\r\n\r\n";
        } else {
            self.gathered.put_slice(write::LAST_CHUNK);
        }
    }

    /// Enough has come together: write before adding more.
    pub fn is_due(&self) -> bool {
        !self.large.is_empty() || !self.tail.is_empty() || self.gathered.len() >= ENOUGH
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.large.is_empty() && self.tail.is_empty()
    }

    /// Writes everything. Whether `io` is to be flushed after it is up to the caller.
    ///
    /// # Errors
    /// Those of `io`, and [`io::ErrorKind::WriteZero`] if it takes nothing more.
    pub fn poll_write<IO: AsyncWrite + Unpin>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let io = Pin::new(&mut *io);
            let written = if self.large.is_empty() && self.tail.is_empty() {
                ready!(io.poll_write(cx, &self.gathered))?
            } else {
                let slices = [&self.gathered[..], &self.large, self.tail].map(IoSlice::new);
                ready!(io.poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_gathered = written.min(self.gathered.len());
            self.gathered.advance(of_gathered);
            let of_large = (written - of_gathered).min(self.large.len());
            self.large.advance(of_large);
            self.tail = &self.tail[written - of_gathered - of_large..];
        }
        // The memory goes back at once: most connections wait most of the time.
        self.gathered = BytesMut::new();
        self.large = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes a few bytes at a time.
    struct Slow(Vec<u8>);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(3000);
            self.0.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            self.poll_write(cx, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn written(outbox: &mut Outbox) -> Vec<u8> {
        let mut slow = Slow(Vec::new());
        assert!(matches!(outbox.poll_write(&mut slow, &mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))));
        assert!(outbox.is_empty());
        slow.0
    }

    #[test]
    fn chunks_are_framed_whatever_their_size() {
        let mut outbox = Outbox::default();
        outbox.push_chunk(Bytes::from_static(b"small"));
        outbox.push_chunk(Bytes::from(vec![b'x'; 0x3000]));
        assert!(outbox.is_due());
        let expected = [b"5\r\nsmall\r\n3000\r\n".as_slice(), &[b'x'; 0x3000], b"\r\n"].concat();
        assert_eq!(written(&mut outbox), expected);
    }

    #[test]
    fn pieces_leave_in_order() {
        let mut outbox = Outbox::default();
        let large = vec![b'x'; SMALL + 1];
        outbox.gather().extend_from_slice(b"head ");
        outbox.push(Bytes::from_static(b"small "));
        assert!(!outbox.is_due());
        outbox.push(Bytes::from(large.clone()));
        assert!(outbox.is_due());
        assert_eq!(written(&mut outbox), [b"head small ".as_slice(), &large].concat());
    }
}
