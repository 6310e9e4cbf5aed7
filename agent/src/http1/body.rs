//! Reading a body, however it is framed.

use bytes::BytesMut;

use super::{
    Refused,
    chunked::{Chunked, Piece},
    framing::Framing,
};

/// Where in a body the reader is.
#[derive(Debug)]
pub enum Decoder {
    /// So many bytes are left; 0 once the body is over.
    Length(u64),
    /// Chunks.
    Chunked(Box<Chunked>),
    /// Everything until the end of the connection; `true` once that has come.
    UntilClose(bool),
}

// === impl Decoder ===

impl Decoder {
    /// Reads a body of this framing.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Decoder::Length(0),
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => Decoder::Chunked(Box::default()),
            Framing::UntilClose => Decoder::UntilClose(false),
        }
    }

    /// Takes the next piece off the front of `buffer`.
    ///
    /// # Errors
    /// [`Refused`] on malformed chunks.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, Refused> {
        match self {
            Decoder::Length(0) | Decoder::UntilClose(true) => Ok(Piece::End(None)),
            Decoder::Chunked(chunked) => chunked.next(buffer),
            Decoder::Length(_) | Decoder::UntilClose(_) if buffer.is_empty() => Ok(Piece::Partial),
            Decoder::UntilClose(_) => Ok(Piece::Data(buffer.split().freeze())),
            Decoder::Length(left) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= here as u64;
                Ok(Piece::Data(buffer.split_to(here).freeze()))
            }
        }
    }

    /// Takes note that the connection ended after all that was read; `false` if the body was not complete.
    pub fn close(&mut self) -> bool {
        if let Decoder::UntilClose(closed) = self {
            *closed = true;
        }
        self.is_done()
    }

    /// The body is over.
    pub fn is_done(&self) -> bool {
        match self {
            Decoder::Length(left) => *left == 0,
            Decoder::Chunked(chunked) => chunked.is_done(),
            Decoder::UntilClose(closed) => *closed,
        }
    }

    /// Bytes left, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Decoder::Length(left) => Some(*left),
            Decoder::Chunked(chunked) => chunked.is_done().then_some(0),
            Decoder::UntilClose(closed) => closed.then_some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_leave_what_follows() {
        let mut decoder = Decoder::new(Framing::Length(5));
        let mut buffer = BytesMut::from("hel");
        assert!(matches!(decoder.next(&mut buffer), Ok(Piece::Data(data)) if data == "hel"));
        assert!(matches!(decoder.next(&mut buffer), Ok(Piece::Partial)));
        assert_eq!((decoder.left(), decoder.close()), (Some(2), false));
        buffer.extend_from_slice(b"loGET");
        assert!(matches!(decoder.next(&mut buffer), Ok(Piece::Data(data)) if data == "lo"));
        assert!(decoder.is_done());
        assert!(matches!(decoder.next(&mut buffer), Ok(Piece::End(None))));
        assert_eq!(buffer, "GET");
    }

    #[test]
    fn the_end_of_the_connection_ends_only_what_has_no_other_end() {
        let mut decoder = Decoder::new(Framing::UntilClose);
        let mut buffer = BytesMut::from("all");
        assert!(matches!(decoder.next(&mut buffer), Ok(Piece::Data(data)) if data == "all"));
        assert!(!decoder.is_done() && decoder.close());
        assert!(matches!(decoder.next(&mut buffer), Ok(Piece::End(None))));
        assert!(!Decoder::new(Framing::Chunked).close());
        assert!(Decoder::new(Framing::Empty).close());
    }
}
