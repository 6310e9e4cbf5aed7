//! Where one watch stands: what it has told, and what is due. No IO and no clock: a watch is a cursor, never a queue, so a
//! slow reader is told less often, and always the latest.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{
    query::{Query, Standing},
    token::Token,
};
use crate::health::board::Board;

/// One watch.
#[derive(Debug)]
pub struct Cursor<Q: Query> {
    /// What is selected.
    pub query: Q,
    min_interval: Duration,
    told: BTreeMap<Q::Key, Told>,
    /// Everything up to this revision was told, what is held back aside.
    revision: u64,
    /// Hash of all on the board of that revision.
    etag: String,
    /// What is held back was told as of before this revision.
    held: Option<u64>,
}

/// What was told of one thing.
#[derive(Debug)]
struct Told {
    /// Revision of the board it was read off.
    revision: u64,
    fingerprint: u64,
    /// When, and how well it did; only kept when things are held back.
    last: Option<(Instant, Standing)>,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Due<K> {
    /// Things to tell of, each as it is by then.
    pub keys: Vec<K>,
    /// When the next thing that is held back is due.
    pub next: Option<Instant>,
}

/// How a watch goes on from a token.
#[derive(Debug, PartialEq, Eq)]
pub enum Resumed<K> {
    /// What was told stands, but for these, which are gone.
    Gone(Vec<K>),
    /// The token means nothing here, for this reason: everything is to be told.
    Anew(&'static str),
}

// === impl Cursor ===

impl<Q: Query> Cursor<Q> {
    /// A watch that has told nothing. No thing is told twice within `min_interval`, unless it does worse.
    pub fn new(query: Q, min_interval: Duration) -> Self {
        Self { query, min_interval, told: BTreeMap::new(), revision: 0, etag: String::new(), held: None }
    }

    /// Takes up where a token was given.
    pub fn resume(&mut self, token: &str, board: &Board, replica_id: &str) -> Resumed<Q::Key> {
        let Some(token) = Token::decode(token) else { return Resumed::Anew("UNKNOWN_TOKEN") };
        if token.query != self.query.hash() {
            return Resumed::Anew("OTHER_SELECTION");
        }
        let ours = token.replica_id == replica_id && token.revision <= board.revision;
        let gone = if ours { self.query.removed(board, token.revision) } else { None };
        let (revision, gone) = match gone {
            Some(gone) => (token.revision, gone.filter(|key| self.query.item(board, key).is_none()).cloned().collect()),
            // Another replica, or too long ago; but the content may be the same.
            None if !token.etag.is_empty() && token.etag == Q::etag(board) => (board.revision, Vec::new()),
            None if ours => return Resumed::Anew("TOO_OLD"),
            None => return Resumed::Anew("UNKNOWN_TOKEN"),
        };
        let mut unselected = Vec::new();
        for (key, changed) in self.query.all(board) {
            match self.query.item(board, key) {
                Some(item) if changed <= revision => {
                    let fingerprint = Q::fingerprint(&item);
                    self.told.insert(key.clone(), Told { revision: board.revision, fingerprint, last: None });
                }
                // It may have been selected back then.
                None if changed > revision => unselected.push(key.clone()),
                _ => {}
            }
        }
        let mut gone: Vec<Q::Key> = gone;
        gone.extend(unselected);
        Resumed::Gone(gone)
    }

    /// What is due by the newest board.
    pub fn due(&mut self, board: &Board, now: Instant) -> Due<Q::Key> {
        let (mut keys, mut next, mut held) = (Vec::new(), None, None);
        for (key, changed) in self.query.all(board) {
            match self.told.get(key) {
                Some(told) if told.revision >= changed => {}
                Some(told) => match self.held_until(told, board, key, now) {
                    Some(until) => {
                        next = Some(next.map_or(until, |next: Instant| next.min(until)));
                        held = Some(held.map_or(changed, |held: u64| held.min(changed)));
                    }
                    None => keys.push(key.clone()),
                },
                None if self.query.item(board, key).is_some() => keys.push(key.clone()),
                None => {}
            }
        }
        // What is there but selected no longer has differed, so it is among them already.
        let gone = self.told.keys().filter(|key| !Q::exists(board, key));
        keys.extend(gone.cloned());
        self.revision = board.revision;
        self.etag = Q::etag(board).to_owned();
        self.held = held;
        Due { keys, next }
    }

    /// The event of one thing that is due, by what is on the newest board; `None` if there is nothing to tell after all.
    pub fn tell(&mut self, board: &Board, key: &Q::Key, now: Instant) -> Option<Q::Event> {
        let Some(item) = self.query.item(board, key) else {
            return self.told.remove(key).map(|_| Q::removal(key));
        };
        if board.revision != self.revision {
            // What was told is a mixture of two boards until the next look.
            self.etag.clear();
        }
        let fingerprint = Q::fingerprint(&item);
        let last = (!self.min_interval.is_zero()).then(|| (now, Q::standing(&item)));
        match self.told.get_mut(key) {
            Some(told) if told.fingerprint == fingerprint => {
                told.revision = board.revision;
                None
            }
            _ => {
                self.told.insert(key.clone(), Told { revision: board.revision, fingerprint, last });
                Some(Q::updated(item))
            }
        }
    }

    /// The token of what was told so far.
    pub fn token(&self, replica_id: &str) -> String {
        let token = Token {
            replica_id: replica_id.to_owned(),
            revision: self.held.map_or(self.revision, |held| self.revision.min(held - 1)),
            query: self.query.hash(),
            etag: if self.held.is_none() { self.etag.clone() } else { String::new() },
            after: String::new(),
        };
        token.encode()
    }

    /// Until when the news of a thing is held back; `None` if it is to be told now.
    fn held_until(&self, told: &Told, board: &Board, key: &Q::Key, now: Instant) -> Option<Instant> {
        let (at, standing) = told.last.as_ref()?;
        let until = *at + self.min_interval;
        if until <= now {
            return None;
        }
        let item = self.query.item(board, key)?;
        (!Q::standing(&item).is_worse_than(standing)).then_some(until)
    }
}

#[cfg(test)]
mod tests;
