//! Who frees a space, when what keeps it goes in any order.

use std::sync::Arc;

use ioasid::{Executor, Hooks, Space};
use loom::thread;

use super::{all, lent, Life, Tiny};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// An executor that is never called: as long as the space is there, so is it.
struct Witness;

impl Executor for Witness {
    fn schedule(&self) {}
}

/// A space, and how to tell whether it is there: it is when the count is not one.
fn witnessed() -> (Space<Life, Tiny>, Arc<Witness>, Arc<AtomicU32>) {
    let witness = Arc::new(Witness);
    let hooks = Hooks { executor: Some(witness.clone()), ..Hooks::default() };
    (lent(1, 1, hooks), witness, Arc::default())
}

#[test]
fn last_lease_against_last_handle() {
    all(|| {
        let (space, witness, drops) = witnessed();
        let lease = space.alloc(1..=1, Life::counted(1, &drops)).unwrap();
        let thread = thread::spawn(move || {
            assert_eq!(lease.check(), 1);
            drop(lease);
        });
        drop(space);
        thread.join().unwrap();
        assert_eq!((Arc::strong_count(&witness), drops.load(Relaxed)), (1, 1));
    });
}

/// The lease is shared while the last handle goes, and the reference put after it, or before.
#[test]
fn share_and_put_against_last_handle() {
    all(|| {
        let (space, witness, drops) = witnessed();
        let holder = space.holder("device").unwrap();
        let lease = space.alloc(1..=1, Life::counted(1, &drops)).unwrap();
        let thread = thread::spawn(move || {
            let reference = lease.share(&holder).unwrap();
            drop(reference);
            assert_eq!(lease.check(), 1);
        });
        drop(space);
        thread.join().unwrap();
        assert_eq!((Arc::strong_count(&witness), drops.load(Relaxed)), (1, 1));
    });
}

/// Nobody has a handle; a lease and a reference of it go at the same time.
#[test]
fn last_reference_against_last_lease() {
    all(|| {
        let (space, witness, drops) = witnessed();
        let holder = space.holder("device").unwrap();
        let lease = space.alloc(1..=1, Life::counted(1, &drops)).unwrap();
        drop(space);
        let reference = lease.share(&holder).unwrap();
        let thread = thread::spawn(move || {
            assert_eq!(reference.check(), 1);
            drop(reference);
        });
        drop(lease);
        thread.join().unwrap();
        assert_eq!((Arc::strong_count(&witness), drops.load(Relaxed)), (1, 1));
    });
}
