//! Cases of every parser: text in, value or failure out.

use super::*;
use std::fmt::Debug;

/// Checks that each text gives its value, or a failure that contains the given words.
fn check<T: Debug + PartialEq>(parse: impl Fn(&str) -> Result<T, String>, cases: &[(&str, Result<T, &str>)]) {
    for (raw, expected) in cases {
        match (parse(raw), expected) {
            (Ok(value), Ok(expected)) => assert_eq!(&value, expected, "{raw:?}"),
            (Err(failure), Err(words)) => assert!(failure.contains(words), "{raw:?}: {failure}"),
            (outcome, expected) => panic!("{raw:?} gave {outcome:?}, not {expected:?}"),
        }
    }
}

#[test]
fn durations() {
    let millis = |millis| Ok(Duration::from_millis(millis));
    check(
        duration,
        &[
            ("500ms", millis(500)),
            ("30s", millis(30_000)),
            ("1m30s", millis(90_000)),
            ("1h", millis(3_600_000)),
            ("1.5h", millis(5_400_000)),
            ("0.25s", millis(250)),
            ("100us", Ok(Duration::from_micros(100))),
            ("7ns", Ok(Duration::from_nanos(7))),
            ("0", millis(0)),
            ("0s", millis(0)),
            ("", Err("is not a duration")),
            ("30", Err("is not a duration")),
            ("-1s", Err("is not a duration")),
            ("5 parsecs", Err("is not a duration")),
            ("1m30", Err("is not a duration")),
            (".5s", Err("is not a duration")),
            ("s", Err("is not a duration")),
            ("1 s", Err("is not a duration")),
            ("\u{663}s", Err("is not a duration")),
            ("99999999999h", Err("too long")),
            ("99999999999999999999999s", Err("too long")),
        ],
    );
}

#[test]
fn socket_addresses() {
    check(
        socket_addr,
        &[
            ("127.0.0.1:80", Ok(SocketAddr::from(([127, 0, 0, 1], 80)))),
            ("[::]:18080", Ok("[::]:18080".parse().unwrap())),
            (":18080", Err("is not an address with port")),
            ("localhost:80", Err("is not an address with port")),
            ("10.0.0.1", Err("is not an address with port")),
            ("10.0.0.1:65536", Err("is not an address with port")),
        ],
    );
}

#[test]
fn networks() {
    let nets = |items: &[&str]| Ok(items.iter().map(|item| item.parse().unwrap()).collect::<Vec<IpNet>>());
    check(
        cidr_list,
        &[
            ("", nets(&[])),
            ("10.0.0.0/8", nets(&["10.0.0.0/8"])),
            ("10.0.0.0/8, fd00::/8", nets(&["10.0.0.0/8", "fd00::/8"])),
            ("10.1.2.3,::1", nets(&["10.1.2.3/32", "::1/128"])),
            ("0.0.0.0/0", nets(&["0.0.0.0/0"])),
            ("10.0.0.0/33", Err("\"10.0.0.0/33\"")),
            ("10.0.0.0/8,,", Err("not a network: \"\"")),
            ("10.0.0.0/8 fd00::/8", Err("not a network")),
            ("10.1.2.3/8", Err("write 10.0.0.0/8 or 10.1.2.3")),
        ],
    );
}

#[test]
fn port_ranges() {
    check(
        port_range,
        &[
            ("30000-32767", Ok(30000..=32767)),
            ("8080", Ok(8080..=8080)),
            ("1-65535", Ok(1..=65535)),
            ("32767-30000", Err("begins after its end")),
            ("0-10", Err("is not a range of ports")),
            ("1-65536", Err("is not a range of ports")),
            ("30000-", Err("is not a range of ports")),
            ("", Err("is not a range of ports")),
        ],
    );
}

#[test]
fn sizes() {
    check(
        bytes,
        &[
            ("0", Ok(0)),
            ("512", Ok(512)),
            ("512B", Ok(512)),
            ("64KiB", Ok(64 << 10)),
            ("1 mib", Ok(1 << 20)),
            ("1GiB", Ok(1 << 30)),
            ("1MB", Err("is not a size")),
            ("KiB", Err("is not a size")),
            ("-1", Err("is not a size")),
            ("", Err("is not a size")),
            ("99999999999GiB", Err("too large")),
            ("99999999999999999999999", Err("too large")),
        ],
    );
}

#[test]
fn numbers() {
    check(
        number(1..=64u16),
        &[
            ("1", Ok(1)),
            ("64", Ok(64)),
            ("0", Err("is not between 1 and 64")),
            ("-5", Err("is not between 1 and 64")),
            ("70000", Err("is not between 1 and 64")),
            ("four", Err("is not a number")),
            ("", Err("is not a number")),
        ],
    );
    check(number(0.0..=1.0f64), &[("0.01", Ok(0.01)), ("1.5", Err("between 0 and 1")), ("NaN", Err("between"))]);
}

#[test]
fn choices() {
    check(
        one_of(&["off", "errors", "all"]),
        &[
            ("errors", Ok("errors")),
            ("error", Err("is not one of off, errors, all; did you mean errors?")),
            ("ALL", Err("did you mean all?")),
            ("sometimes", Err("is not one of off, errors, all")),
        ],
    );
    assert!(!one_of(&["off", "all"])("sometimes").unwrap_err().contains("mean"));
}
