//! Every interleaving of a device's accesses with invalidations.
//!
//! The state is a cache of one translation, "which page". The table is a word that the guest
//! changes before it posts an invalidation; once that is settled the guest takes the old page
//! for itself. The claims: no access ever touches a page that was taken, and whoever takes a page
//! finds there all that accesses wrote.

use alloc::sync::Arc;
use alloc::vec::Vec;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use super::{Slot, State};

#[derive(Default)]
struct Cache {
    page: Option<usize>,
    closed: bool,
}

#[derive(Clone, Copy)]
enum Change {
    Forget,
    Close,
}

impl State for Cache {
    type Batch = Vec<Change>;
    type Leftover = ();

    fn apply(&mut self, batch: &mut Vec<Change>) {
        for change in batch.drain(..) {
            match change {
                Change::Forget => self.page = None,
                Change::Close => self.closed = true,
            }
        }
    }
}

struct Guest {
    table: AtomicUsize,
    taken: [AtomicBool; 2],
    written: [AtomicBool; 2],
    slots: Vec<Slot<Cache>>,
}

impl Guest {
    fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            table: AtomicUsize::new(0),
            taken: [AtomicBool::new(false), AtomicBool::new(false)],
            written: [AtomicBool::new(false), AtomicBool::new(false)],
            slots: (0..slots).map(|_| Slot::new(Cache::default(), 0)).collect(),
        })
    }

    /// One access: probe, walk and fill on a miss, touch the page.
    fn access(&self, slot: usize) {
        let mut state = self.slots[slot].enter();
        if state.closed {
            return;
        }
        let page = match state.page {
            Some(page) => page,
            None => {
                let page = self.table.load(Ordering::Acquire);
                state.page = Some(page);
                page
            }
        };
        assert!(!self.taken[page].load(Ordering::Acquire), "page {page} was taken");
        self.written[page].store(true, Ordering::Relaxed);
    }

    fn post(&self, sequence: u64, change: Change) {
        for slot in &self.slots {
            slot.post(sequence, |batch| batch.push(change));
        }
    }

    fn wait(&self, sequence: u64) {
        while !self.slots.iter().all(|slot| slot.settle(sequence).is_some()) {
            thread::yield_now();
        }
    }

    /// Maps page 1 in place of page 0, and takes page 0 once that is complete; whether page 0 is
    /// found written then.
    fn remap(&self, sequence: u64) -> bool {
        self.table.store(1, Ordering::Release);
        self.post(sequence, Change::Forget);
        self.wait(sequence);
        self.taken[0].store(true, Ordering::Release);
        self.written[0].load(Ordering::Relaxed)
    }

    fn written(&self) -> bool {
        self.written[0].load(Ordering::Relaxed)
    }
}

#[test]
fn no_access_uses_the_old_page_once_the_invalidation_is_complete() {
    loom::model(|| {
        let guest = Guest::new(1);
        let device = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.access(0);
                guest.access(0);
            })
        };
        let found = guest.remap(1);
        device.join().unwrap();
        assert_eq!(found, guest.written());
        guest.access(0);
        assert_eq!(guest.slots[0].enter().page, Some(1));
    });
}

#[test]
fn two_channels_are_both_waited_for() {
    // Three threads: bounded, or it takes most of a minute.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let guest = Guest::new(2);
        let devices = [0, 1].map(|slot| {
            let guest = guest.clone();
            thread::spawn(move || guest.access(slot))
        });
        let found = guest.remap(1);
        for device in devices {
            device.join().unwrap();
        }
        assert_eq!(found, guest.written());
    });
}

#[test]
fn two_users_of_one_channel_exclude_each_other() {
    loom::model(|| {
        let guest = Guest::new(1);
        let other = {
            let guest = guest.clone();
            thread::spawn(move || guest.access(0))
        };
        guest.access(0);
        let found = guest.remap(1);
        other.join().unwrap();
        assert_eq!(found, guest.written());
    });
}

#[test]
fn a_closed_slot_is_not_in_use() {
    loom::model(|| {
        let guest = Guest::new(1);
        let device = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.access(0);
                guest.access(0);
            })
        };
        guest.post(1, Change::Close);
        guest.wait(1);
        for taken in &guest.taken {
            taken.store(true, Ordering::Release);
        }
        device.join().unwrap();
        assert!(guest.slots[0].enter().closed);
    });
}

#[test]
fn two_posters_and_one_device() {
    loom::model(|| {
        let guest = Guest::new(1);
        let device = {
            let guest = guest.clone();
            thread::spawn(move || guest.access(0))
        };
        guest.post(1, Change::Forget);
        let found = guest.remap(2);
        device.join().unwrap();
        assert_eq!(found, guest.written());
        // An early ticket is complete when a later one is.
        assert!(guest.slots[0].settle(1).is_some());
    });
}
