//! Delta protocol.
