//! What is out keeps the space when all of its handles are gone.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use common::{space, Counted};
use ioasid::{AlreadyFreed, HoldError, Ioasid, Lease, SetType};

#[test]
fn a_lease_and_a_reference_outlive_every_handle() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let holder = space.holder("device").unwrap();
    let lease = space.alloc(1..=9, Counted(drops.clone())).unwrap();
    let reference = lease.share(&holder).unwrap();
    drop(space);
    lease.free().unwrap();
    assert_eq!(drops.load(Ordering::Relaxed), 0, "held");
    assert_eq!(reference.id(), Ioasid(1));
    assert!(!reference.is_live());
    drop(reference);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

/// A reference made after the handles went counts like the others.
#[test]
fn a_lease_without_a_handle_can_be_shared() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let holder = space.holder("device").unwrap();
    let lease = space.alloc(1..=9, Counted(drops.clone())).unwrap();
    drop(space);
    let one = lease.share(&holder).unwrap();
    let two = one.share(&holder).unwrap();
    drop(one);
    drop(two);
    assert_eq!(lease.0.load(Ordering::Relaxed), 0, "the lease keeps it");
    let last = lease.share(&holder).unwrap();
    drop(lease);
    assert_eq!(last.share(&holder).err(), Some(HoldError::Parked(Ioasid(1))));
    assert_eq!(last.0.load(Ordering::Relaxed), 0);
    drop(last);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn a_set_that_was_the_last_handle_closes_first() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let set = space.create_set("guest", SetType::Native, 4).unwrap();
    let lease = set.alloc(1..=9, Counted(drops.clone())).unwrap();
    let kept = set.alloc(1..=9, Counted(drops.clone())).unwrap();
    set.keep(kept).unwrap();
    drop(space);
    drop(set);
    assert_eq!(drops.load(Ordering::Relaxed), 1, "what the set kept");
    assert!(!lease.is_live());
    assert_eq!(lease.free(), Err(AlreadyFreed));
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

/// Data that keeps an ID of its own space.
#[allow(dead_code)]
struct Nested(Option<Lease<Nested>>, Counted);

/// A guard kept the outer one parked until there was nobody left to release it; the last handle
/// does, or the inner lease would keep the space that keeps the inner lease.
#[test]
fn what_is_parked_when_the_last_handle_goes_is_released() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let reader = space.reader();
    let inner = space.alloc(1..=9, Nested(None, Counted(drops.clone()))).unwrap();
    let outer = space.alloc(1..=9, Nested(Some(inner), Counted(drops.clone()))).unwrap();
    let guard = reader.pin();
    drop(outer);
    drop(guard);
    drop(space);
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    drop(reader);
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

/// The same with a guard that was forgotten: its reader takes it along.
#[test]
fn a_forgotten_guard_of_the_last_handle_keeps_nothing() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let reader = space.reader();
    let inner = space.alloc(1..=9, Nested(None, Counted(drops.clone()))).unwrap();
    let outer = space.alloc(1..=9, Nested(Some(inner), Counted(drops.clone()))).unwrap();
    std::mem::forget(reader.pin());
    drop(outer);
    drop(space);
    drop(reader);
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

/// Panics when it is dropped.
struct Bad(Counted);

impl Drop for Bad {
    fn drop(&mut self) {
        if self.0 .0.load(Ordering::Relaxed) == 0 {
            panic!("the first of them");
        }
    }
}

/// The panic reaches who freed; the ID is gone, and the space goes with the last that is out.
#[test]
fn a_panic_in_the_drop_of_data_is_counted_as_a_free() {
    let drops = Arc::new(AtomicU32::new(0));
    let token = Arc::new(());
    let space = space();
    let holder = space.holder("device").unwrap();
    let data = || (token.clone(), Bad(Counted(drops.clone())));
    let lease = space.alloc(1..=9, data()).unwrap();
    let other = space.alloc(1..=9, data()).unwrap();
    let reference = other.share(&holder).unwrap();
    let panicked =
        |f: &mut dyn FnMut()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
    let mut lease = Some(lease);
    assert!(panicked(&mut || drop(lease.take())));
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert_eq!((space.usage().live, space.usage().parked), (1, 0));
    drops.store(0, Ordering::Relaxed);
    drop((other, space));
    let mut reference = Some(reference);
    assert!(panicked(&mut || drop(reference.take())));
    assert_eq!(Arc::strong_count(&token), 1, "all data is gone");
}
