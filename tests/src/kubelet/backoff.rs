//! How long a container that ended waits before it is started again.

use std::time::Duration;

/// Wait before the second restart; each further one doubles it. The real kubelet's values.
const FIRST: Duration = Duration::from_secs(10);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long has recovered, and starts over.
const RECOVERED: Duration = Duration::from_secs(600);

/// The waits of one container.
#[derive(Debug, Default)]
pub struct CrashLoop {
    next: Duration,
}

// === impl CrashLoop ===

impl CrashLoop {
    /// How long to wait after a container that ran for so long. The first restart is immediate.
    pub fn wait(&mut self, ran: Duration) -> Duration {
        if ran >= RECOVERED {
            self.next = Duration::ZERO;
        }
        let wait = self.next;
        self.next = (wait * 2).clamp(FIRST, LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_longer_each_time_until_one_lasts() {
        let mut waits = CrashLoop::default();
        let short = Duration::from_secs(1);
        let seconds: Vec<u64> = (0..8).map(|_| waits.wait(short).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(waits.wait(RECOVERED).as_secs(), 0);
        assert_eq!(waits.wait(short).as_secs(), 10);
    }
}
