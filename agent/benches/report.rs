//! What the reporting thread pays for a record, and what a worker pays for making one.
//!
//!     cargo bench -p portico-agent --bench report

use std::{
    hint::black_box,
    rc::Rc,
    sync::{Arc, mpsc::sync_channel},
    time::Instant,
};

use agent::{
    report::{
        access_log,
        clock::Clock,
        metrics::Metrics,
        outcome::Outcome,
        record::{Record, Reporter, RequestRecord},
        span,
        trace::{Sampling, TraceState},
    },
    table::FrontendKind,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::Request;
use opentelemetry::{InstrumentationScope, metrics::MeterProvider};
use runtime::telemetry::{Telemetry, settings::Settings};

#[allow(dead_code, reason = "the bench needs some of the records that the tests know")]
#[path = "../tests/report/fixture.rs"]
mod fixture;

/// Records in a batch, as workers hand them over.
const BATCH: usize = 128;

/// A batch of requests over a kept connection to an endpoint of one target.
fn batch() -> Vec<Record> {
    let mut request: RequestRecord = fixture::request(Instant::now());
    request.attempts[0].reused = true;
    (0..BATCH).map(|_| Record::Request(Box::new(request.clone()))).collect()
}

fn report(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("report");
    group.throughput(Throughput::Elements(BATCH as u64));
    let component = Telemetry::new(Settings::disabled()).and_then(|telemetry| telemetry.component("bench", Vec::new()));
    let component = component.expect("telemetry that exports nothing can always be set up");
    let mut metrics = Metrics::new(&component.meter_provider.meter("bench"));
    group.bench_function("metrics of 128 requests", |bench| {
        let count = |batch: Vec<Record>| batch.into_iter().for_each(|record| metrics.record(&record));
        bench.iter_batched(batch, count, BatchSize::SmallInput);
    });
    group.bench_function("lines of 128 requests", |bench| {
        let (records, clock, mut out) = (batch(), Clock::now(), Vec::new());
        bench.iter(|| {
            out.clear();
            records.iter().for_each(|record| access_log::line(record, &clock, "worker-1", &mut out));
            black_box(out.len())
        });
    });
    group.bench_function("spans of 128 requests", |bench| {
        let (records, clock) = (batch(), Clock::now());
        let scope = InstrumentationScope::builder("bench").build();
        bench.iter(|| {
            records.iter().for_each(|record| span::spans(record, &clock, &scope, |span| drop(black_box(span))));
        });
    });
    group.finish();
}

fn record(criterion: &mut Criterion) {
    let request = Request::get("/cart?id=7").header("host", "web.shop").header("user-agent", "curl/8.5").body(());
    let request = request.expect("the request is well formed");
    let downstream = fixture::downstream(FrontendKind::NodePort);
    for (name, detail) in [("record", false), ("record with detail", true)] {
        let (queue, records) = sync_channel(1);
        let reporter = Reporter::new(queue, Arc::default(), TraceState::new(Sampling::OFF)).with_detail(detail);
        let reporter = Rc::new(reporter);
        criterion.bench_function(name, |bench| {
            bench.iter(|| {
                reporter.request(downstream.clone(), &request, None).close(Outcome::Complete);
                // Emptied at once, so that no batch finds the queue full.
                drop(records.try_recv());
            });
        });
    }
}

criterion_group!(benches, report, record);
criterion_main!(benches);
