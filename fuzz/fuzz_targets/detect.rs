//! The first bytes of a client: more bytes never change what it is taken for, and 24 of them always decide.

#![no_main]

use agent::listen::detect::{HTTP2_PREFACE, Opening, opening};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let known = opening(data);
    assert!(known.is_some() || data.len() < HTTP2_PREFACE.len());
    assert_eq!(known == Some(Opening::Http2), data.starts_with(HTTP2_PREFACE));
    for end in 0..data.len().min(HTTP2_PREFACE.len()) {
        let before = opening(&data[..end]);
        assert!(before.is_none() || before == known);
    }
});
