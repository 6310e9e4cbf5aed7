//! The header in all its forms, and who decides what is sampled.

use super::*;

const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn parse(value: &str) -> Option<SpanContext> {
    SpanContext::parse(value.as_bytes())
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value);
    }
    headers
}

#[test]
fn a_context_is_read_and_written() {
    let context = parse(VALID).unwrap();
    let (trace, span) = (0x0af7651916cd43dd8448eb211c80319c, 0xb7ad6b7169203331);
    assert_eq!(context, SpanContext { trace, span, parent: 0, sampled: true, random: false });
    assert_eq!(context.traceparent(context.span), VALID.as_bytes());
    for (flags, sampled, random) in [("00", false, false), ("02", false, true), ("03", true, true), ("fd", true, false)]
    {
        let context = parse(&format!("{}{flags}", &VALID[..53])).unwrap();
        assert_eq!((context.sampled, context.random), (sampled, random), "{flags}");
    }
    assert_eq!(&context.trace_hex(), b"0af7651916cd43dd8448eb211c80319c");
    assert_eq!(&context.span_hex(), b"b7ad6b7169203331");
}

#[test]
fn later_versions_are_read_as_far_as_known() {
    for value in [format!("cc{}", &VALID[2..]), format!("cc{}-what-the-future-brings", &VALID[2..])] {
        assert_eq!(parse(&value), parse(VALID), "{value}");
    }
}

#[test]
fn invalid_forms_are_refused() {
    let replace = |at: usize, with: &str| format!("{}{with}{}", &VALID[..at], &VALID[at + with.len()..]);
    let cases = [
        String::new(),
        VALID[..54].to_owned(),
        format!("{VALID}-"),
        format!("{VALID}0"),
        format!(" {VALID}"),
        format!("{VALID} "),
        replace(0, "ff"),
        replace(0, "0x"),
        format!("cc{}.01", &VALID[2..]),
        VALID.to_uppercase(),
        replace(2, "_"),
        replace(35, "_"),
        replace(52, "_"),
        replace(3, "00000000000000000000000000000000"),
        replace(36, "0000000000000000"),
        replace(10, "g"),
        replace(40, "G"),
        replace(53, "0."),
        replace(12, "é"),
    ];
    for value in cases {
        assert_eq!(parse(&value), None, "{value:?}");
    }
}

#[test]
fn two_headers_are_no_context() {
    assert!(SpanContext::extract(&headers(&[("traceparent", VALID)])).is_some());
    assert_eq!(SpanContext::extract(&headers(&[("traceparent", VALID), ("traceparent", VALID)])), None);
    assert_eq!(SpanContext::extract(&headers(&[])), None);
}

#[test]
fn only_a_trusted_peer_is_a_parent() {
    let received = headers(&[("traceparent", VALID)]);
    assert_eq!(continue_or_restart(&received, true), (parse(VALID), None));
    assert_eq!(continue_or_restart(&received, false), (None, parse(VALID)));
}

#[test]
fn a_parent_decides_or_the_ratio_does() {
    let state = |requests, parent_based| TraceState::new(Sampling { requests, connections: 0.0, parent_based });
    for flag in [true, false] {
        let parent = SpanContext { sampled: flag, ..parse(VALID).unwrap() };
        let child = state(0.5, true).request(Some(parent));
        assert_eq!((child.trace, child.parent, child.sampled), (parent.trace, parent.span, flag));
        assert!(child.span != parent.span && child.span != 0);
        assert!(state(1.0, false).request(Some(parent)).sampled);
        assert!(!state(0.0, false).request(Some(parent)).sampled);
    }
    assert!(state(1.0, true).request(None).sampled);
    assert!(!state(1.0, true).root(true).sampled, "connections have a ratio of their own");
    let root = state(1.0, true).root(false);
    assert!(root.parent == 0 && root.trace != 0 && root.random);
}

#[test]
fn a_ratio_is_about_that_share_of_traces() {
    let traces = TraceState::new(Sampling { requests: 0.25, connections: 0.0, parent_based: true });
    let sampled = (0..10_000).filter(|_| traces.root(false).sampled).count();
    // Six standard deviations around 2,500.
    assert!((2240..2760).contains(&sampled), "{sampled}");
}

#[test]
fn what_a_stranger_sent_does_not_reach_the_endpoint() {
    let sent = [("traceparent", VALID), ("tracestate", "a=1"), ("baggage", "user=7"), ("accept", "*/*")];
    let traces = TraceState::new(Sampling { requests: 1.0, connections: 1.0, parent_based: true });
    for (traces, trusted, injected, kept) in [
        (traces, true, true, 4),
        (traces, false, true, 2),
        (TraceState::off(), true, false, 4),
        (TraceState::off(), false, true, 2),
    ] {
        let mut headers = headers(&sent);
        let context = traces.request(None);
        traces.inject(&mut headers, context, 7, trusted);
        let expected = if injected { context.traceparent(7).to_vec() } else { VALID.as_bytes().to_vec() };
        assert_eq!(headers[TRACEPARENT].as_bytes(), expected);
        assert_eq!(headers.len(), kept, "{headers:?}");
    }
}

#[test]
fn ratios_follow_the_environment() {
    let asked = |ratio| Sampling::asked(runtime::telemetry::settings::Sampling { ratio, parent_based: true });
    assert_eq!(asked(None), DEFAULT_RATIOS);
    assert_eq!(asked(Some(0.5)), Sampling { requests: 0.5, connections: 0.5, parent_based: true });
}
