//! Times for people: ages as kubectl writes them.

use prost_types::Timestamp;
use std::time::{Duration, SystemTime};

/// What stands where no time is known, as in kubectl.
pub const UNKNOWN: &str = "<unknown>";

/// The time since `then`, short. A clock that is a little ahead gives `0s`; one far ahead gives `<invalid>`.
pub fn since(then: Option<&Timestamp>, now: SystemTime) -> String {
    let Some(then) = then.and_then(|then| SystemTime::try_from(*then).ok()) else { return UNKNOWN.into() };
    match now.duration_since(then) {
        Ok(age) => human(age),
        Err(ahead) if ahead.duration() < Duration::from_secs(2) => "0s".into(),
        Err(_) => "<invalid>".into(),
    }
}

/// The time until `then`, short; `passed` when it is over.
pub fn until(then: Option<&Timestamp>, now: SystemTime) -> String {
    let Some(then) = then.and_then(|then| SystemTime::try_from(*then).ok()) else { return UNKNOWN.into() };
    then.duration_since(now).map_or_else(|_| "passed".into(), human)
}

/// As `duration.HumanDuration` of k8s.io/apimachinery: two units while the second still says something.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_those_of_kubectl() {
        // Cases of staging/src/k8s.io/apimachinery/pkg/util/duration/duration_test.go.
        let (minute, hour, day) = (60, 3600, 86_400);
        let cases = [
            (1, "1s"),
            (70, "70s"),
            (190, "3m10s"),
            (70 * minute, "70m"),
            (47 * hour, "47h"),
            (49 * hour, "2d1h"),
            (8 * day + 2 * hour, "8d"),
            (367 * day, "367d"),
            (365 * 2 * day + 25 * hour, "2y1d"),
            (365 * 8 * day + 2 * day, "8y"),
            (120, "2m"),
            (2 * hour, "120m"),
            (3 * hour, "3h"),
            (3 * hour + 5 * minute, "3h5m"),
            (0, "0s"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn clocks_may_differ_and_times_may_be_missing() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let at = |seconds| Timestamp { seconds, nanos: 0 };
        let cases = [(900, "100s", "passed"), (1001, "0s", "1s"), (1002, "<invalid>", "2s"), (1000, "0s", "0s")];
        for (then, age, rest) in cases {
            assert_eq!((since(Some(&at(then)), now).as_str(), until(Some(&at(then)), now).as_str()), (age, rest));
        }
        assert_eq!((since(None, now).as_str(), until(None, now).as_str()), (UNKNOWN, UNKNOWN));
    }
}
