//! What DNS spends on a question: processor time of the whole process per answer, for questions of different kinds.

use std::{
    collections::VecDeque,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};

use super::{
    cpu::{self, Cores},
    process::Pinned,
};
use crate::{manifests, sandbox::process::pause};

const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 91, 0, 53)), 10_053);
/// Questions that are open at a time, as many resolvers of a node make them.
const OPEN: usize = 32;
/// An answer that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(2);
/// How long Portico may take until it knows its manifests.
const READY: Duration = Duration::from_secs(20);

/// A kind of question: what it is called, what is asked, how it ends.
struct Kind {
    title: &'static str,
    name: &'static str,
    asked: RecordType,
    code: ResponseCode,
}

const KINDS: [Kind; 4] = [
    Kind {
        title: "ClusterIP, A",
        name: "web.shop.svc.cluster.local.",
        asked: RecordType::A,
        code: ResponseCode::NoError,
    },
    Kind {
        title: "no such name of a search list",
        name: "www.example.com.shop.svc.cluster.local.",
        asked: RecordType::A,
        code: ResponseCode::NXDomain,
    },
    Kind {
        title: "headless, 3 x A",
        name: "db.shop.svc.cluster.local.",
        asked: RecordType::A,
        code: ResponseCode::NoError,
    },
    Kind {
        title: "headless, 3 x SRV with addresses",
        name: "_sql._tcp.db.shop.svc.cluster.local.",
        asked: RecordType::SRV,
        code: ResponseCode::NoError,
    },
];

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 127.96.91.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
ports: [{name: sql, port: 15432}]
endpoints:
- {addresses: [127.91.2.1], conditions: {ready: true}, hostname: db-0}
- {addresses: [127.91.2.2], conditions: {ready: true}, hostname: db-1}
- {addresses: [127.91.2.3], conditions: {ready: true}, hostname: db-2}
---
";

/// Runs so many rounds of this length of each kind, and gives a table: the median of the processor time per answer.
///
/// # Errors
/// When Portico does not start, or an answer is lost or wrong.
pub fn run(portico: &Path, dir: &Path, cores: Cores, rounds: u16, length: Duration) -> Result<String> {
    let mut server = start(portico, dir, cores)?;
    let mut table = "| question | µs of processor time |\n| --- | ---: |\n".to_owned();
    for kind in &KINDS {
        // The first round only warms up.
        let spent = (0..=rounds).map(|_| round(kind, &mut server, length)).collect::<Result<Vec<f64>>>()?;
        let mut spent = spent[1..].to_vec();
        spent.sort_by(f64::total_cmp);
        table += &format!("| {} | {:.1} |\n", kind.title, spent[spent.len() / 2]);
    }
    Ok(table)
}

fn start(portico: &Path, dir: &Path, cores: Cores) -> Result<Pinned> {
    let directory = dir.join("dns");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let node = manifests::node("bench", 91).replace("127.N.", "127.91.");
    fs::write(directory.join("all.yaml"), node + OBJECTS).context("write manifests")?;
    let (directory, listen) = (directory.display().to_string(), SERVER.to_string());
    let args = ["standalone", "--workers=1", "--log-level=warn", "--dns-listen", &listen, "--manifests", &directory];
    let mut server = Pinned::start(dir, "portico-dns", cores.proxy, portico, args)?;
    let socket = socket()?;
    let deadline = Instant::now() + READY;
    loop {
        server.ensure_running()?;
        ensure!(Instant::now() < deadline, "portico does not answer: {}", server.last_words());
        let asked = socket.send(&question(&KINDS[0], 0)?);
        if asked.is_ok() && receive(&socket).is_ok_and(|reply| reply.metadata.response_code == KINDS[0].code) {
            return Ok(server);
        }
        pause(Duration::from_millis(50));
    }
}

/// Microseconds of processor time per answer.
fn round(kind: &Kind, server: &mut Pinned, length: Duration) -> Result<f64> {
    let socket = socket()?;
    let questions: Vec<Vec<u8>> = (0..OPEN).map(|id| question(kind, id)).collect::<Result<_>>()?;
    server.ensure_running()?;
    let (before, began) = (cpu::usage(server.pid())?, Instant::now());
    let mut free: VecDeque<usize> = (0..OPEN).collect();
    let mut answers = 0_u64;
    loop {
        while began.elapsed() < length
            && let Some(id) = free.pop_front()
        {
            socket.send(&questions[id]).context("send a question")?;
        }
        if free.len() == OPEN {
            break;
        }
        let reply = receive(&socket)?;
        let code = reply.metadata.response_code;
        ensure!(code == kind.code, "{} is answered with {code}", kind.name);
        free.push_back(reply.metadata.id.into());
        answers += 1;
    }
    Ok(cpu::usage(server.pid())?.since(before).ran as f64 / 1_000.0 / answers as f64)
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 91, 0, 1), 0)).context("bind a socket")?;
    socket.set_read_timeout(Some(LIMIT)).context("bound how long an answer may take")?;
    socket.connect(SERVER).context("connect a socket")?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<Message> {
    let mut buffer = [0; 4_096];
    let length = socket.recv(&mut buffer).context("an answer was lost")?;
    Message::from_vec(&buffer[..length]).context("read an answer")
}

fn question(kind: &Kind, id: usize) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.id = u16::try_from(id)?;
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(kind.name)?, kind.asked));
    Ok(message.to_vec()?)
}
