//! The tasks of one backend: told to finish when the drain starts, ended when they have not after a while.

use runtime::drain;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long work in flight may take once draining has started.
const GRACE: Duration = Duration::from_secs(5);

/// Spawns and follows tasks. Clones follow the same ones.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    kill: CancellationToken,
    drain: drain::Watch,
}

impl Tasks {
    /// No tasks yet; `drain` says when they are to finish.
    pub fn new(drain: drain::Watch) -> Self {
        Tasks { tracker: TaskTracker::new(), kill: CancellationToken::new(), drain }
    }

    /// What a task waits on to learn that it should finish.
    pub fn drain(&self) -> drain::Watch {
        self.drain.clone()
    }

    /// Runs `task` until it ends or the time for draining is over.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        // Each future around another holds it twice, once as an argument and once while it is awaited. For a
        // connection that made kilobytes eightfold.
        let task = Box::pin(task);
        self.tracker.spawn(async move {
            kill.run_until_cancelled_owned(task).await;
        });
    }

    /// Completes when draining has started and all tasks have ended, which takes at most [`GRACE`].
    pub async fn finished(mut self) {
        self.drain.started().await;
        self.tracker.close();
        if tokio::time::timeout(GRACE, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "ending what did not finish within {} s", GRACE.as_secs());
            self.kill.cancel();
            self.tracker.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn work_in_flight_may_finish_but_not_hold_up_the_end() {
        let (trigger, watch) = drain::channel();
        let began = Instant::now();
        let tasks = Tasks::new(watch);
        tasks.spawn(std::future::pending());
        let (done, finished) = tokio::sync::oneshot::channel();
        let mut drain = tasks.drain();
        tasks.spawn(async move {
            drain.started().await;
            tokio::time::sleep(GRACE / 2).await;
            done.send(()).expect("the test waits");
        });
        trigger.start();
        tasks.finished().await;
        assert_eq!(finished.await, Ok(()));
        assert_eq!(began.elapsed().as_secs(), GRACE.as_secs());
    }
}
