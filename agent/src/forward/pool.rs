//! HTTP connections to one endpoint, kept by one worker.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{h1::Connection, h2::Connections, source::Way};

/// Idle connections of HTTP/1.1 kept per worker and endpoint: as many as a worker can have in flight there in a burst.
const IDLE_CONNECTIONS: usize = 256;

/// How long one may be idle: below the keep-alive time of most servers, so that we close first and no request meets a
/// connection that is closing. Those that close earlier are noticed when the connection is taken.
const IDLE_TIME: Duration = Duration::from_secs(50);

/// Idle for so long, the runtime may not have heard yet that the endpoint closed, so the kernel is asked.
const FRESH: Duration = Duration::from_secs(1);

/// Connections of one worker to one endpoint address.
#[derive(Default)]
pub struct Pool {
    // Boxed, because they go in and out with every request.
    #[expect(clippy::vec_box, reason = "a pointer moves instead of the whole connection")]
    idle: RefCell<Vec<Box<Connection>>>,
    http2: Rc<Connections>,
    /// HTTP/2 with the address of a client, of which each has its own connections.
    http2_of_clients: RefCell<HashMap<IpAddr, Rc<Connections>>>,
}

// === impl Pool ===

impl Pool {
    /// The connection that became idle last, if one is good. `careful` asks the kernel about those that are not fresh:
    /// for requests that could not be sent again.
    ///
    /// A connection that shows an endpoint the address of a client is for that client alone.
    pub fn take(&self, way: Way, now: Instant, careful: bool) -> Option<Box<Connection>> {
        let client = way.client();
        let mut idle = self.idle.borrow_mut();
        // Where connections are shared, the last one fits.
        while let Some(last) = idle.iter().rposition(|connection| connection.client == client) {
            let connection = idle.swap_remove(last);
            let age = now.duration_since(connection.idle_since);
            let ask = careful && age > FRESH;
            if age < IDLE_TIME && connection.is_quiet() && (!ask || connection.is_quiet_for_sure()) {
                return Some(connection);
            }
        }
        None
    }

    /// Connections of HTTP/2 that go this way.
    pub fn http2(&self, way: Way) -> Rc<Connections> {
        match way.client() {
            None => self.http2.clone(),
            Some(client) => self.http2_of_clients.borrow_mut().entry(client).or_default().clone(),
        }
    }

    /// Keeps a connection for the next request.
    pub fn put(&self, mut connection: Box<Connection>, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_CONNECTIONS {
            connection.rest(now);
            idle.push(connection);
        }
    }

    /// Closes what is idle; requests in flight go on.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
        self.http2.clear();
        self.http2_of_clients.borrow_mut().drain().for_each(|(_, connections)| connections.clear());
    }

    /// Closes what has been idle for long, or was closed by the endpoint.
    pub fn sweep(&self, now: Instant) {
        self.idle
            .borrow_mut()
            .retain(|connection| now.duration_since(connection.idle_since) < IDLE_TIME && connection.is_quiet());
        self.http2.sweep(now);
        self.http2_of_clients.borrow_mut().retain(|_, connections| {
            connections.sweep(now);
            connections.count() > 0 || Rc::strong_count(connections) > 1
        });
    }

    /// Connections of HTTP/1.1 that are idle.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}
