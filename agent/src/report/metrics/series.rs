//! The series of one Service port, each bound to its instrument at first use.

use std::{
    collections::HashMap,
    hash::Hash,
    mem::{Discriminant, discriminant},
};

use foldhash::fast::RandomState;
use opentelemetry::{
    KeyValue,
    metrics::{BoundCounter, BoundHistogram},
};

use super::instruments::Instruments;
use crate::{
    report::{
        attributes::{connect_error, protocol_version, scheme, transport},
        method::{self, METHODS},
        outcome::Outcome,
        record::{Attempt, ConnectionRecord, RequestRecord},
        verdict,
    },
    table::{FrontendKind, Locality, Target},
};

/// Series held for one instrument and Service. Endpoints choose statuses, so somebody could make more; then the handles
/// are let go and found again. What the instrument itself keeps is bounded by the SDK.
const HELD: usize = 256;

pub(super) struct Series {
    /// `portico.backend.service.name` and `.namespace`; empty if nothing was routed.
    service: Vec<KeyValue>,
    /// `server.address` and `server.port` of the endpoint's client.
    server: Vec<KeyValue>,
    requests: Held<RequestKey, BoundHistogram<f64>>,
    attempts: Held<AttemptKey, BoundHistogram<f64>>,
    connects: Held<ConnectKey, BoundHistogram<f64>>,
    failures: Held<&'static str, Failures>,
    connections: Held<ConnectionKey, (BoundCounter<u64>, BoundHistogram<f64>)>,
    io: Option<Io>,
}

