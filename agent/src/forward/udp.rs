//! UDP flows: one per client and destination, each with an endpoint chosen once and a socket of its own to it.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
};

use api::resource::service::Transport;
use foldhash::fast::RandomState;

use crate::table::Table;

pub mod batch;
pub mod entry;
pub mod flow;

use batch::Batch;
use flow::Flow;

/// Who sends to whom: one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The sender.
    pub client: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
}

/// Whether a flow to `endpoint` stays under a new table (S16.2): as long as its endpoint serves the port it was begun for,
/// whatever policy, hints and termination say. One without an endpoint, which was refused, asks anew.
pub fn stays(table: &Table, destination: SocketAddr, endpoint: Option<SocketAddr>) -> bool {
    let (Some(endpoint), Some(frontend)) = (endpoint, table.frontend(destination, Transport::Udp)) else {
        return false;
    };
    match (&frontend.target, &table.hop) {
        (Some(target), _) => target.serving.binary_search(&endpoint).is_ok(),
        (None, Some(hop)) => hop.serving.contains(&endpoint),
        (None, None) => false,
    }
}

/// The flows of one worker.
#[derive(Default)]
pub struct Flows {
    flows: RefCell<HashMap<FlowKey, Rc<Flow>, RandomState>>,
    /// Flows that had no reply when they were last looked at, oldest first. Those that have one now, or are gone, are
    /// passed over.
    unreplied: RefCell<VecDeque<Weak<Flow>>>,
    /// For receiving.
    pub batch: RefCell<Batch>,
}

// === impl Flows ===

impl Flows {
    /// The flow of `key`.
    pub fn get(&self, key: &FlowKey) -> Option<Rc<Flow>> {
        self.flows.borrow().get(key).cloned()
    }

    /// Makes room for one more flow where at most `limit` may be. The oldest one without a reply goes;
    /// false if all have one, as established flows are worth more than new ones.
    pub fn make_room(&self, limit: usize) -> bool {
        while self.count() >= limit {
            let oldest = self.unreplied.borrow_mut().pop_front();
            let Some(oldest) = oldest else { return false };
            if let Some(oldest) = oldest.upgrade().filter(|flow| flow.is_unreplied()) {
                oldest.evict();
                self.remove(&oldest);
            }
        }
        true
    }

    /// Adds a flow.
    pub fn insert(&self, flow: &Rc<Flow>) {
        self.flows.borrow_mut().insert(flow.key, flow.clone());
        let mut unreplied = self.unreplied.borrow_mut();
        if unreplied.len() >= 2 * self.count() {
            unreplied.retain(|flow| flow.upgrade().is_some_and(|flow| flow.is_unreplied()));
        }
        unreplied.push_back(Rc::downgrade(flow));
    }

    /// Takes a flow out, unless another one has its place by now.
    pub fn remove(&self, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        if flows.get(&flow.key).is_some_and(|present| Rc::ptr_eq(present, flow)) {
            flows.remove(&flow.key);
        }
    }

    /// Cuts the flows that a new table does not support any more (S16.2), so that the next datagram begins a new one.
    pub fn follow(&self, table: &Table) {
        self.cut(|flow| stays(table, flow.key.destination, flow.endpoint()));
    }

    /// Cuts the flows whose listener closes.
    pub fn close(&self, closes: impl Fn(&FlowKey) -> bool) {
        self.cut(|flow| !closes(&flow.key));
    }

    /// Number of flows.
    pub fn count(&self) -> usize {
        self.flows.borrow().len()
    }

    fn cut(&self, keep: impl Fn(&Flow) -> bool) {
        self.flows.borrow_mut().retain(|_, flow| {
            let keep = keep(flow);
            if !keep {
                flow.cut();
            }
            keep
        });
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Flows").field("count", &self.count()).finish_non_exhaustive()
    }
}
