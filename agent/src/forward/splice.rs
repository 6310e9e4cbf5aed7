//! Pipes for splice(2): bytes go from socket to socket without being copied to user space and back.
//!
//! A connection borrows a pipe only while bytes of it are inside; idle ones belong to the worker.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    os::fd::OwnedFd,
    rc::Rc,
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

/// Sizes to ask for, best first. Users without privileges share 64 MiB by default (fs.pipe-user-pages-soft), above which
/// the kernel refuses the larger ones. Below the last one copying costs no more than splicing.
const SIZES: [i32; 3] = [1 << 20, 256 << 10, 64 << 10];

/// Pipes of one worker that are in use or idle. A pipe whose reader is slow stays full, so this bounds kernel memory;
/// connections that get none copy instead.
const LIVE: usize = 64;

/// Pipes kept for the next connection that needs one.
const IDLE: usize = 16;

/// The pipes of one worker.
#[derive(Debug, Default)]
pub struct Pipes {
    idle: RefCell<Vec<Pipe>>,
    live: Cell<usize>,
}

/// A pipe on loan. Dropping it gives it back.
pub struct Lease {
    /// `None` only while it is being dropped.
    pipe: Option<Pipe>,
    /// Bytes inside.
    held: usize,
    owner: Rc<Pipes>,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

// === impl Pipes ===

impl Pipes {
    /// An empty pipe; `None` if too many are in use, or the system gives none.
    pub fn take(self: &Rc<Self>) -> Option<Lease> {
        let idle = self.idle.borrow_mut().pop();
        let pipe = match idle {
            Some(pipe) => pipe,
            None if self.live.get() >= LIVE => return None,
            None => {
                let pipe = Pipe::open().ok()?;
                self.live.set(self.live.get() + 1);
                pipe
            }
        };
        Some(Lease { pipe: Some(pipe), held: 0, owner: self.clone() })
    }

    fn give_back(&self, pipe: Pipe, held: usize) {
        let mut idle = self.idle.borrow_mut();
        // Bytes of one connection must never reach another one.
        if held == 0 && idle.len() < IDLE {
            idle.push(pipe);
        } else {
            self.live.set(self.live.get() - 1);
        }
    }
}

// === impl Pipe ===

impl Pipe {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let size = SIZES.iter().find_map(|size| fcntl(&write, FcntlArg::F_SETPIPE_SZ(*size)).ok());
        let size = size.and_then(|size| usize::try_from(size).ok());
        let size =
            size.ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "pipes of this user are used up"))?;
        Ok(Self { read, write, size })
    }
}

// === impl Lease ===

impl Lease {
    /// Whether no byte is inside.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what `from` has, as far as it fits; 0 means that `from` has ended. Only to be called while the pipe is
    /// empty: otherwise a full pipe and an empty socket could not be told apart.
    ///
    /// # Errors
    /// `WouldBlock` when `from` has nothing now; anything else ends the connection.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        debug_assert!(self.is_empty());
        let Some(pipe) = &self.pipe else { return Ok(0) };
        let taken = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &pipe.write, None, pipe.size, SpliceFFlags::SPLICE_F_NONBLOCK)?)
        })?;
        self.held = taken;
        Ok(taken)
    }

    /// Gives `to` what is inside, as far as it takes it.
    ///
    /// # Errors
    /// `WouldBlock` when `to` takes nothing now; anything else ends the connection.
    pub fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        let given = to.try_io(Interest::WRITABLE, || {
            Ok(splice(&pipe.read, None, to, None, self.held, SpliceFFlags::SPLICE_F_NONBLOCK)?)
        })?;
        self.held -= given;
        Ok(given)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Lease({} bytes)", self.held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.owner.give_back(pipe, self.held);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let dialed = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listening");
        (dialed, listener.accept().await.expect("dialed").0)
    }

    #[test]
    fn pipes_are_reused_and_bounded() {
        let pipes = Rc::new(Pipes::default());
        let all: Vec<Lease> = std::iter::from_fn(|| pipes.take()).take(LIVE + 1).collect();
        assert_eq!(all.len(), LIVE);
        drop(all);
        assert_eq!((pipes.idle.borrow().len(), pipes.live.get()), (IDLE, IDLE));
        let again = pipes.take().expect("one is idle");
        assert_eq!((pipes.idle.borrow().len(), pipes.live.get()), (IDLE - 1, IDLE));
        drop(again);
    }

    #[tokio::test]
    async fn bytes_pass_and_a_pipe_that_holds_some_is_not_reused() {
        let pipes = Rc::new(Pipes::default());
        let (mut client, inside) = pair().await;
        let (outside, mut server) = pair().await;
        let mut pipe = pipes.take().expect("descriptors");

        client.write_all(b"hello").await.expect("open");
        inside.readable().await.expect("open");
        assert_eq!(pipe.fill(&inside).expect("readable"), 5);
        outside.writable().await.expect("open");
        assert_eq!(pipe.drain(&outside).expect("writable"), 5);
        let mut read = [0; 5];
        server.read_exact(&mut read).await.expect("open");
        assert_eq!(&read, b"hello");
        assert_eq!(pipe.fill(&inside).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));

        client.write_all(b"secret").await.expect("open");
        inside.readable().await.expect("open");
        pipe.fill(&inside).expect("readable");
        drop(pipe);
        assert_eq!((pipes.idle.borrow().len(), pipes.live.get()), (0, 0));

        drop(client);
        inside.readable().await.expect("open");
        assert_eq!(pipes.take().expect("descriptors").fill(&inside).expect("ended"), 0);
    }
}
