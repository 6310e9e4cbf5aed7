//! What load balancers and probes are told of this node, in the words of kube-proxy (S12, S13, S20).

pub mod service;
pub mod proxy;
pub mod metrics;
pub mod serve;
