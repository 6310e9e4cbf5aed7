//! What the data plane tells of its requests and connections, as plain values and as a collector receives it.

mod accounting;
mod collector;
mod fixture;
mod lines;
mod metrics;
mod otlp;
mod spans;
