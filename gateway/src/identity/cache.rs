//! What the API server said of tokens lately. Pure: the caller has the clock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{refusal::Refusal, review::Reviewed, token::Digest};

/// How long an answer stands for the next one.
const FRESH: Duration = Duration::from_secs(60);

/// How long a refusal does: short, because what was missing may have come.
const FRESH_REFUSAL: Duration = Duration::from_secs(5);

/// For how long an answer is remembered for the case that the API server cannot be asked. Nothing that it vouched for can
/// change meanwhile: whatever is deleted or revoked is so through the API server. Projected tokens live for an hour.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Tokens that were taken: two for each of the nodes of the largest cluster.
const MAX_TAKEN: usize = 10_000;

/// Tokens that were refused.
const MAX_REFUSED: usize = 1_000;

/// Answers by token.
#[derive(Debug, Default)]
pub struct Cache {
    taken: HashMap<Digest, (Instant, Reviewed)>,
    refused: HashMap<Digest, (Instant, Refusal)>,
}

// === impl Cache ===

impl Cache {
    /// An answer that need not be asked for again.
    pub fn fresh(&self, token: &Digest, now: Instant) -> Option<Result<Reviewed, Refusal>> {
        let is_fresh = |at: Instant, age| now.saturating_duration_since(at) < age;
        let taken = self.taken.get(token).filter(|(at, _)| is_fresh(*at, FRESH));
        let refused = self.refused.get(token).filter(|(at, _)| is_fresh(*at, FRESH_REFUSAL));
        let taken = taken.map(|(_, reviewed)| Ok(reviewed.clone()));
        taken.or_else(|| refused.map(|(_, refusal)| Err(refusal.clone())))
    }

    /// The last answer that vouched for a token, for when no new one can be had.
    pub fn remembered(&self, token: &Digest, now: Instant) -> Option<Reviewed> {
        let taken = self.taken.get(token).filter(|(at, _)| now.saturating_duration_since(*at) < REMEMBERED);
        taken.map(|(_, reviewed)| reviewed.clone())
    }

    /// Notes an answer.
    pub fn note(&mut self, token: Digest, answer: &Result<Reviewed, Refusal>, now: Instant) {
        match answer {
            Ok(reviewed) => {
                self.refused.remove(&token);
                make_room(&mut self.taken, MAX_TAKEN, REMEMBERED, now);
                self.taken.insert(token, (now, reviewed.clone()));
            }
            Err(refusal) => {
                self.taken.remove(&token);
                make_room(&mut self.refused, MAX_REFUSED, FRESH_REFUSAL, now);
                self.refused.insert(token, (now, refusal.clone()));
            }
        }
    }
}

/// Forgets what is too old, and if that is not enough the older half.
fn make_room<T>(answers: &mut HashMap<Digest, (Instant, T)>, max: usize, age: Duration, now: Instant) {
    if answers.len() < max {
        return;
    }
    answers.retain(|_, (at, _)| now.saturating_duration_since(*at) < age);
    if answers.len() < max {
        return;
    }
    let mut times: Vec<Instant> = answers.values().map(|(at, _)| *at).collect();
    let (_, median, _) = times.select_nth_unstable(max / 2);
    let median = *median;
    answers.retain(|_, (at, _)| *at > median);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::refusal::Reason;

    fn yes() -> Result<Reviewed, Refusal> {
        Ok(Reviewed { node: Some("n1".into()), pod: None })
    }

    fn no() -> Result<Reviewed, Refusal> {
        Err(Refusal::new(Reason::Rejected, "no"))
    }

    #[test]
    fn an_answer_is_fresh_for_a_minute_and_remembered_for_an_hour() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.note([1; 32], &yes(), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.fresh(&[1; 32], after(59)), Some(yes()));
        assert_eq!(cache.fresh(&[1; 32], after(60)), None);
        assert_eq!(cache.remembered(&[1; 32], after(3599)), yes().ok());
        assert_eq!(cache.remembered(&[1; 32], after(3600)), None);
        assert_eq!(cache.fresh(&[2; 32], start), None);
    }

    #[test]
    fn a_refusal_is_fresh_for_seconds_and_ends_what_was_remembered() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        cache.note([1; 32], &yes(), start);
        cache.note([1; 32], &no(), start);
        assert_eq!(cache.fresh(&[1; 32], start), Some(no()));
        assert_eq!(cache.remembered(&[1; 32], start), None);
        assert_eq!(cache.fresh(&[1; 32], start + FRESH_REFUSAL), None);
        cache.note([1; 32], &yes(), start);
        assert_eq!(cache.fresh(&[1; 32], start), Some(yes()));
    }

    #[test]
    fn it_is_bounded_and_keeps_the_newest() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let key = |index: usize| *blake3::hash(&index.to_le_bytes()).as_bytes();
        for index in 0..3 * MAX_REFUSED {
            let now = start + Duration::from_micros(index as u64);
            cache.note(key(index), &no(), now);
            assert!(cache.refused.len() <= MAX_REFUSED);
            assert_eq!(cache.fresh(&key(index), now), Some(no()));
        }
        cache.note(key(0), &no(), start);
        for index in 0..MAX_REFUSED {
            // All of the same moment: none is older, so all but the newest may go.
            cache.note(key(index), &no(), start);
            assert!(cache.refused.len() <= MAX_REFUSED);
        }
    }
}
