//! No record is lost without a number.

use std::{
    io::{self, Write},
    rc::Rc,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

use agent::{
    report::{
        access_log::AccessLog,
        export::{NodeIdentity, Reporting, start_with},
        outcome::Outcome,
        record::{Record, Reporter, Shard, Slot},
        trace::{Sampling, TraceState},
    },
    table::FrontendKind,
};
use http::Request;
use runtime::telemetry::{Component, Telemetry, settings::Settings};

use crate::fixture::downstream;

/// Batches that the queue holds.
const QUEUE: u64 = 1024;

fn component() -> Component {
    Telemetry::new(Settings::disabled()).unwrap().component("portico-agent", Vec::new()).unwrap()
}

fn reporting(component: &Component, lines: impl Write + Send + 'static) -> Reporting {
    start_with(component, NodeIdentity { name: "worker-1".into() }, AccessLog::All, lines).unwrap()
}

/// Closes a request and hands it over as a batch of its own.
fn close(reporter: &Rc<Reporter>) {
    let request = Request::get("/").body(()).unwrap();
    reporter.request(downstream(FrontendKind::NodePort), &request, None).close(Outcome::Complete);
    reporter.flush();
}

/// A log that takes nothing until it is told to.
struct Gate {
    entered: Sender<()>,
    open: Receiver<()>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gate {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // Once the other end is gone the gate stays open.
        let _ = self.entered.send(());
        let _ = self.open.recv();
        self.written.lock().unwrap().extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_queue_drops_the_newest_and_counts_them() {
    let (entered, entries) = channel();
    let (opener, open) = channel();
    let written = Arc::default();
    let component = component();
    let reporting = reporting(&component, Gate { entered, open, written: Arc::clone(&written) });
    let reporter = Rc::new(reporting.worker().into_reporter());
    let (full, extra) = (QUEUE + 1, 10);
    // The thread takes the first batch and gets stuck with its line; the queue takes as many as it has room for.
    close(&reporter);
    entries.recv().unwrap();
    (1..full + extra).for_each(|_| close(&reporter));
    let counts = reporting.records();
    assert_eq!((counts.closed, counts.exported, counts.dropped), (full + extra, 0, extra));
    assert_eq!(counts.queued(), full);
    drop(opener);
    let counts = reporting.shutdown();
    assert_eq!((counts.closed, counts.exported, counts.dropped, counts.queued()), (full + extra, full, extra, 0));
    let written = written.lock().unwrap();
    assert_eq!(written.iter().filter(|byte| **byte == b'\n').count() as u64, full);

    close(&reporter);
    let text = crate::metrics::scrape(&component);
    assert!(text.contains(&format!("portico_telemetry_records_total{{result=\"dropped\"}} {}", extra + 1)), "{text}");
}

#[test]
fn records_are_handed_over_by_batches_or_at_a_tick() {
    let (sender, receiver) = std::sync::mpsc::sync_channel(4);
    let shard = Arc::new(Shard::default());
    let reporter = Rc::new(Reporter::new(sender, shard, TraceState::new(Sampling::OFF)));
    let open = || reporter.request(downstream(FrontendKind::NodePort), &Request::get("/").body(()).unwrap(), None);
    (0..127).for_each(|_| open().close(Outcome::Complete));
    assert!(receiver.try_recv().is_err());
    // Dropped without a word: it still ends up in the records.
    drop(open());
    let batch = receiver.try_recv().unwrap();
    assert_eq!(batch.len(), 128);
    match &batch[127] {
        Record::Request(record) => assert_eq!(record.outcome, Outcome::Dropped),
        other => panic!("{other:?}"),
    }
    open().close(Outcome::Complete);
    reporter.flush();
    assert_eq!(receiver.try_recv().unwrap().len(), 1);
    reporter.flush();
    assert!(receiver.try_recv().is_err(), "an empty buffer is no batch");
}

#[test]
fn what_ends_with_its_worker_is_handed_over() {
    let (sender, receiver) = std::sync::mpsc::sync_channel(4);
    let shard = Arc::new(Shard::default());
    let reporter = Rc::new(Reporter::new(sender, shard.clone(), TraceState::new(Sampling::OFF)));
    let flow = reporter.connection(downstream(FrontendKind::ClusterIp), "udp");
    drop(reporter);
    drop(flow);
    let batch = receiver.try_recv().unwrap();
    let Record::Connection(record) = &batch[0] else { panic!("{batch:?}") };
    assert_eq!((batch.len(), record.protocol, record.outcome), (1, "udp", Outcome::Dropped));
    assert_eq!(shard.closed.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn only_what_will_be_read_is_kept() {
    for (detail, ratio, kept) in [(true, 0.0, true), (false, 0.0, false), (false, 1.0, true)] {
        let (sender, receiver) = std::sync::mpsc::sync_channel(4);
        let traces = TraceState::new(Sampling { requests: ratio, connections: ratio, parent_based: false });
        let reporter = Rc::new(Reporter::new(sender, Arc::default(), traces).with_detail(detail));
        let request = Request::get("/cart").header("host", "web.shop").body(()).unwrap();
        reporter.request(downstream(FrontendKind::NodePort), &request, None).close(Outcome::Complete);
        reporter.flush();
        let batch = receiver.try_recv().unwrap();
        let Record::Request(record) = &batch[0] else { panic!("{batch:?}") };
        assert_eq!((record.uri.path() == "/cart", record.authority.is_some()), (kept, kept), "{detail} {ratio}");
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_alone() {
    /// A closed pipe.
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let component = component();
    let reporting = reporting(&component, Closed);
    let reporter = Rc::new(reporting.worker().into_reporter());
    (0..5).for_each(|_| close(&reporter));
    let counts = reporting.shutdown();
    assert_eq!((counts.exported, counts.dropped), (5, 0));
}

#[test]
fn every_kind_of_connection_has_a_counter_of_its_own() {
    let shard = Shard::default();
    let mut counters: Vec<_> = Slot::all().map(|(slot, ..)| slot.pick(&shard.open) as *const _).collect();
    counters.sort();
    counters.dedup();
    assert_eq!(counters.len(), Slot::COUNT);
    for (slot, kind, transport) in Slot::all() {
        assert_eq!(slot, Slot::of(kind, transport == "udp"));
    }
}