/// What tells two series of requests apart. The `error.type` follows from the last three.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct RequestKey {
    method: u8,
    tls: bool,
    http2: bool,
    status: u16,
    grpc_status: Option<u8>,
    outcome: Discriminant<Outcome>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct AttemptKey {
    method: u8,
    status: Option<u16>,
    grpc_status: Option<u8>,
    outcome: Discriminant<Outcome>,
    request: Discriminant<Outcome>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ConnectKey {
    locality: Locality,
    error: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ConnectionKey {
    protocol: &'static str,
    kind: FrontendKind,
    outcome: Discriminant<Outcome>,
}

struct Failures {
    retries: BoundCounter<u64>,
    ejections: BoundCounter<u64>,
}

struct Io {
    received: BoundCounter<u64>,
    sent: BoundCounter<u64>,
}

// === impl Series ===

impl Series {
    /// Of what has no Service.
    pub(super) fn unrouted() -> Self {
        Self::with(Vec::new(), Vec::new())
    }

    /// Of one port of a Service.
    pub(super) fn of(target: &Target) -> Self {
        let (name, namespace) = (&target.service.name, &target.service.namespace);
        let service = vec![
            KeyValue::new("portico.backend.service.name", name.to_string()),
            KeyValue::new("portico.backend.service.namespace", namespace.to_string()),
        ];
        let server = vec![
            KeyValue::new("server.address", format!("{name}.{namespace}.svc")),
            KeyValue::new("server.port", i64::from(target.port)),
        ];
        Self::with(service, server)
    }

    fn with(service: Vec<KeyValue>, server: Vec<KeyValue>) -> Self {
        Self {
            service,
            server,
            requests: Held::default(),
            attempts: Held::default(),
            connects: Held::default(),
            failures: Held::default(),
            connections: Held::default(),
            io: None,
        }
    }

    /// Counts a request.
    pub(super) fn request(&mut self, instruments: &Instruments, record: &RequestRecord) {
        let key = RequestKey {
            method: method::index(&record.method) as u8,
            tls: record.downstream.tls,
            http2: record.http2,
            status: record.status,
            grpc_status: record.grpc_status.filter(|_| record.grpc),
            outcome: discriminant(&record.outcome),
        };
        let bound = self.requests.get(key, || {
            let mut attributes = self.service.clone();
            attributes.push(KeyValue::new("http.request.method", METHODS[usize::from(key.method)]));
            attributes.push(KeyValue::new("url.scheme", scheme(key.tls)));
            attributes.push(KeyValue::new("network.protocol.version", protocol_version(key.http2)));
            if record.status != 0 {
                attributes.push(KeyValue::new("http.response.status_code", i64::from(record.status)));
            }
            if let Some(error) = verdict::request_error(record) {
                attributes.push(KeyValue::new("error.type", error));
            }
            if record.outcome != Outcome::Complete {
                attributes.push(KeyValue::new("portico.reason", record.outcome.reason()));
            }
            instruments.server_duration.bind(&attributes)
        });
        bound.record(record.took.as_secs_f64());
    }

    /// Counts an attempt at a request.
    pub(super) fn request_attempt(&mut self, instruments: &Instruments, record: &RequestRecord, attempt: &Attempt) {
        let key = AttemptKey {
            method: method::index(&record.method) as u8,
            status: attempt.status,
            grpc_status: record.grpc_status.filter(|_| record.grpc),
            outcome: discriminant(&attempt.outcome),
            request: discriminant(&record.outcome),
        };
        let bound = self.attempts.get(key, || {
            let mut attributes = self.server.clone();
            attributes.push(KeyValue::new("http.request.method", METHODS[usize::from(key.method)]));
            if let Some(status) = attempt.status {
                attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
            }
            if let Some(error) = verdict::attempt_error(record, attempt) {
                attributes.push(KeyValue::new("error.type", error));
            }
            instruments.client_duration.bind(&attributes)
        });
        bound.record(attempt.took.as_secs_f64());
    }

    /// Counts the connecting of an attempt that ended as `outcome`, and that it was in vain if another followed.
    pub(super) fn connect(
        &mut self,
        instruments: &Instruments,
        attempt: &Attempt,
        outcome: Outcome,
        is_followed: bool,
    ) {
        let error = connect_error(attempt);
        if !attempt.reused {
            let key = ConnectKey { locality: attempt.backend.locality, error };
            let bound = self.connects.get(key, || {
                let mut attributes = self.service.clone();
                attributes.push(KeyValue::new("portico.backend.locality", key.locality.label()));
                attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
                instruments.connect_duration.bind(&attributes)
            });
            bound.record(attempt.connected.unwrap_or(attempt.took).as_secs_f64());
        }
        let is_ejected = outcome.is_before_send();
        if is_followed || is_ejected {
            let error = outcome.error_type().unwrap_or("_OTHER");
            let failures = self.failures.get(error, || {
                let mut attributes = self.service.clone();
                attributes.push(KeyValue::new("error.type", error));
                Failures {
                    retries: instruments.retries.bind(&attributes),
                    ejections: instruments.ejections.bind(&attributes),
                }
            });
            if is_followed {
                failures.retries.add(1);
            }
            if is_ejected {
                failures.ejections.add(1);
            }
        }
    }

    /// Counts a connection or flow.
    pub(super) fn connection(&mut self, instruments: &Instruments, record: &ConnectionRecord) {
        let kind = record.downstream.frontend;
        let key = ConnectionKey { protocol: record.protocol, kind, outcome: discriminant(&record.outcome) };
        let (closed, duration) = self.connections.get(key, || {
            let mut attributes = self.service.clone();
            attributes.push(KeyValue::new("network.transport", transport(key.protocol)));
            let duration = instruments.connection_duration.bind(&attributes);
            attributes.push(KeyValue::new("portico.listener.kind", kind.label()));
            attributes.push(KeyValue::new("portico.connection.close_reason", record.outcome.reason()));
            (instruments.connections_closed.bind(&attributes), duration)
        });
        closed.add(1);
        duration.record(record.took.as_secs_f64());
    }

    /// Counts bytes from and to a client.
    pub(super) fn bytes(&mut self, instruments: &Instruments, received: u64, sent: u64) {
        let io = self.io.get_or_insert_with(|| {
            let bind = |direction| {
                let mut attributes = self.service.clone();
                attributes.push(KeyValue::new("network.io.direction", direction));
                instruments.io.bind(&attributes)
            };
            Io { received: bind("receive"), sent: bind("transmit") }
        });
        if received > 0 {
            io.received.add(received);
        }
        if sent > 0 {
            io.sent.add(sent);
        }
    }
}

/// Handles by what tells their series apart.
struct Held<K, V>(HashMap<K, V, RandomState>);

// === impl Held ===

impl<K: Copy + Eq + Hash, V> Held<K, V> {
    fn get(&mut self, key: K, bind: impl FnOnce() -> V) -> &V {
        if self.0.len() >= HELD && !self.0.contains_key(&key) {
            self.0.clear();
        }
        self.0.entry(key).or_insert_with(bind)
    }
}

impl<K, V> Default for Held<K, V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}
