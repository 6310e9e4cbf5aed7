//! The state that streams read: one consistent set of encoded resources, its digests, and how it came to be.

pub mod store;
