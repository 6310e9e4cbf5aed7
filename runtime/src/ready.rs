//! Readiness: named latches, all of which must be released before the process takes traffic.
//!
//! Each part of a process that others must wait for takes a `Latch` while the process is wired and releases it when
//! its first work is done. What is missing can be asked by name, because "not ready" alone helps nobody.

use std::sync::Arc;
use tokio::sync::watch;

/// The latches of one process or component. Clones share them. Without any latch it is ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// The names not yet released, in the order in which they were taken.
    pending: Arc<watch::Sender<Vec<&'static str>>>,
}

/// One thing that must happen before readiness.
///
/// Dropping a latch does not release it: a part that failed before its work was done leaves the process unready, with
/// the name of the part to show for it.
#[derive(Debug)]
#[must_use = "a latch that is dropped stays pending for ever"]
pub struct Latch {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// A set without latches.
    pub fn new() -> Self {
        Readiness { pending: Arc::new(watch::Sender::new(Vec::new())) }
    }

    /// Takes a latch. Two of the same name must both be released.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.pending.send_modify(|pending| pending.push(name));
        Latch { readiness: self.clone(), name }
    }

    /// Whether every latch is released.
    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// The names of the latches not yet released, in the order in which they were taken.
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.borrow().clone()
    }

    /// Completes when every latch is released.
    pub async fn wait(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives in `self`, so the channel cannot close under this wait.
        let _ = pending.wait_for(Vec::is_empty).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Readiness::new()
    }
}

impl Latch {
    /// The name it was taken with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Notes that the thing has happened.
    pub fn release(self) {
        self.readiness.pending.send_modify(|pending| {
            if let Some(at) = pending.iter().position(|name| *name == self.name) {
                pending.remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_names_are_those_not_released() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let store = readiness.latch("first snapshot");
        let listeners = readiness.clone().latch("listeners open");
        assert_eq!(readiness.pending(), ["first snapshot", "listeners open"]);
        store.release();
        assert_eq!(readiness.pending(), ["listeners open"]);
        assert!(!readiness.is_ready());
        listeners.release();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_dropped_latch_stays_pending() {
        let readiness = Readiness::new();
        drop(readiness.latch("workers"));
        assert_eq!(readiness.pending(), ["workers"]);
    }

    #[test]
    fn two_latches_of_one_name_are_two() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.latch("agent"), readiness.latch("agent"));
        one.release();
        assert!(!readiness.is_ready());
        two.release();
        assert!(readiness.is_ready());
    }

    #[tokio::test]
    async fn wait_completes_with_the_last_release() {
        let readiness = Readiness::new();
        let (one, two) = (readiness.latch("one"), readiness.latch("two"));
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait().await }
        });
        one.release();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        two.release();
        waiting.await.unwrap();
        readiness.wait().await;
    }
}
