//! Portico beside HAProxy and nginx: the same work through each, and what each spends on it.
//!
//! The figure that is compared is processor time of the proxy per request, over all its threads, from the scheduler's
//! own accounting. Requests per second depend on what else the machine does, and on the backends and the clients,
//! which share it; processor time hardly does. A proxy is pinned to one core and told to use one thread, backends
//! and clients are pinned to another, and rounds are interleaved (A B C A B C), so that a slow spell of the machine
//! meets all alike. Every answer is checked; one wrong answer or one failed connection fails the run.
//!
//! Nothing here knows how Portico works: the three proxies differ in `proxy` only.

/// The servers behind the proxies.
pub mod backend;
/// Processor time of a process and its children, and which processors may be used.
pub mod cpu;
/// The clients in front of them, and what they count.
pub mod load;
/// Child processes on one processor that do not outlive the harness.
pub mod process;
/// The proxies under comparison, each configured to do the same work.
pub mod proxy;
/// What DNS spends on a question.
pub mod dns;
/// Medians, ratios, the table and the JSON file.
pub mod report;
/// One measured round, and the interleaved series of them.
pub mod round;
/// What is asked of a proxy: five kinds of traffic, with their sizes and ports.
pub mod scenario;
