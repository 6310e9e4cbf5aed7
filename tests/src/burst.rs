//! Questions at a steady rate, whether they are answered or not, as resolvers of a node ask them.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::sandbox::process::pause;

/// A question is lost when no answer to any has come for so long.
const SILENCE: Duration = Duration::from_secs(5);
/// Bytes that may wait in a test while it is busy: none of its own are lost.
pub const BUFFER: usize = 8 << 20;

/// What is asked, by whom, how fast.
#[derive(Clone, Debug)]
pub struct Burst {
    /// Who is asked.
    pub to: SocketAddr,
    /// Those who ask at once, each at a port of its own.
    pub clients: usize,
    /// What each of them asks: messages whose first two bytes are their place in this list.
    pub questions: Vec<Vec<u8>>,
    /// Questions a second, of all together.
    pub rate: usize,
}

// === impl Burst ===

impl Burst {
    /// Asks from the network namespace of this thread, and gives how often each response code came, one answer for each
    /// question.
    ///
    /// # Errors
    /// When a socket fails, or something else is answered.
    ///
    /// # Panics
    /// When a reader panics.
    pub fn run(&self) -> Result<BTreeMap<u8, usize>> {
        let any = if self.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut sockets = Vec::new();
        for _ in 0..self.clients {
            let socket = UdpSocket::bind(any)?;
            setsockopt(&socket, RcvBufForce, &BUFFER)?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.connect(self.to)?;
            sockets.push(socket);
        }
        thread::scope(|scope| {
            let count = self.questions.len();
            let readers: Vec<_> = sockets.iter().map(|socket| scope.spawn(move || answers(socket, count))).collect();
            let began = Instant::now();
            for (at, question) in self.questions.iter().enumerate() {
                // All clients ask their next question; then it is waited until that of the next moment is due.
                for socket in &sockets {
                    socket.send(question)?;
                }
                let due = Duration::from_secs_f64(((at + 1) * self.clients) as f64 / self.rate as f64);
                pause(due.saturating_sub(began.elapsed()));
            }
            let mut all = BTreeMap::new();
            for reader in readers {
                for (code, times) in reader.join().expect("a reader does not panic")? {
                    *all.entry(code).or_default() += times;
                }
            }
            Ok(all)
        })
    }
}

/// Reads until everything is answered, or nothing comes any more. Gives how often each code came, one answer for each id.
fn answers(socket: &UdpSocket, count: usize) -> Result<BTreeMap<u8, usize>> {
    let mut open: Vec<bool> = vec![true; count];
    let (mut codes, mut left, mut buffer) = (BTreeMap::new(), count, [0; 4_096]);
    while left > 0 {
        let Ok(length) = socket.recv(&mut buffer) else { break };
        let head: &[u8; 4] = buffer[..length].first_chunk().context("an answer has a header")?;
        let id = usize::from(u16::from_be_bytes([head[0], head[1]]));
        if std::mem::take(open.get_mut(id).context("an answer to something else")?) {
            left -= 1;
            *codes.entry(head[3] & 0x0f).or_default() += 1;
        }
    }
    Ok(codes)
}
