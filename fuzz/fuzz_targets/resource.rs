//! A resource as the gateway sends it: whatever an agent accepts, it can write again, and reads back as the same.

#![no_main]

use api::resource::{Kind, Resource};
use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((selector, body)) = data.split_first() else { return Corpus::Reject };
    let kind = Kind::ALL[usize::from(*selector) % Kind::ALL.len()];
    let Ok(resource) = Resource::decode(kind, Bytes::copy_from_slice(body)) else { return Corpus::Keep };
    assert_eq!(resource.key().kind, kind);
    let canonical = Bytes::from(resource.encode());
    let again = Resource::decode(kind, canonical.clone()).expect("what was encoded decodes");
    assert_eq!(again.key(), resource.key());
    assert_eq!(again.encode(), canonical, "the canonical encoding is not a fixed point");
    Corpus::Keep
});
