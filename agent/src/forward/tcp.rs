//! Opaque connections: to an endpoint, and bytes both ways until both sides are done.

use std::{cell::RefCell, fmt, rc::Rc};

use super::splice::Pipes;

pub mod connect;
pub mod copy;
pub mod half;

/// Bytes read at once. Whatever fits is copied; what fills it is a transfer worth splicing.
const BUFFER: usize = 32 << 10;

/// What the connections of one worker share while they copy. None of them holds any of it while it waits.
pub struct Scratch {
    buffer: RefCell<Box<[u8]>>,
    pipes: Rc<Pipes>,
}

// === impl Scratch ===

impl Default for Scratch {
    fn default() -> Self {
        Self { buffer: RefCell::new(vec![0; BUFFER].into()), pipes: Rc::default() }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Scratch").field("pipes", &self.pipes).finish_non_exhaustive()
    }
}
