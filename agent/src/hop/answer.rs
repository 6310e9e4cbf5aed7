//! What the exit node says before the bytes of the endpoint: one byte, so that the entry node knows whether it may send what
//! the client sends, or has to take another way.
//!
//! A header that is refused gets no answer: whoever sent it is told nothing.

use crate::report::outcome::Outcome;

/// The answer to a header that was believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The endpoint is connected; what follows is its bytes.
    Connected,
    /// Connecting to the endpoint failed in this way.
    Failed(Outcome),
    /// The exit node does not know the endpoint as one of its own.
    Unknown,
}

// === impl Answer ===

impl Answer {
    /// On the wire.
    pub fn byte(self) -> u8 {
        match self {
            Answer::Connected => 1,
            Answer::Failed(Outcome::ConnectRefused) => 2,
            Answer::Failed(Outcome::ConnectTimeout) => 3,
            Answer::Failed(_) => 4,
            Answer::Unknown => 5,
        }
    }

    /// From the wire; `None` for what only a later release could mean.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Answer::Connected,
            2 => Answer::Failed(Outcome::ConnectRefused),
            3 => Answer::Failed(Outcome::ConnectTimeout),
            4 => Answer::Failed(Outcome::ConnectFailed),
            5 => Answer::Unknown,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_pass_the_wire() {
        let failed = [Outcome::ConnectRefused, Outcome::ConnectTimeout, Outcome::ConnectFailed].map(Answer::Failed);
        for answer in failed.into_iter().chain([Answer::Connected, Answer::Unknown]) {
            assert_eq!(Answer::from_byte(answer.byte()), Some(answer));
        }
        assert_eq!(Answer::from_byte(0), None);
        assert_eq!(Answer::from_byte(b'H'), None, "as a server of something else would begin");
    }
}
