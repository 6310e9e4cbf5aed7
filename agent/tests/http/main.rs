//! HTTP over real sockets: clients and endpoints that behave, and those that do not.

mod harness;
mod basics;
mod smuggling;
mod retries;
mod endpoints;
mod flow;
mod timeouts;
mod upgrades;
mod http2;
mod streams;
