//! Parsers of option values.
//!
//! Each fails with the rest of a sentence whose subject is the value, for [`super::Problems::value`]; beside
//! each stands a constant that says what would have been right.

use super::nearest::nearest;
use ipnet::IpNet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// What [`duration`] expects.
pub const DURATION: &str = "give a number with unit, such as 30s";
/// What [`socket_addr`] expects.
pub const SOCKET_ADDR: &str = "give both, such as 0.0.0.0:18080 or [::]:18080";
/// What [`cidr_list`] expects.
pub const CIDR_LIST: &str = "give networks separated by commas, such as 10.0.0.0/8,fd00::/8";
/// What [`port_range`] expects.
pub const PORT_RANGE: &str = "give the first and the last port, such as 30000-32767";
/// What [`bytes()`] expects.
pub const BYTES: &str = "give a number with unit, such as 64KiB";

/// Units of a duration with their length in nanoseconds. A longer unit stands before one that begins it.
const DURATION_UNITS: [(&str, u128); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Units of a size. Powers of two only: with `MB` half of all readers are wrong by five percent.
const BYTES_UNITS: [(&str, u64); 5] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];

/// A duration as Go and Kubernetes write it: `500ms`, `30s`, `1m30s`, `1.5h`, and `0`. Not negative.
pub fn duration(raw: &str) -> Result<Duration, String> {
    const NOT: &str = "is not a duration";
    if raw == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut rest = raw;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        let (unit, length) = *DURATION_UNITS.iter().find(|(unit, _)| after.starts_with(unit)).ok_or(NOT)?;
        // Nine digits of an hour are still below a microsecond; more would say nothing.
        if whole.is_empty() || fraction.len() > 9 {
            return Err(NOT.into());
        }
        let whole: u64 = whole.parse().map_err(|_| "is too long a duration")?;
        nanos += u128::from(whole) * length;
        if !fraction.is_empty() {
            let part: u128 = fraction.parse().map_err(|_| NOT)?;
            nanos += part * length / 10u128.pow(fraction.len() as u32);
        }
        rest = &after[unit.len()..];
    }
    if raw.is_empty() {
        return Err(NOT.into());
    }
    let nanos = u64::try_from(nanos).map_err(|_| "is too long a duration")?;
    Ok(Duration::from_nanos(nanos))
}

/// Splits off the decimal digits at the beginning.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// An IP address with a port. Host names are not resolved: where to listen must not depend on DNS.
pub fn socket_addr(raw: &str) -> Result<SocketAddr, String> {
    raw.parse().map_err(|_| "is not an address with port".into())
}

/// Networks separated by commas; a single address stands for itself. The empty string is the empty list.
///
/// Bits below the prefix must be zero: `10.1.2.3/8` may mean one host or a whole network, and lists of whom to
/// trust are no place to guess.
pub fn cidr_list(raw: &str) -> Result<Vec<IpNet>, String> {
    if raw.trim().is_empty() {
        return Ok(Vec::new());
    }
    raw.split(',').map(|item| cidr(item.trim())).collect()
}

fn cidr(item: &str) -> Result<IpNet, String> {
    if let Ok(address) = item.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = item.parse().map_err(|_| format!("has an item that is not a network: {item:?}"))?;
    if network.trunc() != network {
        let (whole, single) = (network.trunc(), network.addr());
        return Err(format!("has address bits below the prefix of {item}: write {whole} or {single}"));
    }
    Ok(network)
}

/// Ports from the first to the last, both included: `30000-32767`. One port alone is a range of one.
pub fn port_range(raw: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = raw.split_once('-').unwrap_or((raw, raw));
    let port = |text: &str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(String::from("is not a range of ports from 1 to 65535")),
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err("begins after its end".into());
    }
    Ok(first..=last)
}

/// A size in bytes: `64KiB`, `1MiB`, `1GiB`, `512B`, or a plain number.
pub fn bytes(raw: &str) -> Result<u64, String> {
    let (number, unit) = digits(raw.trim());
    let unit = unit.trim_start();
    let (_, factor) =
        *BYTES_UNITS.iter().find(|(known, _)| known.eq_ignore_ascii_case(unit)).ok_or("is not a size in bytes")?;
    if number.is_empty() {
        return Err("is not a size in bytes".into());
    }
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(|| "is too large a size".into())
}

/// A number within bounds, both included.
pub fn number<T: FromStr + PartialOrd + Display>(bounds: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> {
    move |raw| {
        // What is a number but does not fit the type is out of bounds, not "not a number".
        let out = || format!("is not between {} and {}", bounds.start(), bounds.end());
        match raw.parse::<T>() {
            Ok(number) if bounds.contains(&number) => Ok(number),
            Ok(_) => Err(out()),
            Err(_) if raw.parse::<i128>().is_ok() => Err(out()),
            Err(_) => Err("is not a number".into()),
        }
    }
}

/// One of a few words. A near miss is answered with the word that was probably meant.
pub fn one_of<'a>(choices: &'a [&'a str]) -> impl Fn(&str) -> Result<&'a str, String> {
    move |raw| {
        if let Some(choice) = choices.iter().find(|choice| **choice == raw) {
            return Ok(*choice);
        }
        let known = choices.join(", ");
        Err(match nearest(raw, choices) {
            Some(near) => format!("is not one of {known}; did you mean {near}?"),
            None => format!("is not one of {known}"),
        })
    }
}

#[cfg(test)]
mod tests;
