//! What was reported instead of obeyed.

use std::{collections::BTreeMap, fmt};

use crate::watch::object::ObjectKey;

/// Something that is wrong with an input, for the people who wrote it. Whatever else the input says is still obeyed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// UPPER_SNAKE_CASE, from a small fixed set.
    pub reason: &'static str,
    /// What is wrong, where, and what would be right.
    pub message: String,
}

/// Problems by the object they were found in.
pub type ByObject = BTreeMap<ObjectKey, Vec<Problem>>;

// === impl Problem ===

impl Problem {
    /// Notes `message` under `reason`.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.reason, self.message)
    }
}
