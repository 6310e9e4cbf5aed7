//! Draining: tells everything that works to finish, and knows when it has.
//!
//! `channel` makes a pair. The `Trigger` stays with whoever decides that the process ends. The `Watch` is cloned
//! into everything that accepts work: it waits for `Watch::started`, stops accepting, and keeps a `Guard` for as
//! long as work is in flight. Draining ends when the last guard drops, so there is no counter that a forgotten branch
//! could leave too high, and a task that panics gives its guard back as well.
//!
//! Deadlines are not decided here; see `crate::shutdown::drain`.

use tokio::sync::watch;

/// Makes a trigger and a watch that belong together.
pub fn channel() -> (Trigger, Watch) {
    let (start, started) = watch::channel(false);
    // The value carries nothing: a guard is a receiver, and "no receivers" is "no guards".
    let (guards, _) = watch::channel(());
    let trigger = Trigger { start, guards: guards.clone() };
    (trigger, Watch { started, guards })
}

/// Starts draining and waits for its end. Dropping it without starting counts as a start for every [`Watch`], because
/// nobody is left who could give the word.
#[derive(Debug)]
pub struct Trigger {
    start: watch::Sender<bool>,
    guards: watch::Sender<()>,
}

/// Learns that draining started, and gives out guards. Cloning is cheap; a watch alone does not hold up the end.
#[derive(Clone, Debug)]
pub struct Watch {
    started: watch::Receiver<bool>,
    guards: watch::Sender<()>,
}

/// Work in flight. [`Trigger::drained`] stays pending until it is dropped.
#[derive(Debug)]
#[must_use = "a guard that is dropped at once holds nothing up"]
pub struct Guard {
    _held: watch::Receiver<()>,
}

impl Trigger {
    /// Begins draining. Doing so again changes nothing.
    pub fn start(&self) {
        self.start.send_replace(true);
    }

    /// Begins draining, and completes when every guard is dropped. Without guards that is at once.
    pub async fn drained(self) {
        self.start();
        self.guards.closed().await;
    }
}

impl Watch {
    /// Whether draining has started.
    pub fn is_draining(&self) -> bool {
        // An error says that the trigger is gone; the last value is still there, and may be `false`.
        *self.started.borrow() || self.started.has_changed().is_err()
    }

    /// Completes when draining starts; at once if it already has, and also if the trigger is dropped.
    ///
    /// Cancel safe: it can be an arm of `select!` in a loop.
    pub async fn started(&mut self) {
        // Both outcomes, the word and the loss of the trigger, mean the same to the caller.
        let _ = self.started.wait_for(|started| *started).await;
    }

    /// A guard for one piece of work. It may be taken after draining started: what was accepted just before still
    /// counts.
    pub fn guard(&self) -> Guard {
        Guard { _held: self.guards.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Polls once without a runtime: these futures depend on channels only.
    fn poll(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn drained_waits_for_every_guard_and_for_nothing_else() {
        let (trigger, watch) = channel();
        let (first, second) = (watch.guard(), watch.clone().guard());
        let mut drained = pin!(trigger.drained());
        assert_eq!(poll(drained.as_mut()), Poll::Pending);
        assert!(watch.is_draining(), "waiting for the end starts it");
        drop(first);
        assert_eq!(poll(drained.as_mut()), Poll::Pending);
        drop(second);
        assert_eq!(poll(drained.as_mut()), Poll::Ready(()), "watches do not count");
        drop(watch);
    }

    #[test]
    fn a_guard_taken_after_the_start_counts() {
        let (trigger, watch) = channel();
        trigger.start();
        let guard = watch.guard();
        let mut drained = pin!(trigger.drained());
        assert_eq!(poll(drained.as_mut()), Poll::Pending);
        drop(guard);
        assert_eq!(poll(drained.as_mut()), Poll::Ready(()));
    }

    #[tokio::test]
    async fn started_wakes_every_clone_and_stays_true() {
        let (trigger, mut watch) = channel();
        let mut clone = watch.clone();
        assert!(!watch.is_draining());
        let waiting = tokio::spawn(async move { clone.started().await });
        trigger.start();
        waiting.await.unwrap();
        watch.started().await;
        watch.started().await;
        assert!(watch.is_draining() && watch.clone().is_draining());
    }

    #[tokio::test]
    async fn a_dropped_trigger_counts_as_a_start() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        watch.started().await;
        assert!(watch.is_draining());
    }

    #[tokio::test]
    async fn a_task_that_panics_gives_its_guard_back() {
        let (trigger, watch) = channel();
        let guard = watch.guard();
        let task = tokio::spawn(async move {
            let _guard = guard;
            panic!("on purpose");
        });
        trigger.drained().await;
        assert!(task.await.unwrap_err().is_panic());
    }
}
