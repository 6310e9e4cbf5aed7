//! Harness shared by the end-to-end tests, and the comparison with other proxies.

/// How a Pod resolves names.
pub mod resolver;
/// Promises as data, one test for each.
pub mod cases;
/// What Portico, HAProxy and nginx spend on the same work.
pub mod bench;
/// Parts of the loopback range, each for one test at a time.
pub mod net;
/// Programs of others, and following what they say.
pub mod tools;
/// A plain client that says which address it comes from.
pub mod client;
/// HTTP/1.1 and HTTP/2 with bodies that are streams, and their digests.
pub mod web;
/// Certificates that a test issues, and clients that trust one of them only.
pub mod certificate;
/// Backends that a test writes itself.
pub mod backend;
/// Servers that nobody here wrote, as child processes.
pub mod server;
/// The program itself, as child processes.
pub mod binary;
/// What a gateway knows, and waiting for it.
pub mod inspector;
/// Texts of manifests.
pub mod manifests;
/// Services with what is behind them, as texts of manifests.
pub mod services;
/// The numbers of an admin port.
pub mod metrics;
/// `portico get`, as people run it.
pub mod get;
/// A steady load, and what became of each request.
pub mod load;
/// A gateway and agents as processes of their own.
pub mod deployment;
/// `portico standalone` as a process of its own.
pub mod standalone;
/// A name server for what is not in the cluster.
pub mod upstream;
/// A whole Portico in one process.
pub mod stack;
/// `kubectl`, as people type it.
pub mod kubectl;
/// What makes a network namespace a Node: Pods as namespaces, containers as processes.
pub mod kubelet;
/// A real control plane on this machine, with network namespaces for nodes.
pub mod sandbox;
/// Questions at a steady rate, and how many were answered.
pub mod burst;
/// One question to an echo Pod behind a Service, and what became of it.
pub mod probe;
