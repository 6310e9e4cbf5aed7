//! Many leases that end within a short time: rather than that so many nodes have failed, this replica cannot hear them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// Leases that end within this time count together.
const WINDOW: Duration = Duration::from_secs(60);

/// Fewer leases than this may all end: small clusters have too few for a guess.
const MIN_LEASES: usize = 10;

/// More than this share of all leases, in percent, is an outage.
const MAX_SHARE: usize = 30;

/// Whether this replica has lost its ears, and since which leases.
#[derive(Debug, Default)]
pub struct Outage {
    since: Option<Instant>,
    /// Nodes whose last word stands.
    held: BTreeSet<Arc<str>>,
    /// Nodes that were held and did not come back: for them time counts from the end of the outage.
    excused: BTreeMap<Arc<str>, Instant>,
}

// === impl Outage ===

impl Outage {
    /// Takes in when each lease ends or ended.
    pub fn update(&mut self, ends: &BTreeMap<Arc<str>, Instant>, now: Instant) {
        let lapsed = |since: Instant| -> BTreeSet<Arc<str>> {
            let lapsed = ends.iter().filter(|(_, end)| **end <= now && **end + WINDOW > since);
            lapsed.map(|(node, _)| node.clone()).collect()
        };
        let is_outage = |lapsed: usize| lapsed >= MIN_LEASES && lapsed * 100 > ends.len() * MAX_SHARE;
        self.excused.retain(|node, _| ends.get(node).is_some_and(|end| *end <= now));
        let since = self.since.unwrap_or(now);
        let lapsed = lapsed(since);
        match (self.since, is_outage(lapsed.len())) {
            (_, true) => {
                if self.since.is_none() {
                    tracing::warn!(
                        lapsed = lapsed.len(),
                        leases = ends.len(),
                        "cannot hear the agents: verdicts stand"
                    );
                }
                self.since = Some(since);
                self.held = lapsed;
            }
            (Some(_), false) => {
                tracing::info!("agents are heard again");
                self.since = None;
                self.excused.extend(lapsed.into_iter().map(|node| (node, now)));
                self.held.clear();
            }
            (None, false) => {}
        }
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the last word of a node stands although its lease is over.
    pub fn holds(&self, node: &str) -> bool {
        self.held.contains(node)
    }

    /// When a lease is to be taken as over that ended at `end`.
    pub fn end(&self, node: &str, end: Instant) -> Instant {
        self.excused.get(node).map_or(end, |excused| end.max(*excused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leases of `nodes` nodes, the first of which ended at `over`, the others end at `later`.
    fn ends(nodes: usize, lapsed: usize, over: Instant, later: Instant) -> BTreeMap<Arc<str>, Instant> {
        let end = |index: usize| if index < lapsed { over } else { later };
        (0..nodes).map(|index| (format!("n{index:03}").into(), end(index))).collect()
    }

    #[test]
    fn only_many_leases_and_a_large_share_of_them_are_an_outage() {
        let now = Instant::now() + 2 * WINDOW;
        let cases = [(9, 9, false), (10, 10, true), (33, 10, true), (34, 10, false), (100, 30, false), (100, 31, true)];
        for (nodes, lapsed, expected) in cases {
            let mut outage = Outage::default();
            outage.update(&ends(nodes, lapsed, now, now + WINDOW), now);
            assert_eq!(outage.is_on(), expected, "{lapsed} of {nodes}");
            assert_eq!((outage.holds("n000"), outage.holds("n099")), (expected, false));
        }
    }

    #[test]
    fn leases_that_ended_long_ago_do_not_count() {
        let now = Instant::now() + 2 * WINDOW;
        let mut outage = Outage::default();
        outage.update(&ends(20, 20, now - WINDOW, now), now);
        assert!(!outage.is_on());
    }

    #[test]
    fn an_outage_lasts_until_most_are_heard_again_and_the_rest_is_given_time() {
        let start = Instant::now() + 2 * WINDOW;
        let mut outage = Outage::default();
        outage.update(&ends(20, 20, start, start), start);
        // Longer than the window: what matters is who is heard.
        let later = start + 3 * WINDOW;
        outage.update(&ends(20, 10, start, later + WINDOW), later);
        assert!(outage.is_on() && outage.holds("n009") && !outage.holds("n010"));
        outage.update(&ends(20, 2, start, later + WINDOW), later);
        assert!(!outage.is_on() && !outage.holds("n000"));
        assert_eq!(outage.end("n000", start), later, "time counts from the end of the outage");
        assert_eq!(outage.end("n002", later + WINDOW), later + WINDOW);
        outage.update(&ends(20, 0, start, later + WINDOW), later);
        assert_eq!(outage.end("n000", start), start, "forgotten once it was heard");
    }
}
