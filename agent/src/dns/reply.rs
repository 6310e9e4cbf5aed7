//! What another server replied: read once, kept as the bytes it came in, and passed on with another id, spelling and age:
//! pure. Records that we know nothing of pass unchanged this way.

use std::time::Duration;

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::Name,
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::message::{DATAGRAM, HEADER, Request, TRUNCATED};

/// The longest that an answer is kept, however long it may live.
const MAX_AGE: Duration = Duration::from_secs(3_600);

/// The longest that "there is no such name" is kept (RFC 2308 asks for one to three hours at most).
const MAX_NEGATIVE_AGE: Duration = Duration::from_secs(1_800);

const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;

/// A reply of another server, without what was meant for us alone (EDNS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    bytes: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
    /// Where lifetimes stand.
    ttls: Vec<usize>,
    /// How it ended.
    pub code: ResponseCode,
    /// Whether something is missing, so that it should be asked for over TCP.
    pub truncated: bool,
    /// Whether there is a record in the answer section.
    pub is_positive: bool,
    /// How long it may be kept; zero if it may not.
    pub lifetime: Duration,
}

/// Why bytes are not the reply to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Somebody else's, or forged: the right one may still come.
    #[error("is not the reply to this question")]
    Stranger,
    /// The reply, but not one that can be read.
    #[error("cannot be read")]
    Malformed,
}

/// Sections of a message after the question.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// What was seen of the records.
#[derive(Default)]
struct Seen {
    ttls: Vec<usize>,
    /// Lowest lifetime in the answer section.
    answer: Option<u32>,
    /// How long there is nothing (RFC 2308, section 5).
    nothing: Option<u32>,
    extended_code: u8,
}

// === impl Reply ===

impl Reply {
    /// Reads the reply to `query`, which was sent with `id`.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn parse(mut bytes: Vec<u8>, id: u16, query: &Query) -> Result<Self, Mismatch> {
        let head: [u8; HEADER] = *bytes.first_chunk().ok_or(Mismatch::Stranger)?;
        let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let is_reply = head[2] & 0x80 != 0;
        if number(0) != id || !is_reply || number(4) != 1 {
            return Err(Mismatch::Stranger);
        }
        let mut decoder = BinDecoder::new(&bytes).clone(HEADER as u16);
        let asked = Query::read(&mut decoder).map_err(|_| Mismatch::Stranger)?;
        // Names compare without case.
        if asked != *query {
            return Err(Mismatch::Stranger);
        }
        let question_end = decoder.index();
        let truncated = head[2] & TRUNCATED != 0;
        let counts = [(Section::Answer, number(6)), (Section::Authority, number(8)), (Section::Additional, number(10))];
        let mut seen = Seen::default();
        let end = match seen.records(&mut decoder, counts) {
            Some(end) => end,
            // What is left of a truncated message need not be whole.
            None if truncated => {
                seen = Seen::default();
                (question_end, [0; 3])
            }
            None => return Err(Mismatch::Malformed),
        };
        bytes.truncate(end.0);
        for (at, count) in end.1.iter().enumerate() {
            bytes[6 + 2 * at..8 + 2 * at].copy_from_slice(&count.to_be_bytes());
        }
        bytes[2] &= !TRUNCATED;
        let code = ResponseCode::from(seen.extended_code, head[3] & 0x0f);
        let lifetime = seen.lifetime(code);
        let is_positive = end.1[0] > 0;
        Ok(Self { bytes, question_end, ttls: seen.ttls, code, truncated, is_positive, lifetime })
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.ttls.len() * size_of::<usize>()
    }

    /// The message with another spelling of the question: who asked first may have spelled it in a way of his own. Names
    /// that are written as references to the question follow.
    pub fn spelled(&self, name: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes.len() + 11);
        bytes.extend_from_slice(&self.bytes);
        let end = HEADER + name.len();
        if end + 4 == self.question_end {
            bytes[HEADER..end].copy_from_slice(name);
        }
        bytes
    }

    /// The message for a client that asked the same, `age` after it came.
    pub fn to(&self, request: &Request, name: &[u8], age: Duration) -> Vec<u8> {
        let mut bytes = self.spelled(name);
        bytes[..2].copy_from_slice(&request.id().to_be_bytes());
        bytes[2] = bytes[2] & !0x01 | u8::from(request.recursion_desired());
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for at in &self.ttls {
            if let Some(ttl) = bytes[*at..].first_chunk_mut::<4>() {
                *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
            }
        }
        let edns = if request.has_edns() { 11 } else { 0 };
        if bytes.len() + edns > request.limit() {
            bytes.truncate(self.question_end);
            bytes[6..HEADER].fill(0);
            bytes[2] |= TRUNCATED;
        }
        if request.has_edns() {
            append_edns(&mut bytes, request.dnssec_ok());
        }
        bytes
    }
}

