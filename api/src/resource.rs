//! Typed resources.
