//! Deadlines at the coarse clock of a worker. Setting one writes a value into a slot; at each tick the worker wakes those
//! whose time has come. Nothing else happens per request: no timer is made, registered or cancelled.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

/// All alarms of one worker.
#[derive(Debug)]
pub struct Alarms {
    slots: RefCell<Slots>,
    now: Cell<Instant>,
    /// No slot has a deadline before this. It may be too early, never too late.
    earliest: Cell<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Slot {
    deadline: Option<Instant>,
    waker: Option<Waker>,
}

/// One alarm, which is silent until it is set. It belongs to one task at a time.
#[derive(Debug)]
pub struct Alarm {
    alarms: Rc<Alarms>,
    slot: usize,
}

// === impl Alarms ===

impl Default for Alarms {
    fn default() -> Self {
        Self { slots: RefCell::default(), now: Cell::new(Instant::now()), earliest: Cell::new(None) }
    }
}

impl Alarms {
    /// A new alarm.
    pub fn alarm(self: &Rc<Self>) -> Alarm {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.slots.push(Slot::default());
            slots.slots.len() - 1
        });
        Alarm { alarms: self.clone(), slot }
    }

    /// Called at each tick: wakes everybody whose deadline has passed.
    pub fn ring(&self, now: Instant) {
        self.now.set(now);
        if self.earliest.get().is_none_or(|earliest| earliest > now) {
            return;
        }
        let mut earliest: Option<Instant> = None;
        let mut due = Vec::new();
        for slot in &mut self.slots.borrow_mut().slots {
            match slot.deadline {
                Some(deadline) if deadline <= now => due.extend(slot.waker.take()),
                Some(deadline) => earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline))),
                None => {}
            }
        }
        self.earliest.set(earliest);
        due.into_iter().for_each(Waker::wake);
    }

    /// Wakes everybody, so that they see that something else has changed, such as that draining began.
    pub fn wake_all(&self) {
        let wakers: Vec<Waker> =
            self.slots.borrow_mut().slots.iter_mut().filter_map(|slot| slot.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

// === impl Alarm ===

impl Alarm {
    /// Sets the deadline anew, or silences the alarm.
    pub fn set(&self, deadline: Option<Instant>) {
        self.alarms.slots.borrow_mut().slots[self.slot].deadline = deadline;
        if let Some(deadline) = deadline
            && self.alarms.earliest.get().is_none_or(|earliest| deadline < earliest)
        {
            self.alarms.earliest.set(Some(deadline));
        }
    }

    /// Ready once the deadline has passed at the worker's clock. While pending it is also woken by
    /// [`Alarms::wake_all`].
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let slot = &mut self.alarms.slots.borrow_mut().slots[self.slot];
        if slot.deadline.is_some_and(|deadline| deadline <= self.alarms.now.get()) {
            return Poll::Ready(());
        }
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut slots = self.alarms.slots.borrow_mut();
        slots.slots[self.slot] = Slot::default();
        slots.free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
        time::Duration,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn alarms_ring_once_their_time_has_come() {
        let (alarms, count) = (Rc::new(Alarms::default()), Arc::new(Count::default()));
        let waker = count.clone().into();
        let mut cx = Context::from_waker(&waker);
        let start = Instant::now();
        let (near, far) = (alarms.alarm(), alarms.alarm());
        far.set(Some(start + Duration::from_secs(9)));
        near.set(Some(start + Duration::from_secs(2)));
        assert!(near.poll(&mut cx).is_pending() && far.poll(&mut cx).is_pending());
        alarms.ring(start + Duration::from_secs(1));
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        alarms.ring(start + Duration::from_secs(3));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(near.poll(&mut cx).is_ready() && far.poll(&mut cx).is_pending());
        near.set(None);
        assert!(near.poll(&mut cx).is_pending());
        alarms.ring(start + Duration::from_secs(10));
        assert!(far.poll(&mut cx).is_ready());
    }

    #[test]
    fn slots_are_used_again_and_begin_silent() {
        let alarms = Rc::new(Alarms::default());
        let first = alarms.alarm();
        first.set(Some(Instant::now()));
        let slot = first.slot;
        drop(first);
        let second = alarms.alarm();
        assert_eq!(second.slot, slot);
        alarms.ring(Instant::now() + Duration::from_secs(1));
        assert!(second.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}
