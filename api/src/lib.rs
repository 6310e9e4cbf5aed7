//! What the control plane and the data plane share: the wire, the typed resources, and both ends of the delta protocol.

pub mod delta;
pub mod proto;
pub mod resource;
