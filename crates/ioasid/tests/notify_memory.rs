//! What of telling allocates, and what becomes of it when there is no memory.
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use ioasid::{BindError, Config, Owner, Priority, SetType, Space, Subscriber, Work};

std::thread_local! {
    /// Allocations of this thread.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    /// How many of them succeed before one fails.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

struct Counting;

fn may_go_on() -> bool {
    COUNT.set(COUNT.get() + 1);
    let left = LEFT.get();
    LEFT.set(left.wrapping_sub(1));
    left > 0
}

// SAFETY: it is the system's, which it either calls as it was called, or does not call.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if may_go_on() {
            // SAFETY: by the caller's contract.
            unsafe { System.alloc(layout) }
        } else {
            std::ptr::null_mut()
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if may_go_on() {
            // SAFETY: by the caller's contract.
            unsafe { System.realloc(pointer, layout, size) }
        } else {
            std::ptr::null_mut()
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Asserts that `call` allocates nothing.
fn without_memory<R>(call: impl FnOnce() -> R) -> R {
    let before = COUNT.get();
    let result = call();
    assert_eq!(COUNT.get(), before, "something was allocated");
    result
}

/// Listens and does nothing.
struct Deaf;

impl Subscriber<u32> for Deaf {}

#[test]
fn nothing_that_ends_allocates() {
    let space = Space::new(Config::default()).unwrap();
    let owner = Owner::new("guest");
    let holder = space.holder("deaf").unwrap();
    let deaf = || Arc::new(Deaf);
    let subscriptions = [
        space.subscribe(&holder, Priority::Cpu, deaf()).unwrap(),
        space.subscribe_owner(&owner, &holder, Priority::Iommu, deaf()).unwrap(),
    ];
    for _ in 0..3 {
        let set = space.create_set("guest", SetType::Owned(owner.clone()), 500).unwrap();
        let in_set = set.subscribe(&holder, Priority::Device, deaf()).unwrap();
        let mut leases: Vec<_> = (0..200).map(|n| set.alloc(1..=999, n).unwrap()).collect();
        let bindings: Vec<_> =
            leases.iter().map(|lease| lease.bind(&holder).unwrap().commit()).collect();
        let prepared = leases.iter().take(9).map(|lease| lease.bind(&holder).unwrap());
        let prepared: Vec<_> = prepared.collect();
        let last = leases.split_off(150);
        let freed_in_a_bind = set.alloc(1..=999, 0).unwrap();
        let reference = freed_in_a_bind.share(&holder).unwrap();
        let opening = reference.bind(&holder).unwrap();
        without_memory(|| {
            drop(prepared);
            drop(freed_in_a_bind);
            drop((opening, reference));
            drop(leases);
            assert_eq!(space.work(100), Work::More);
            drop(bindings);
            set.close();
            assert_eq!(space.work(1_000), Work::Idle);
            drop(last);
            drop(set);
            assert_eq!(space.work(1_000), Work::Idle);
        });
        drop(in_set);
    }
    drop(subscriptions);
    space.release_parked();
    let usage = space.usage();
    assert_eq!((usage.live, usage.parked, usage.unreserved), (0, 0, usage.capacity));
}

/// For every allocation of a bind: without memory for it there is an error, and nothing changed.
#[test]
fn a_bind_without_memory_changes_nothing() {
    let mut failed = 0;
    for n in 0.. {
        let space = Space::new(Config::default()).unwrap();
        let holder = space.holder("deaf").unwrap();
        let subscription = space.subscribe(&holder, Priority::Cpu, Arc::new(Deaf)).unwrap();
        let lease = space.alloc(1..=9, 0).unwrap();
        LEFT.set(n);
        let bound = lease.bind(&holder);
        LEFT.set(usize::MAX);
        let enough = bound.is_ok();
        match bound {
            Ok(prepared) => drop(prepared.commit()),
            Err(error) => {
                assert_eq!(error, BindError::NoMemory);
                failed += 1;
                assert!(space.holders_of(lease.id()).unwrap().is_empty());
                drop(lease.bind(&holder).unwrap());
            }
        }
        drop(lease);
        assert_eq!(space.work(9), Work::Idle);
        drop(subscription);
        assert_eq!((space.usage().live, space.usage().parked), (0, 0));
        if enough {
            break;
        }
    }
    assert!(failed >= 2, "a reference and a binding are counted");
}
