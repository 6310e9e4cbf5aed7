//! TCP, TLS and UDP through one worker, over real sockets: clients, worker and endpoints share one thread.

mod harness;
mod tcp;
mod tls;
mod transfer;
mod udp;
