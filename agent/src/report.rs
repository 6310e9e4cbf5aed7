//! What happened, told once: a record per connection and per request, from which trace, metric and log all come.

pub mod outcome;
pub mod trace;
pub mod method;
pub mod record;
