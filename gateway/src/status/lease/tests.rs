use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn wall() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

/// An elector, its clock, and the start of time.
struct Replica {
    elector: Elector,
    now: Instant,
    start: Instant,
}

impl Replica {
    fn new(identity: &str) -> Self {
        let now = Instant::now();
        Self { elector: Elector::new(identity, Timing::DEFAULT), now, start: now }
    }

    fn step(&mut self, observed: Observed) -> Action {
        // A renewal is seen by its time, so that has to differ.
        let wall = wall() + self.now.duration_since(self.start);
        self.elector.step(self.now, wall, observed)
    }

    fn leads(&self) -> bool {
        self.elector.leads_until(self.now).is_some()
    }

    /// Acquires a Lease that nobody holds.
    fn acquire(&mut self) -> Stored {
        let Action::Write(record, version) = self.step(Observed::Read(None)) else { panic!("writes") };
        assert_eq!(version, None, "there is none to replace");
        let stored = Stored { record, version: "1".to_owned() };
        assert_eq!(self.step(Observed::Written(stored.clone(), self.now)), Action::Wait);
        assert!(self.leads());
        stored
    }
}

fn held_by(holder: &str, seconds: i64) -> Stored {
    let record = Record {
        holder: Some(holder.to_owned()),
        duration: 15 * SECOND,
        acquired: wall(),
        renewed: Timestamp::from_second(seconds).expect("in range"),
        transitions: 3,
    };
    Stored { record, version: "7".to_owned() }
}

#[test]
fn a_lease_that_nobody_holds_is_taken_and_renewed_without_reading() {
    let mut replica = Replica::new("a");
    assert_eq!(replica.step(Observed::Tick), Action::Read);
    let stored = replica.acquire();
    assert_eq!((stored.record.transitions, stored.record.holder.as_deref()), (0, Some("a")));
    replica.now += 2 * SECOND;
    let Action::Write(renewal, version) = replica.step(Observed::Tick) else { panic!("renews") };
    assert_eq!((renewal.transitions, version.as_deref()), (0, Some("1")));
}

#[test]
fn the_lease_of_another_is_taken_only_when_it_did_not_change_for_its_duration_by_our_clock() {
    let mut replica = Replica::new("a");
    // Its times lie far in the past, which says nothing: their clock may be wrong.
    assert_eq!(replica.step(Observed::Read(Some(held_by("b", -100_000)))), Action::Wait);
    replica.now += 14 * SECOND;
    assert_eq!(replica.step(Observed::Read(Some(held_by("b", -99_998)))), Action::Wait, "it was renewed");
    replica.now += 14 * SECOND;
    let touched = Stored { version: "8".to_owned(), ..held_by("b", -99_998) };
    assert_eq!(replica.step(Observed::Read(Some(touched.clone()))), Action::Wait);
    replica.now += SECOND;
    let Action::Write(record, version) = replica.step(Observed::Read(Some(touched))) else { panic!("takes it") };
    assert_eq!((record.holder.as_deref(), record.transitions, version.as_deref()), (Some("a"), 4, Some("8")));
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let mut leader = Replica::new("b");
    leader.acquire();
    let (released, version) = leader.elector.release(leader.now, wall()).expect("leads");
    assert_eq!(version, "1");
    assert!(!leader.leads(), "it stops before it says so");
    let mut replica = Replica::new("a");
    let stored = Stored { record: released, version: "2".to_owned() };
    assert!(matches!(replica.step(Observed::Read(Some(stored))), Action::Write(..)));
}

#[test]
fn a_leader_that_cannot_renew_stops_at_the_deadline_counted_from_the_start_of_its_last_renewal() {
    let mut replica = Replica::new("a");
    let stored = replica.acquire();
    replica.now += 2 * SECOND;
    let began = replica.now;
    // The answer took three seconds.
    replica.now += 3 * SECOND;
    replica.step(Observed::Written(stored, began));
    assert_eq!(replica.elector.leads_until(replica.now), Some(began + 10 * SECOND));
    replica.now = began + 9 * SECOND;
    replica.step(Observed::Failed);
    assert!(replica.leads());
    replica.now += SECOND;
    assert!(!replica.leads());
    // An answer that comes later than the deadline does not count.
    replica.step(Observed::Written(held_by("a", 1), began));
    assert!(!replica.leads());
}

