//! Trace contexts: W3C headers in and out, ids, and the decision what is sampled.

/// Identity of a span, as `traceparent` carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanContext {
    /// Trace id, not 0 in a valid context.
    pub trace: u128,
    /// Span id, not 0 in a valid context.
    pub span: u64,
    /// Span id of the parent, 0 for a root.
    pub parent: u64,
    /// The span is recorded.
    pub sampled: bool,
}

/// How spans are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Share of requests without a trusted parent, 0 to 1.
    pub requests: f64,
    /// Share of connections and flows, 0 to 1.
    pub connections: f64,
    /// A trusted parent decides for its children.
    pub parent_based: bool,
}

/// Makes contexts for one worker.
#[derive(Clone, Copy, Debug)]
pub struct TraceState {
    sampling: Sampling,
}

// === impl Sampling ===

impl Sampling {
    /// Nothing is sampled; ids are made all the same, because logs carry them.
    pub const OFF: Sampling = Sampling { requests: 0.0, connections: 0.0, parent_based: false };
}

// === impl TraceState ===

impl TraceState {
    /// Samples as told.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling }
    }

    /// A new trace; `connection` tells the two ratios apart.
    pub fn root(&self, connection: bool) -> SpanContext {
        let trace = u128::from(fastrand::u64(1..)) << 64 | u128::from(fastrand::u64(..));
        let ratio = if connection { self.sampling.connections } else { self.sampling.requests };
        SpanContext { trace, span: self.span(), parent: 0, sampled: sampled(trace, ratio) }
    }

    /// The context of a request, in the trace of a trusted parent if there is one.
    pub fn request(&self, parent: Option<SpanContext>) -> SpanContext {
        let Some(parent) = parent else { return self.root(false) };
        let sampled =
            if self.sampling.parent_based { parent.sampled } else { sampled(parent.trace, self.sampling.requests) };
        SpanContext { trace: parent.trace, span: self.span(), parent: parent.span, sampled }
    }

    /// A span id.
    pub fn span(&self) -> u64 {
        fastrand::u64(1..)
    }
}

/// TraceIdRatioBased: the low 63 bits of the trace id against the ratio, so that all who see the trace agree.
fn sampled(trace: u128, ratio: f64) -> bool {
    ratio >= 1.0 || ((trace as u64) >> 1) < (ratio.max(0.0) * (1u64 << 63) as f64) as u64
}
