//! Trace contexts: W3C headers in and out, ids, and the decision what is sampled.
//!
//! Whether a received context is believed is not decided here: a context from a trusted peer is the parent of the
//! request, any other is only linked to (see [`continue_or_restart`]). Spans are made from records later, but their ids
//! are made here, because they go out with the request.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header of W3C Trace Context, level 2.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Its companion, which belongs to the trace and goes when the trace is restarted.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// W3C Baggage.
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Shares of traces that begin here if nobody asked for another: the volume at an edge allows few.
const DEFAULT_RATIOS: Sampling = Sampling { requests: 0.01, connections: 0.001, parent_based: true };

/// Length of a `traceparent` of version 00, and of the part of later versions that we understand.
const LENGTH: usize = 55;
const SAMPLED: u8 = 0x01;
/// The trace id was made at random, so samplers may rely on its bits (level 2).
const RANDOM: u8 = 0x02;

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
    /// The trace id is random.
    pub random: bool,
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
    exports: bool,
}

// === impl Sampling ===

impl Sampling {
    /// Nothing is sampled; ids are made all the same, because logs carry them.
    pub const OFF: Sampling = Sampling { requests: 0.0, connections: 0.0, parent_based: false };

    /// What the environment asks for. A ratio that is named holds for requests and connections.
    pub fn asked(asked: runtime::telemetry::settings::Sampling) -> Self {
        Self {
            requests: asked.ratio.unwrap_or(DEFAULT_RATIOS.requests),
            connections: asked.ratio.unwrap_or(DEFAULT_RATIOS.connections),
            parent_based: asked.parent_based,
        }
    }
}

// === impl SpanContext ===

impl SpanContext {
    /// Parses a `traceparent`. Every form that the specification calls invalid gives `None`; of a version that is not
    /// known yet the known part is used, as the specification says.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let version = hex(&known[0..2])?;
        let is_known = version == 0 && rest.is_empty();
        let is_later = version > 0 && version < 0xff && rest.first().is_none_or(|byte| *byte == b'-');
        if !is_known && !is_later || known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
            return None;
        }
        let (trace, span, flags) = (hex(&known[3..35])?, hex(&known[36..52])? as u64, hex(&known[53..55])? as u8);
        if trace == 0 || span == 0 {
            return None;
        }
        Some(Self { trace, span, parent: 0, sampled: flags & SAMPLED != 0, random: flags & RANDOM != 0 })
    }

    /// What a request carries in its `traceparent`. More than one is as good as none.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { Self::parse(value.as_bytes()) }
    }

    /// The `traceparent` of a request that is sent as `span` of this trace.
    pub fn traceparent(&self, span: u64) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(self.trace, &mut text[3..35]);
        write_hex(span.into(), &mut text[36..52]);
        let flags = if self.sampled { SAMPLED } else { 0 } | if self.random { RANDOM } else { 0 };
        write_hex(flags.into(), &mut text[53..55]);
        text
    }

    /// Trace id in lower case hex.
    pub fn trace_hex(&self) -> [u8; 32] {
        let mut text = [0; 32];
        write_hex(self.trace, &mut text);
        text
    }

    /// Span id in lower case hex.
    pub fn span_hex(&self) -> [u8; 16] {
        let mut text = [0; 16];
        write_hex(self.span.into(), &mut text);
        text
    }
}

/// Tells a received context by whether its sender is trusted: `(parent, link)`. A stranger can neither force sampling nor
/// write into a trace of ours, but the two can be found from each other.
pub fn continue_or_restart(headers: &HeaderMap, trusted: bool) -> (Option<SpanContext>, Option<SpanContext>) {
    let received = SpanContext::extract(headers);
    if trusted { (received, None) } else { (None, received) }
}

// === impl TraceState ===

impl TraceState {
    /// Samples as told.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, exports: true }
    }

    /// Nobody collects spans.
    pub fn off() -> Self {
        Self { sampling: Sampling::OFF, exports: false }
    }

    /// A new trace; `connection` tells the two ratios apart.
    pub fn root(&self, connection: bool) -> SpanContext {
        let trace = u128::from(fastrand::u64(1..)) << 64 | u128::from(fastrand::u64(..));
        let ratio = if connection { self.sampling.connections } else { self.sampling.requests };
        SpanContext { trace, span: self.span(), parent: 0, sampled: sampled(trace, ratio), random: true }
    }

    /// The context of a request, in the trace of a trusted parent if there is one.
    pub fn request(&self, parent: Option<SpanContext>) -> SpanContext {
        let Some(parent) = parent else { return self.root(false) };
        let sampled =
            if self.sampling.parent_based { parent.sampled } else { sampled(parent.trace, self.sampling.requests) };
        SpanContext { span: self.span(), parent: parent.span, sampled, ..parent }
    }

    /// A span id.
    pub fn span(&self) -> u64 {
        fastrand::u64(1..)
    }

    /// Whether the headers of a request need [`TraceState::inject`]. Where no span is exported, a trusted context passes
    /// unchanged: a parent that nobody collects would tear the trace.
    pub fn injects(&self, trusted: bool) -> bool {
        self.exports || !trusted
    }

    /// Writes the context into the headers of an attempt, which is `span` of the trace. What a stranger sent along goes.
    pub fn inject(&self, headers: &mut HeaderMap, context: SpanContext, span: u64, trusted: bool) {
        if !trusted {
            headers.remove(TRACESTATE);
            headers.remove(BAGGAGE);
        }
        if self.injects(trusted)
            && let Ok(mut value) = HeaderValue::from_bytes(&context.traceparent(span))
        {
            // No other request has the same, so the tables of HTTP/2 are kept free of it.
            value.set_sensitive(true);
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// TraceIdRatioBased: the low 63 bits of the trace id against the ratio, so that all who see the trace agree.
fn sampled(trace: u128, ratio: f64) -> bool {
    ratio >= 1.0 || ((trace as u64) >> 1) < (ratio.max(0.0) * (1u64 << 63) as f64) as u64
}

/// Parses lower case hex, up to 32 digits. Upper case is invalid by the specification.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Some(value << 4 | u128::from(digit - b'0')),
        b'a'..=b'f' => Some(value << 4 | u128::from(digit - b'a' + 10)),
        _ => None,
    })
}

/// Fills `out` with the lowest digits of `value`.
fn write_hex(mut value: u128, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 0xf) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests;