#[test]
fn a_stolen_lease_is_lost_as_soon_as_it_is_seen() {
    let mut replica = Replica::new("a");
    replica.acquire();
    replica.now += 2 * SECOND;
    assert_eq!(replica.step(Observed::Conflict), Action::Read);
    assert_eq!(replica.step(Observed::Read(Some(held_by("b", 0)))), Action::Wait);
    assert!(!replica.leads());
}

#[test]
fn after_a_write_of_unknown_outcome_the_lease_is_read_first() {
    let mut replica = Replica::new("a");
    replica.acquire();
    replica.step(Observed::Failed);
    assert!(replica.leads());
    assert_eq!(replica.step(Observed::Tick), Action::Read);
    assert!(
        matches!(replica.step(Observed::Read(Some(held_by("a", 1)))), Action::Write(_, Some(version)) if version == "7")
    );
}

/// What happens to one request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    /// It is carried out, and the answer is lost.
    Unheard,
    /// It never arrives.
    Lost,
}

/// A Lease as the API server keeps it.
#[derive(Default)]
struct Server {
    stored: Option<Stored>,
    writes: u64,
}

impl Server {
    fn write(&mut self, record: Record, version: Option<String>) -> Option<Stored> {
        if self.stored.as_ref().map(|stored| &stored.version) != version.as_ref() {
            return None;
        }
        self.writes += 1;
        self.stored = Some(Stored { record, version: self.writes.to_string() });
        self.stored.clone()
    }
}

/// One turn of a replica, as its loop would take it.
fn turn(replica: &mut Replica, server: &mut Server, fates: &mut impl Iterator<Item = Fate>, delay: Duration) {
    let mut action = replica.step(Observed::Tick);
    for _ in 0..4 {
        let fate = fates.next().unwrap_or(Fate::Answered);
        let began = replica.now;
        let observed = match (action, fate) {
            (Action::Wait, _) => return,
            (Action::Read, Fate::Answered) => Observed::Read(server.stored.clone()),
            (Action::Write(record, version), Fate::Answered) => match server.write(record, version) {
                Some(stored) => Observed::Written(stored, began),
                None => Observed::Conflict,
            },
            (Action::Write(record, version), Fate::Unheard) => {
                server.write(record, version);
                Observed::Failed
            }
            (Action::Read | Action::Write(..), _) => Observed::Failed,
        };
        replica.now += delay;
        action = replica.step(observed);
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![4 => Just(Fate::Answered), 1 => Just(Fate::Unheard), 1 => Just(Fate::Lost)]
}

proptest! {
    /// Whatever is lost, and however long anybody sleeps, no two lead at one time; and once everything works, somebody does.
    #[test]
    fn at_most_one_leads(
        turns in prop::collection::vec((0usize..3, 0u64..6_000, prop::collection::vec(fate(), 4), 0u64..4_000), 1..80),
    ) {
        let start = Instant::now();
        let mut replicas: Vec<_> = ["a", "b", "c"].into_iter().map(Replica::new).collect();
        let mut server = Server::default();
        let mut now = start;
        let check = |replicas: &[Replica], now: Instant| {
            let leaders = replicas.iter().filter(|replica| replica.elector.leads_until(now).is_some()).count();
            prop_assert!(leaders <= 1, "{} lead", leaders);
            Ok(())
        };
        for (who, pause, fates, delay) in turns {
            now += Duration::from_millis(pause);
            replicas[who].now = now;
            turn(&mut replicas[who], &mut server, &mut fates.into_iter(), Duration::from_millis(delay));
            now = now.max(replicas[who].now);
            check(&replicas, now)?;
        }
        for _ in 0..12 {
            now += 2 * SECOND;
            for replica in &mut replicas {
                replica.now = now;
                turn(replica, &mut server, &mut std::iter::empty(), Duration::ZERO);
            }
            check(&replicas, now)?;
        }
        prop_assert!(replicas.iter().any(|replica| replica.elector.leads_until(now).is_some()));
    }
}
