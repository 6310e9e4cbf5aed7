//! What any process of ours needs, with no policy in it: option values, logs and telemetry, drain and shutdown,
//! backoff, readiness, the admin port. It knows nothing of Services, and nothing in it is global except the log
//! subscriber, which a process can have only one of.

/// Option values, parsed with every problem reported in one run.
pub mod args;

/// The log, and per component a tracer, a meter, a logger and a registry.
pub mod telemetry;

/// Telling everything to finish, and knowing when it has.
pub mod drain;

/// Signals to a drain with a deadline.
pub mod shutdown;

/// How long to wait before trying again.
pub mod backoff;

/// Named latches; ready when all are released.
pub mod ready;

/// A small HTTP port for probes and scrapers.
pub mod port;

/// The admin port: live, ready, metrics, dumps.
pub mod admin;
