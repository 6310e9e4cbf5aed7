//! Why a resource was refused.

use std::{fmt::Display, net::IpAddr, num::NonZeroU16, str::FromStr};

use ipnet::IpNet;

/// A field that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field within its resource, such as `ports[1].port`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

// === impl Invalid ===

impl Invalid {
    /// Refuses `field` for `reason`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    /// Puts `prefix` before the path of the field.
    pub fn within(mut self, prefix: impl Display) -> Self {
        self.field = format!("{prefix}.{}", self.field);
        self
    }
}

/// Parses one IP address.
pub(crate) fn address(field: &str, value: &str) -> Result<IpAddr, Invalid> {
    value.parse().map_err(|_| Invalid::new(field, format!("{value:?} is not an IP address")))
}

/// Parses each item of a list, naming the index of the one that fails.
pub(crate) fn list<T: FromStr>(field: &str, values: &[String], what: &str) -> Result<Vec<T>, Invalid> {
    let parse = |(index, value): (usize, &String)| {
        value.parse().map_err(|_| Invalid::new(format!("{field}[{index}]"), format!("{value:?} is not {what}")))
    };
    values.iter().enumerate().map(parse).collect()
}

/// Parses a list of IP addresses.
pub(crate) fn addresses(field: &str, values: &[String]) -> Result<Vec<IpAddr>, Invalid> {
    list(field, values, "an IP address")
}

/// Parses a list of networks.
pub(crate) fn networks(field: &str, values: &[String]) -> Result<Vec<IpNet>, Invalid> {
    list(field, values, "a network in CIDR notation")
}

/// A port that must be there.
pub(crate) fn port(field: &str, value: u32) -> Result<NonZeroU16, Invalid> {
    optional_port(field, value)?.ok_or_else(|| Invalid::new(field, "is missing or 0; give 1 to 65535"))
}

/// A port where 0 means none.
pub(crate) fn optional_port(field: &str, value: u32) -> Result<Option<NonZeroU16>, Invalid> {
    let value = u16::try_from(value).map_err(|_| Invalid::new(field, format!("{value} is above 65535")))?;
    Ok(NonZeroU16::new(value))
}

/// A string that must not be empty.
pub(crate) fn required(field: &str, value: String) -> Result<String, Invalid> {
    if value.is_empty() { Err(Invalid::new(field, "is empty")) } else { Ok(value) }
}
