//! A directory of manifests as a source.

pub mod parse;
