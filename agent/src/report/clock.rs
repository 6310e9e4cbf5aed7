//! Instants as times of day, and those as text.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment on both clocks. Records carry instants, which cannot go backwards while somebody sets the clock; they are
/// read against a moment close by, so that all times of one record agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    wall: SystemTime,
}

// === impl Clock ===

impl Clock {
    /// This moment.
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// A moment that is known on both clocks.
    pub fn at(instant: Instant, wall: SystemTime) -> Self {
        Self { instant, wall }
    }

    /// The time of day of an instant before or after this one.
    pub fn wall(&self, instant: Instant) -> SystemTime {
        let ahead = instant.saturating_duration_since(self.instant);
        self.wall + ahead - self.instant.saturating_duration_since(instant)
    }
}

/// Writes a time as RFC 3339 with milliseconds, in UTC. Times before 1970 are shown as its first moment.
pub fn write_rfc3339(time: SystemTime, out: &mut Vec<u8>) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis().into();
    let parts =
        [(year, 4, b'-'), (month, 2, b'-'), (day, 2, b'T'), (hour, 2, b':'), (minute, 2, b':'), (second, 2, b'.')];
    for (number, width, after) in parts {
        digits(number, width, out);
        out.push(after);
    }
    digits(millis, 3, out);
    out.push(b'Z');
}

/// Decimal digits, with zeros in front to fill `width`, which is at most 20. Log lines are mostly numbers, and formatting
/// by the standard library would be most of their cost.
pub fn digits(mut number: u64, width: usize, out: &mut Vec<u8>) {
    let mut text = [b'0'; 20];
    let mut at = text.len();
    while number > 0 {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text[at.min(text.len() - width)..]);
}

/// Days since 1970-01-01 as year, month and day. The year is counted from March, which puts the leap day last; a cycle of
/// 400 years has 146,097 days and began on 0000-03-01, 719,468 days before 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (400 * cycle + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: u64, millis: u64, expected: &str) {
        let mut out = Vec::new();
        write_rfc3339(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn times_are_civil() {
        check(0, 0, "1970-01-01T00:00:00.000Z");
        check(951_782_399, 999, "2000-02-28T23:59:59.999Z");
        check(951_782_400, 0, "2000-02-29T00:00:00.000Z");
        check(951_868_800, 7, "2000-03-01T00:00:00.007Z");
        check(1_709_164_800, 0, "2024-02-29T00:00:00.000Z");
        check(1_735_689_599, 500, "2024-12-31T23:59:59.500Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut previous = civil(0);
        for day in 1..200_000 {
            let next = civil(day);
            let (year, month, date) = previous;
            let expected = [(year, month, date + 1), (year, month + 1, 1), (year + 1, 1, 1)];
            assert!(expected.contains(&next) && (1..=12).contains(&next.1) && (1..=31).contains(&next.2), "{next:?}");
            previous = next;
        }
    }

    #[test]
    fn instants_are_read_against_a_moment() {
        let (instant, wall) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1000));
        let clock = Clock::at(instant, wall);
        let second = Duration::from_secs(1);
        assert_eq!(clock.wall(instant), wall);
        assert_eq!(clock.wall(instant - second), wall - second);
        assert_eq!(clock.wall(instant + second), wall + second);
    }
}
