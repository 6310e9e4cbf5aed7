//! Questions to a server from within a network namespace, and what it says, in a form that can be compared.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, RData, Record, RecordType},
};
use tests::sandbox::netns;

/// A server on the same machine that takes longer has lost the question.
const PATIENCE: Duration = Duration::from_secs(5);
/// What datagrams may have, as resolvers say today.
const DATAGRAM: u16 = 1_232;

/// How a question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// A name and a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Fully qualified, with its spelling.
    pub name: String,
    /// What is asked for.
    pub kind: RecordType,
}

/// What a server said. Records are lines without the serial of a zone, sorted: their order means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// How it ended.
    pub code: String,
    /// Whether it speaks for the zone.
    pub authoritative: bool,
    /// Whether something is missing.
    pub truncated: bool,
    /// Answer section.
    pub answers: Vec<String>,
    /// Authority section.
    pub authorities: Vec<String>,
    /// Additional section, without EDNS.
    pub additionals: Vec<String>,
}

/// Asks a server everything, from within a namespace.
///
/// # Errors
/// When a question is not answered, or by something that is no answer to it.
pub fn ask(namespace: &str, server: SocketAddr, carrier: Carrier, questions: &[Question]) -> Result<Vec<Said>> {
    netns::within(namespace, || {
        let one =
            |question: &Question| one(server, carrier, question).with_context(|| format!("{question} of {server}"));
        questions.iter().map(one).collect()
    })
}

fn one(server: SocketAddr, carrier: Carrier, question: &Question) -> Result<Said> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(&question.name)?, question.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM);
    message.edns = Some(edns);
    let asked = message.to_vec()?;
    let bytes = match carrier {
        Carrier::Udp => over_udp(server, &asked)?,
        Carrier::Tcp => over_tcp(server, &asked)?,
    };
    let reply = Message::from_vec(&bytes)?;
    ensure!(reply.metadata.id == message.metadata.id, "the reply is to another question");
    let spelled = reply.queries.first().map(|query| query.name().to_ascii());
    ensure!(spelled.as_ref() == Some(&question.name), "the question comes back as {spelled:?}");
    Ok(Said {
        code: format!("{:?}", reply.metadata.response_code),
        authoritative: reply.metadata.authoritative,
        truncated: reply.metadata.truncation,
        answers: lines(&reply.answers),
        authorities: lines(&reply.authorities),
        additionals: lines(&reply.additionals),
    })
}

fn over_udp(server: SocketAddr, asked: &[u8]) -> Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(asked)?;
    let mut bytes = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

fn over_tcp(server: SocketAddr, asked: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(asked.len())?;
    stream.write_all(&[&length.to_be_bytes(), asked].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn lines(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<String> = records.iter().map(line).collect();
    lines.sort();
    lines
}

fn line(record: &Record) -> String {
    let data = match &record.data {
        RData::SOA(soa) => {
            format!("{} {} {} {} {} {}", soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum)
        }
        data => data.to_string(),
    };
    format!("{} {} {} {data}", record.name.to_ascii(), record.ttl, record.record_type())
}

// === impl Question ===

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)
    }
}

// === impl Said ===

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, authoritative, truncated, answers, authorities, additionals } = self;
        write!(f, "{code}{}{}", if *authoritative { " aa" } else { "" }, if *truncated { " tc" } else { "" })?;
        for (section, lines) in [("answer", answers), ("authority", authorities), ("additional", additionals)] {
            lines.iter().try_for_each(|line| write!(f, "\n      {section} {line}"))?;
        }
        Ok(())
    }
}
