//! What of a record is an error, for spans, metrics and logs alike.
//!
//! The conventions differ by side: a server is not to blame for a 404, its client has failed all the same.

use std::borrow::Cow;

use super::{
    outcome::{Outcome, Side},
    record::{Attempt, Record, RequestRecord},
};

/// Names of the gRPC status codes, in their order.
const RPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Statuses that are the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const RPC_SERVER_ERRORS: [u8; 6] = [2, 4, 12, 13, 14, 15];

/// `rpc.status_code`.
pub fn rpc_status(status: u8) -> &'static str {
    RPC_STATUS.get(usize::from(status)).copied().unwrap_or("UNKNOWN")
}

/// The grpc-status of a call: that of its answer, else that of the answer Portico made. `None` if it is no call, or its
/// answer had none.
pub fn grpc_status(record: &RequestRecord) -> Option<u8> {
    if !record.grpc {
        return None;
    }
    let own = (record.outcome != Outcome::Complete).then(|| record.outcome.grpc_status());
    record.grpc_status.or(own)
}

/// `error.type` of a request, on the side of the server; `None` if it succeeded, or the client alone is to blame for an
/// answer that was made.
pub fn request_error(record: &RequestRecord) -> Option<Cow<'static, str>> {
    if let Some(error) = record.outcome.error_type() {
        return Some(error.into());
    }
    match grpc_status(record) {
        Some(status) if RPC_SERVER_ERRORS.contains(&status) => Some(rpc_status(status).into()),
        _ if record.status >= 500 => Some(record.status.to_string().into()),
        _ => None,
    }
}

/// Whether the span of a request has failed: answers from 500 on, calls that are the server's fault, and answers that were not
/// finished. A request that Portico refuses with 4xx has an `error.type`, but its server did what it should.
pub fn request_failed(record: &RequestRecord) -> bool {
    match grpc_status(record) {
        Some(status) if record.outcome == Outcome::Complete => RPC_SERVER_ERRORS.contains(&status),
        _ => {
            let is_unfinished = record.outcome == Outcome::ClientClosed
                || (record.outcome.error_type().is_some() && record.status < 400);
            record.status >= 500 || is_unfinished
        }
    }
}

/// `error.type` of an attempt, on the side of the client. What the client behind it did is no failure of the endpoint.
pub fn attempt_error(record: &RequestRecord, attempt: &Attempt) -> Option<Cow<'static, str>> {
    if attempt.outcome.side() == Side::Downstream {
        return None;
    }
    if let Some(error) = attempt.outcome.error_type() {
        return Some(error.into());
    }
    if let Some(status) = attempt.status.filter(|status| *status >= 400) {
        return Some(status.to_string().into());
    }
    let answered = if record.outcome == Outcome::Complete { grpc_status(record) } else { None };
    answered.filter(|status| *status != 0).map(|status| rpc_status(status).into())
}

/// Whether a record belongs into a log of errors.
pub fn is_error(record: &Record) -> bool {
    match record {
        Record::Connection(record) => record.outcome.error_type().is_some(),
        Record::Request(record) => record.status >= 500 || request_error(record).is_some(),
    }
}
