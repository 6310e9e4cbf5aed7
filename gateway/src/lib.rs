//! The control plane: objects in, resources out, and the health of nodes.

/// What was reported instead of obeyed.
pub mod problem;
/// Where objects come from.
pub mod watch;
/// Who gets which address and node port.
pub mod ipam;
/// What a cluster would do to manifests.
pub mod emulate;
/// Objects that gateways make for themselves.
pub mod owned;
/// Who agents are, and how they know the gateway.
pub mod identity;
/// The keys by which agents know each other.
pub mod hop;
/// Options, as typed and as used.
pub mod config;
/// The state that streams read.
pub mod snapshot;
/// From objects to resources.
pub mod model;
/// What people want to know of objects beside the resources they became.
pub mod catalog;
/// What is written into a cluster, and by which replica.
pub mod status;
/// The discovery service.
pub mod stream;
/// Which nodes external load balancers are to use.
pub mod health;
/// What people ask.
pub mod inspect;
/// What gRPC clients ask of any server.
pub mod grpc_health;
/// Instruments.
pub mod metrics;
/// The control loop.
pub mod control;
/// All of it put together.
pub mod server;

/// Our `spec.loadBalancerClass`. With manifests, Services without a class are ours as well (S11.1).
pub const LOAD_BALANCER_CLASS: &str = "portico.dev/gateway";

/// Name of the address pool that an option makes.
pub const DEFAULT_POOL: &str = "default";
