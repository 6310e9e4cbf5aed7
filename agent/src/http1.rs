//! HTTP/1.1 as bytes, without IO: heads and bodies, in and out. Clients and endpoints speak it to the same code, so what
//! one side refuses cannot slip through the other.
//!
//! The parser takes one reading of a message or none. Every shape that two implementations are known to read
//! differently is refused instead of repaired: that is how requests are smuggled (RFC 9112 section 11.2).

pub mod lines;
pub mod framing;
pub mod request;
pub mod fields;
pub mod response;
pub mod chunked;
pub mod body;
pub mod write;

/// Why bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// They are not the protocol, or not for sure.
    #[error("{0}")]
    Malformed(&'static str),
    /// A head is longer than allowed, or has more fields.
    #[error("the head is too large")]
    TooLarge,
}

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes, with its empty line.
    pub bytes: usize,
    /// Number of fields.
    pub fields: usize,
}
