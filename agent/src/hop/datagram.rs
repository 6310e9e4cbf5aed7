//! What agents say to each other between the datagrams of a flow. Each flow has a socket of its own, and all datagrams on it
//! are those of client and endpoint as they are, but for these: a header from the entry node, and a word from the exit node.
//!
//! Both begin as PROXY headers do. An endpoint that sends such a word itself harms its own flow alone, and a client cannot
//! send a header that is believed.

use super::{answer::Answer, proxy::SIGNATURE};

/// Bytes of a word.
const LENGTH: usize = SIGNATURE.len() + 1;

/// Asks for the header.
const WHO: u8 = b'?';

/// What the exit node says to the entry node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// To a header that was believed.
    Answer(Answer),
    /// The flow is not known here, or not any more.
    Who,
}

/// Whether a datagram of an entry node may be a header.
pub fn is_header(datagram: &[u8]) -> bool {
    datagram.starts_with(&SIGNATURE)
}

// === impl Word ===

impl Word {
    /// On the wire.
    pub fn bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        bytes[SIGNATURE.len()] = match self {
            Word::Answer(answer) => answer.byte(),
            Word::Who => WHO,
        };
        bytes
    }

    /// From the wire; `None` for a datagram of the endpoint.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        match datagram.strip_prefix(&SIGNATURE)? {
            [WHO] => Some(Word::Who),
            [byte] => Answer::from_byte(*byte).map(Word::Answer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::outcome::Outcome;

    #[test]
    fn words_pass_the_wire_and_nothing_else_is_one() {
        let answers = [Answer::Connected, Answer::Failed(Outcome::ConnectRefused), Answer::Unknown].map(Word::Answer);
        for word in answers.into_iter().chain([Word::Who]) {
            assert_eq!(Word::parse(&word.bytes()), Some(word));
            assert_eq!(Word::parse(&[&word.bytes()[..], b"x"].concat()), None);
        }
        for datagram in [&b""[..], b"?", &SIGNATURE, &[&SIGNATURE[..], b"\x21"].concat()] {
            assert_eq!(Word::parse(datagram), None);
        }
        assert!(is_header(&SIGNATURE) && !is_header(b"\r\n\r\n"));
    }
}
