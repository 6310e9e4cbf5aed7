//! Replies kept for as long as they may live: bounded, the oldest goes first. One for each worker, so nobody waits for it.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use hickory_proto::op::Query;

use super::{reply::Reply, upstream::Failure};

/// What one worker keeps at most, in bytes of messages.
const BYTES: usize = 8 << 20;

/// What an entry takes beside its message: twice its key, and the tables.
const OVERHEAD: usize = 512;

/// What a reply depends on. Names compare without case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Name, type and class.
    pub query: Query,
    /// Signatures are wanted.
    pub dnssec_ok: bool,
    /// What does not verify is wanted as well.
    pub checking_disabled: bool,
}

/// How asking ended.
pub type Outcome = Result<Rc<Reply>, Failure>;

/// What was learned, and when.
#[derive(Clone, Debug)]
pub struct Learned {
    /// How asking ended.
    pub outcome: Outcome,
    /// When it did.
    pub at: Instant,
}

/// The cache of one worker.
#[derive(Debug)]
pub struct Cache {
    /// Keys come from strangers, so they are hashed with a secret.
    entries: HashMap<Question, (Learned, Instant)>,
    /// The order in which keys came.
    order: VecDeque<Question>,
    bytes: usize,
    capacity: usize,
}

// === impl Cache ===

impl Default for Cache {
    fn default() -> Self {
        Self::new(BYTES)
    }
}

impl Cache {
    /// A cache of so many bytes.
    pub fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), bytes: 0, capacity }
    }

    /// What is known, if it is not too old.
    pub fn get(&self, question: &Question, now: Instant) -> Option<Learned> {
        let (learned, until) = self.entries.get(question)?;
        (now < *until).then(|| learned.clone())
    }

    /// Keeps what was learned for `lifetime`.
    pub fn insert(&mut self, question: Question, learned: Learned, lifetime: Duration) {
        if lifetime.is_zero() {
            return;
        }
        let until = learned.at + lifetime;
        self.bytes += size(&learned);
        match self.entries.insert(question.clone(), (learned, until)) {
            Some((before, _)) => self.bytes -= size(&before),
            None => self.order.push_back(question),
        }
        while self.bytes > self.capacity {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some((learned, _)) = self.entries.remove(&oldest) {
                self.bytes -= size(&learned);
            }
        }
    }

    /// Number of entries, also of those that are too old.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn size(learned: &Learned) -> usize {
    OVERHEAD + learned.outcome.as_ref().map_or(0, |reply| reply.size())
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn question(name: &str) -> Question {
        let query = Query::query(Name::from_ascii(name).expect("a name"), RecordType::A);
        Question { query, dnssec_ok: false, checking_disabled: false }
    }

    fn learned(at: Instant) -> Learned {
        Learned { outcome: Err(Failure::Unanswered), at }
    }

    #[test]
    fn an_answer_is_kept_for_its_lifetime_and_found_in_any_spelling() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.insert(question("a."), learned(now), Duration::from_secs(5));
        assert!(cache.get(&question("A."), now + Duration::from_secs(4)).is_some());
        assert!(cache.get(&question("a."), now + Duration::from_secs(5)).is_none());
        assert!(cache.get(&Question { dnssec_ok: true, ..question("a.") }, now).is_none());
        cache.insert(question("b."), learned(now), Duration::ZERO);
        assert!(cache.get(&question("b."), now).is_none());
    }

    #[test]
    fn the_oldest_goes_when_there_is_no_room() {
        let (mut cache, now) = (Cache::new(3 * OVERHEAD), Instant::now());
        for name in ["a.", "b.", "a.", "c.", "d."] {
            cache.insert(question(name), learned(now), Duration::from_secs(60));
        }
        assert_eq!((cache.len(), cache.order.len(), cache.bytes), (3, 3, 3 * OVERHEAD));
        assert!(cache.get(&question("a."), now).is_none());
        assert!(["b.", "c.", "d."].iter().all(|name| cache.get(&question(name), now).is_some()));
    }
}
