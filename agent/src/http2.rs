//! HTTP/2 as both sides of the proxy use it: what goes on around the codec of `h2`, with which a request stays in one task
//! from the stream of its client to that of its endpoint and back.

pub mod coalesce;
pub mod incoming;
pub mod outgoing;
pub mod bytes;
