//! Metrics from records.
//!
//! Finding the series of a set of attributes costs more than counting in it, so each is looked up once and then held
//! (`series`). What must be exact whatever becomes of the queue is not counted from records but read from the workers'
//! shards when somebody asks (`shards`).

mod instruments;
mod series;
pub mod shards;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use api::resource::name::NamespacedName;
use foldhash::fast::RandomState;
use opentelemetry::metrics::Meter;

use self::{instruments::Instruments, series::Series};
use super::{
    outcome::Outcome,
    record::{ConnectionRecord, Record, RequestRecord},
};
use crate::table::Target;

/// Services whose series are held ready; beyond this many, those that left the table are let go.
const SERVICES: usize = 2048;

/// The instruments, and the series found so far. It belongs to the reporting thread.
pub struct Metrics {
    instruments: Instruments,
    /// By address of the target. The weak reference keeps the address from being used again, so it identifies the target.
    targets: HashMap<usize, (Weak<Target>, usize), RandomState>,
    services: HashMap<(NamespacedName, u16), usize, RandomState>,
    /// The first is of what was never routed.
    series: Vec<Series>,
}

// === impl Metrics ===

impl Metrics {
    /// Makes the instruments.
    pub fn new(meter: &Meter) -> Self {
        Self {
            instruments: Instruments::new(meter),
            targets: HashMap::default(),
            services: HashMap::default(),
            series: vec![Series::unrouted()],
        }
    }

    /// Counts a record.
    pub fn record(&mut self, record: &Record) {
        match record {
            Record::Request(record) => self.request(record),
            Record::Connection(record) => self.connection(record),
        }
    }

    fn request(&mut self, record: &RequestRecord) {
        let (series, instruments) = self.series(record.target.as_ref());
        series.request(instruments, record);
        for (at, attempt) in record.attempts.iter().enumerate() {
            series.request_attempt(instruments, record, attempt);
            series.connect(instruments, attempt, attempt.outcome, at + 1 < record.attempts.len());
        }
        series.bytes(instruments, record.received, record.sent);
    }

    fn connection(&mut self, record: &ConnectionRecord) {
        let (series, instruments) = self.series(record.target.as_ref());
        series.connection(instruments, record);
        for (at, attempt) in record.attempts.iter().enumerate() {
            let is_followed = at + 1 < record.attempts.len();
            // UDP learns of a refusal only after it has sent, so there the flow says it and not the attempt.
            let is_unsaid = !is_followed && attempt.outcome == Outcome::Complete;
            let outcome = if is_unsaid { record.outcome } else { attempt.outcome };
            series.connect(instruments, attempt, outcome, is_followed);
        }
        series.bytes(instruments, record.received, record.sent);
    }

    fn series(&mut self, target: Option<&Arc<Target>>) -> (&mut Series, &Instruments) {
        let at = match target {
            None => 0,
            Some(target) => match self.targets.get(&(Arc::as_ptr(target) as usize)) {
                Some((_, at)) => *at,
                None => self.find(target),
            },
        };
        (&mut self.series[at], &self.instruments)
    }

    /// The series of a target that is seen for the first time: a new Service, or a new table.
    #[cold]
    fn find(&mut self, target: &Arc<Target>) -> usize {
        if self.series.len() > SERVICES {
            // Starting over is rare and cheap: a series that is found again goes on where it was.
            self.targets.clear();
            self.services.clear();
            self.series.truncate(1);
        }
        // Targets of former tables go when there are as many of them as of this one.
        if self.targets.len() >= 2 * self.services.len().max(8) {
            self.targets.retain(|_, (target, _)| target.strong_count() > 0);
        }
        let service = (target.service.clone(), target.port);
        let at = *self.services.entry(service).or_insert_with(|| {
            self.series.push(Series::of(target));
            self.series.len() - 1
        });
        self.targets.insert(Arc::as_ptr(target) as usize, (Arc::downgrade(target), at));
        at
    }
}
