//! Which endpoint a connection or request goes to: pure functions over what the table holds.

pub mod eligible;
pub mod flow;
pub mod ring;
pub mod pick;
pub mod pin;
pub mod choose;
