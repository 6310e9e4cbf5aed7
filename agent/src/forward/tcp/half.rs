//! One direction of a connection: bytes from a reader to a writer, then the end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Scratch;
use crate::forward::{socket::Shared, splice::Lease};

/// Below this, splicing costs more than copying.
const WORTH_SPLICING: usize = 16 << 10;

/// What one direction moves before other connections of the worker get their turn.
const TURN: u64 = 2 << 20;

/// One direction. An idle one holds no memory: bytes are read into a buffer of the worker, and only what the writer does
/// not take at once is kept here.
#[derive(Debug, Default)]
pub struct Half {
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that were written.
    pub written: u64,
    /// Read but not written, from `offset` on.
    pending: Vec<u8>,
    offset: usize,
    /// The last read filled the buffer: try splicing.
    bulk: bool,
    pipe: Option<Lease>,
    phase: Phase,
}

/// Where a direction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its reader was reset.
    Reader,
    /// Its writer was reset.
    Writer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The reader has ended; the writer is to be told once it has everything.
    Ending,
    Done,
}

// === impl Half ===

impl Half {
    /// A direction on which `first` has been read already.
    pub fn new(first: Vec<u8>) -> Self {
        Self { read: first.len() as u64, pending: first, ..Self::default() }
    }

    /// Whether the reader has ended.
    pub fn has_ended(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Moves bytes until there is nothing to do; ready when the end was passed on.
    pub fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Scratch,
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        let turn = self.read + TURN;
        loop {
            ready!(self.poll_pending(cx, writer.as_mut()))?;
            match self.phase {
                Phase::Open if self.read >= turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Phase::Open => {
                    if let Poll::Ready(result) = self.poll_copy(cx, scratch, reader.as_mut(), writer.as_mut()) {
                        result?;
                    } else {
                        // TLS may hold back what was written; nothing else would send it while the reader is silent.
                        let _ = writer.poll_flush(cx).map_err(|_| Fault::Writer)?;
                        return Poll::Pending;
                    }
                }
                Phase::Ending => return self.poll_end(cx, writer),
                Phase::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// As [`Half::poll`], for sockets: many bytes are spliced instead of copied.
    pub fn poll_socket(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Scratch,
        mut reader: Shared<'_>,
        mut writer: Shared<'_>,
    ) -> Poll<Result<(), Fault>> {
        let turn = self.read + TURN;
        loop {
            ready!(self.poll_pipe(cx, writer))?;
            ready!(self.poll_pending(cx, Pin::new(&mut writer)))?;
            match self.phase {
                Phase::Open if self.read >= turn => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Phase::Open if self.bulk => ready!(self.poll_splice(cx, scratch, reader))?,
                Phase::Open => ready!(self.poll_copy(cx, scratch, Pin::new(&mut reader), Pin::new(&mut writer)))?,
                Phase::Ending => return self.poll_end(cx, Pin::new(&mut writer)),
                Phase::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once and writes what was read; what the writer does not take is pending.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Scratch,
        reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        let mut buffer = scratch.buffer.borrow_mut();
        let mut buffer = ReadBuf::new(&mut buffer);
        match ready!(reader.poll_read(cx, &mut buffer)) {
            Ok(()) => {}
            // TLS without close_notify. What is inside has its own ends, or the client would not have left them out.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(_) => return Poll::Ready(Err(Fault::Reader)),
        }
        let mut bytes = buffer.filled();
        if bytes.is_empty() {
            self.phase = Phase::Ending;
            return Poll::Ready(Ok(()));
        }
        self.read += bytes.len() as u64;
        self.bulk = buffer.remaining() == 0;
        while !bytes.is_empty() {
            match writer.as_mut().poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.written += count as u64;
                    bytes = &bytes[count..];
                }
                Poll::Ready(_) => return Poll::Ready(Err(Fault::Writer)),
                Poll::Pending => {
                    self.pending.extend_from_slice(bytes);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fills a pipe from the reader. Without a pipe, copying goes on.
    fn poll_splice(&mut self, cx: &mut Context<'_>, scratch: &Scratch, reader: Shared<'_>) -> Poll<Result<(), Fault>> {
        if reader.0.poll_read_ready(cx).map_err(|_| Fault::Reader)?.is_pending() {
            // Whoever has bytes to move needs the pipe more.
            self.pipe = None;
            return Poll::Pending;
        }
        let Some(pipe) = self.pipe.take().or_else(|| scratch.pipes.take()) else {
            self.bulk = false;
            return Poll::Ready(Ok(()));
        };
        match self.pipe.insert(pipe).fill(reader.0) {
            Ok(0) => self.phase = Phase::Ending,
            Ok(count) => {
                self.read += count as u64;
                self.bulk = count >= WORTH_SPLICING;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Poll::Ready(Err(Fault::Reader)),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, writer: Shared<'_>) -> Poll<Result<(), Fault>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        while !pipe.is_empty() {
            ready!(writer.0.poll_write_ready(cx)).map_err(|_| Fault::Writer)?;
            match pipe.drain(writer.0) {
                Ok(count) => self.written += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Fault::Writer)),
            }
        }
        if !self.bulk {
            self.pipe = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_pending<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut writer: Pin<&mut W>,
    ) -> Poll<Result<(), Fault>> {
        while self.offset < self.pending.len() {
            match ready!(writer.as_mut().poll_write(cx, &self.pending[self.offset..])) {
                Ok(count) if count > 0 => {
                    self.offset += count;
                    self.written += count as u64;
                }
                Ok(_) | Err(_) => return Poll::Ready(Err(Fault::Writer)),
            }
        }
        if self.offset > 0 {
            self.pending = Vec::new();
            self.offset = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_end<W: AsyncWrite>(&mut self, cx: &mut Context<'_>, writer: Pin<&mut W>) -> Poll<Result<(), Fault>> {
        self.pipe = None;
        ready!(writer.poll_shutdown(cx)).map_err(|_| Fault::Writer)?;
        self.phase = Phase::Done;
        Poll::Ready(Ok(()))
    }
}
