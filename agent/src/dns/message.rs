//! Messages of clients, and answers that fit what they can take: pure.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, RecordType},
};

use super::answer::Answer;

/// What fits a datagram for clients that say nothing (RFC 1035).
const PLAIN: u16 = 512;

/// The most that is sent as one datagram, and the most that we ask others for: it passes every path unfragmented
/// (DNS Flag Day 2020).
pub const DATAGRAM: u16 = 1_232;

/// Bytes of a header.
pub const HEADER: usize = 12;

/// The bit of the third byte of a header that says "truncated".
pub const TRUNCATED: u8 = 0x02;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// What a message of a client is.
#[derive(Debug)]
pub enum Heard {
    /// A question to be answered.
    Request(Request),
    /// Something that gets this reply at once.
    Wrong(Vec<u8>, ResponseCode),
    /// Nothing that could be answered, such as a reply.
    Noise,
}

/// A question of a client, and how it wants to be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// The one question.
    pub query: Query,
    metadata: Metadata,
    edns: Option<Edns>,
    limit: u16,
}

// === impl Heard ===

impl Heard {
    /// Reads a message.
    pub fn parse(bytes: &[u8], carrier: Carrier) -> Self {
        let Some((id, flags)) =
            bytes.first_chunk::<HEADER>().map(|head| (u16::from_be_bytes([head[0], head[1]]), head[2]))
        else {
            return Heard::Noise;
        };
        // Answering a reply could begin a conversation of two servers without end.
        if flags & 0x80 != 0 {
            return Heard::Noise;
        }
        let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
        let wrong = |code| match Message::error_msg(id, op_code, code).to_vec() {
            Ok(reply) => Heard::Wrong(reply, code),
            Err(_) => Heard::Noise,
        };
        if op_code != OpCode::Query {
            return wrong(ResponseCode::NotImp);
        }
        let Ok(mut message) = Message::from_vec(bytes) else { return wrong(ResponseCode::FormErr) };
        let Some(query) = message.queries.pop().filter(|_| message.queries.is_empty()) else {
            return wrong(ResponseCode::FormErr);
        };
        let limit = match (carrier, &message.edns) {
            (Carrier::Tcp, _) => u16::MAX,
            (Carrier::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN, DATAGRAM),
            (Carrier::Udp, None) => PLAIN,
        };
        let request = Request { query, metadata: message.metadata, edns: message.edns, limit };
        let kind = request.query.query_type();
        let code = match request.edns.as_ref().map(Edns::version) {
            Some(1..) => ResponseCode::BADVERS,
            _ if request.query.query_class() != DNSClass::IN => ResponseCode::Refused,
            // Nobody transfers this zone, and nobody may have others transfer through us.
            _ if matches!(kind, RecordType::AXFR | RecordType::IXFR) => ResponseCode::Refused,
            _ => return Heard::Request(request),
        };
        Heard::Wrong(request.fail(code), code)
    }
}

// === impl Request ===

impl Request {
    /// Whether signatures are wanted.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// Whether what does not verify is wanted all the same.
    pub fn checking_disabled(&self) -> bool {
        self.metadata.checking_disabled
    }

    /// Whether we should ask others.
    pub fn recursion_desired(&self) -> bool {
        self.metadata.recursion_desired
    }

    /// Identity of the question.
    pub fn id(&self) -> u16 {
        self.metadata.id
    }

    /// Whether the client reads EDNS.
    pub fn has_edns(&self) -> bool {
        self.edns.is_some()
    }

    /// Bytes that a reply may have.
    pub fn limit(&self) -> usize {
        self.limit.into()
    }

    /// A reply without records.
    pub fn fail(&self, code: ResponseCode) -> Vec<u8> {
        self.encode(&self.message(Answer { code, ..Answer::default() }, false))
    }

    /// The reply with what the zone says, or begins with: who speaks for the first name of an answer speaks with
    /// authority, wherever an alias leads (RFC 1035, section 4.1.1).
    pub fn reply(&self, answer: Answer) -> Vec<u8> {
        self.fit(self.message(answer, true))
    }

    fn message(&self, answer: Answer, authoritative: bool) -> Message {
        let mut message = Message::new(self.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_available = true;
        message.metadata.response_code = answer.code;
        message.queries = vec![self.query.clone()];
        message.answers = answer.answers;
        message.authorities = answer.authorities;
        message.additionals = answer.additionals;
        message.edns = self.edns.as_ref().map(|theirs| {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM).set_dnssec_ok(theirs.flags().dnssec_ok);
            edns
        });
        message
    }

    /// Leaves out what the client can do without, until the reply fits. A client that gets a truncated datagram asks
    /// again over TCP; there, of more records than a message can hold, those that fit are as good as any.
    fn fit(&self, mut message: Message) -> Vec<u8> {
        loop {
            let bytes = self.encode(&message);
            // More than any message can hold is cut while it is written, which shows in its flags.
            let is_whole = bytes.get(2).is_some_and(|flags| flags & TRUNCATED == 0);
            if is_whole && bytes.len() <= self.limit() {
                return bytes;
            }
            if !message.additionals.is_empty() {
                message.additionals.clear();
            } else if self.limit == u16::MAX && !message.answers.is_empty() {
                message.answers.truncate(message.answers.len() * 3 / 4);
            } else {
                return self.encode(&message.truncate());
            }
        }
    }

    /// The bytes; none if there are more than a message can have.
    fn encode(&self, message: &Message) -> Vec<u8> {
        message.to_vec().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
