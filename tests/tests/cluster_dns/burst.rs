use std::{
    collections::BTreeMap,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use tests::sandbox::{netns, plan::Role, process::pause};

use crate::{AGENT, cluster};

/// Questions a second that are offered, whether they are answered or not.
const RATE: usize = 10_000;
const QUESTIONS: usize = 2 * RATE;
/// Resolvers that ask at once, each at a port of its own.
const CLIENTS: usize = 8;
/// A question is lost when no answer to any has come for so long.
const SILENCE: Duration = Duration::from_secs(5);
/// No answer waits in the test while it is busy.
const BUFFER: usize = 8 << 20;
/// What is asked in turn: one record, several, a service, a name of an address, and what a search list asks in vain.
const ASKED: [(&str, RecordType); 5] = [
    ("web.shop.svc.cluster.local.", RecordType::A),
    ("db.shop.svc.cluster.local.", RecordType::AAAA),
    ("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
    ("1.7.96.10.in-addr.arpa.", RecordType::PTR),
    ("www.example.test.shop.svc.cluster.local.", RecordType::A),
];

/// The n-th question of a client, which has this as its id.
fn question(id: usize) -> Result<Vec<u8>> {
    let (name, kind) = ASKED[id % ASKED.len()];
    let mut message = Message::query();
    message.metadata.id = u16::try_from(id)?;
    message.queries.push(Query::query(Name::from_ascii(name)?, kind));
    Ok(message.to_vec()?)
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

/// Offers the questions at the rate, and gives how often each code came.
fn burst() -> Result<BTreeMap<u8, usize>> {
    let each = QUESTIONS / CLIENTS;
    let questions: Vec<Vec<u8>> = (0..each).map(question).collect::<Result<_>>()?;
    let mut sockets = Vec::new();
    for _ in 0..CLIENTS {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.connect(AGENT)?;
        sockets.push(socket);
    }
    thread::scope(|scope| {
        let readers: Vec<_> = sockets.iter().map(|socket| scope.spawn(|| answers(socket, each))).collect();
        let began = Instant::now();
        for (at, question) in questions.iter().enumerate() {
            // All clients ask their next question; then it is waited until that of the next moment is due.
            for socket in &sockets {
                socket.send(question)?;
            }
            let due = Duration::from_secs_f64(((at + 1) * CLIENTS) as f64 / RATE as f64);
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

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_lost_in_a_burst() {
    let (_, _, _turn) = cluster().await;
    let codes = tokio::task::block_in_place(|| netns::within(&Role::Node(1).namespace(), burst));
    // NOERROR is 0, NXDOMAIN 3.
    let missing = QUESTIONS / ASKED.len();
    assert_eq!(codes.expect("questions can be asked"), BTreeMap::from([(0, QUESTIONS - missing), (3, missing)]));
}