/// Appends an OPT record (RFC 6891, section 6.1.2), and counts it.
fn append_edns(bytes: &mut Vec<u8>, dnssec_ok: bool) {
    let size = DATAGRAM.to_be_bytes();
    let flags = if dnssec_ok { 0x80 } else { 0 };
    bytes.extend_from_slice(&[0, 0, TYPE_OPT as u8, size[0], size[1], 0, 0, flags, 0, 0, 0]);
    let count = u16::from_be_bytes([bytes[10], bytes[11]]).saturating_add(1);
    bytes[10..HEADER].copy_from_slice(&count.to_be_bytes());
}

/// A name as it stands in a message, uncompressed.
pub fn wire_name(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

// === impl Seen ===

impl Seen {
    /// Walks the records. Gives where the last one to be kept ends, and how many there are of each section; `None` if they
    /// cannot be read.
    fn records(&mut self, decoder: &mut BinDecoder<'_>, counts: [(Section, u16); 3]) -> Option<(usize, [u16; 3])> {
        let mut kept = [0; 3];
        for (at, (section, count)) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let start = decoder.index();
                let is_edns = self.record(decoder, section)?;
                if is_edns {
                    // What would follow it is additional too, and nobody misses that.
                    return Some((start, kept));
                }
                kept[at] += 1;
            }
        }
        Some((decoder.index(), kept))
    }

    /// Walks one record. Whether it is EDNS.
    fn record(&mut self, decoder: &mut BinDecoder<'_>, section: Section) -> Option<bool> {
        Name::read(decoder).ok()?;
        let kind = decoder.read_u16().ok()?.unverified();
        decoder.read_u16().ok()?;
        let at = decoder.index();
        let ttl = decoder.read_u32().ok()?.unverified();
        let length = decoder.read_u16().ok()?.unverified();
        let data = decoder.read_slice(length.into()).ok()?.unverified();
        if kind == TYPE_OPT {
            self.extended_code = (ttl >> 24) as u8;
            return (section == Section::Additional).then_some(true);
        }
        self.ttls.push(at);
        match section {
            Section::Answer => self.answer = Some(self.answer.map_or(ttl, |least| least.min(ttl))),
            Section::Authority if kind == TYPE_SOA => {
                let minimum = data.last_chunk::<4>().map(|minimum| u32::from_be_bytes(*minimum))?;
                self.nothing = Some(ttl.min(minimum));
            }
            Section::Authority | Section::Additional => {}
        }
        Some(false)
    }

    fn lifetime(&self, code: ResponseCode) -> Duration {
        let (seconds, most) = match (code, self.answer, self.nothing) {
            (ResponseCode::NoError, Some(answer), _) => (answer, MAX_AGE),
            (ResponseCode::NXDomain, Some(answer), Some(nothing)) => (answer.min(nothing), MAX_NEGATIVE_AGE),
            (ResponseCode::NoError | ResponseCode::NXDomain, None, Some(nothing)) => (nothing, MAX_NEGATIVE_AGE),
            _ => (0, MAX_AGE),
        };
        Duration::from_secs(seconds.into()).min(most)
    }
}

#[cfg(test)]
mod tests;
