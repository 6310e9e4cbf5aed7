//! From signals to a drain with a deadline: how a process ends.
//!
//! The first SIGTERM or SIGINT starts a drain; a second one ends it at once, for the operator who has seen enough.

use crate::drain;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind};

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All work was finished.
    Clean,
    /// The deadline passed, or a second signal came, with work still in flight.
    Deadline,
}

/// Completes on the first SIGTERM or SIGINT after the call, with the name of the signal.
///
/// From the first poll on, these signals no longer end the process by themselves: the caller must.
/// Where the operating system refuses the handlers the signals keep their usual effect: that is logged, and this never
/// completes.
pub async fn signal() -> &'static str {
    let listening = listen(SignalKind::terminate()).and_then(|terminate| {
        let interrupt = listen(SignalKind::interrupt())?;
        Ok((terminate, interrupt))
    });
    match listening {
        Ok((mut terminate, mut interrupt)) => tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        },
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals; they end the process without a drain");
            std::future::pending().await
        }
    }
}

/// Drains until all work is finished, the deadline passes, or another signal arrives.
pub async fn drain(trigger: drain::Trigger, deadline: Duration) -> Ended {
    tokio::select! {
        // Work that is already finished is a clean end, whatever else has happened.
        biased;
        () = trigger.drained() => Ended::Clean,
        name = signal() => {
            tracing::warn!(signal = name, "second signal: ending without waiting for work in flight");
            Ended::Deadline
        }
        () = tokio::time::sleep(deadline) => Ended::Deadline,
    }
}

fn listen(kind: SignalKind) -> io::Result<Signal> {
    tokio::signal::unix::signal(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn ends_clean_as_soon_as_the_work_does() {
        let (trigger, mut watch) = drain::channel();
        let guard = watch.guard();
        let began = tokio::time::Instant::now();
        tokio::spawn(async move {
            watch.started().await;
            tokio::time::sleep(Duration::from_secs(7)).await;
            drop(guard);
        });
        assert_eq!(drain(trigger, DEADLINE).await, Ended::Clean);
        assert_eq!(began.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_the_deadline_when_work_does_not() {
        let (trigger, watch) = drain::channel();
        let _guard = watch.guard();
        let began = tokio::time::Instant::now();
        assert_eq!(drain(trigger, DEADLINE).await, Ended::Deadline);
        // The timer of tokio has a resolution of a millisecond.
        assert!(began.elapsed() - DEADLINE <= Duration::from_millis(1));
    }
}
