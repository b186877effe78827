use alloc::vec::Vec;

use super::{Slot, State};

/// Applies numbers to a list of them; a replaced list is left over.
#[derive(Default)]
struct List {
    items: Vec<u32>,
}

impl State for List {
    type Batch = Vec<u32>;
    type Leftover = usize;

    fn apply(&mut self, batch: &mut Vec<u32>) -> usize {
        let len = batch.len();
        self.items.append(batch);
        len
    }
}

fn post(slot: &Slot<List>, sequence: u64, value: u32) {
    slot.post(sequence, |batch| batch.push(value));
}

#[test]
fn the_owner_applies_before_it_does_anything() {
    let slot = Slot::new(List::default(), 0);
    post(&slot, 1, 10);
    post(&slot, 2, 20);
    assert_eq!(slot.enter().items, [10, 20]);
    assert_eq!(slot.settle(2), Some(0), "nothing is left to apply");
}

#[test]
fn a_poll_applies_for_an_idle_owner() {
    let slot = Slot::new(List::default(), 0);
    post(&slot, 1, 10);
    assert_eq!(slot.settle(1), Some(1));
    assert_eq!(slot.enter().items, [10]);
}

#[test]
fn a_poll_never_waits_for_an_access() {
    let slot = Slot::new(List::default(), 0);
    let access = slot.enter();
    post(&slot, 1, 10);
    assert_eq!(slot.settle(1), None);
    assert!(access.items.is_empty(), "nothing changes under an access");
    drop(access);
    assert_eq!(slot.settle(1), Some(1));
}

#[test]
fn a_busy_owner_settles_what_came_before_its_latest_access() {
    let slot = Slot::new(List::default(), 0);
    post(&slot, 1, 10);
    let access = slot.enter();
    assert_eq!(slot.settle(1), Some(0), "applied when the access began");
    post(&slot, 2, 20);
    assert_eq!(slot.settle(1), Some(0));
    assert_eq!(slot.settle(2), None);
    drop(access);
    let access = slot.enter();
    assert_eq!(access.items, [10, 20]);
    assert_eq!(slot.settle(2), Some(0), "the busy owner did it itself");
}

#[test]
fn a_change_that_does_not_concern_the_slot_is_settled() {
    let slot = Slot::new(List::default(), 5);
    let access = slot.enter();
    assert_eq!(slot.settle(9), Some(0), "nothing was posted here");
    drop(access);
}

#[test]
fn the_memory_of_batches_is_used_again() {
    let slot = Slot::new(List::default(), 0);
    for sequence in 1..100 {
        post(&slot, sequence, 0);
        drop(slot.enter());
    }
    let capacity = slot.pending.lock().capacity() + slot.state.lock().spare.capacity();
    assert!((1..=16).contains(&capacity), "{capacity}");
}
