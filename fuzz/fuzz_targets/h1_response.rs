//! Answers of endpoints: whatever they send, a client gets a head that is one, and a body that ends where the head says.

#![no_main]

use agent::http1::{body::Decoder, chunked::Piece, framing::Framing, lines::Lines, response};
use bytes::BytesMut;
use http::Method;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((selector, bytes)) = data.split_first() else { return Corpus::Reject };
    let method = if selector % 2 == 0 { Method::GET } else { Method::HEAD };
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(head)) = response::take(&mut buffer, &mut Lines::default(), &method) else { return Corpus::Keep };
    assert!(method == Method::GET || head.framing == Framing::Empty, "an answer to HEAD has a body");
    let (mut decoder, available, mut read) = (Decoder::new(head.framing), buffer.len(), 0);
    let complete = loop {
        match decoder.next(&mut buffer) {
            Ok(Piece::Data(piece)) => {
                assert!(!piece.is_empty(), "a piece without data");
                read += piece.len();
            }
            Ok(Piece::End(_)) => break true,
            Ok(Piece::Partial) => break decoder.close(),
            Err(_) => break false,
        }
    };
    assert!(read <= available);
    match head.framing {
        Framing::Length(length) => assert_eq!(complete, read as u64 == length),
        Framing::Empty => assert_eq!((complete, read), (true, 0)),
        Framing::UntilClose => assert!(complete && read == available && !head.persists),
        Framing::Chunked => assert_eq!(complete, decoder.is_done()),
    }
    Corpus::Keep
});
