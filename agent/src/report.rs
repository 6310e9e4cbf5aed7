//! What happened, told once: a record per connection and per request, from which trace, metric and log all come.

pub mod outcome;
pub mod via;
pub mod trace;
pub mod method;
pub mod record;
pub mod clock;
pub mod url;
pub mod verdict;
pub mod attributes;
pub mod span;
pub mod access_log;
pub mod event;
pub mod metrics;
pub mod export;
