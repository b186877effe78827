//! Where a free number may be while somebody looks for it.

use ioasid::{AllocError, SetType};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::Arc;
use loom::thread;

use super::{assert_idle, bounded, space, Tiny};

/// Two threads that allocate from a space with one number for them: at most one has it.
#[test]
fn alloc_against_alloc() {
    bounded(|| {
        let space = space(1, 2);
        let held = Arc::new(AtomicBool::new(false));
        let take = {
            let held = held.clone();
            move |space: &ioasid::Space<u32, Tiny>, at: usize| {
                if let Ok(lease) = space.alloc_on(at, 1..=1, at as u32) {
                    assert!(!held.swap(true, Ordering::AcqRel), "held twice");
                    assert_eq!(*lease, at as u32);
                    held.store(false, Ordering::Release);
                }
            }
        };
        let other = space.clone();
        let theirs = take.clone();
        let thread = thread::spawn(move || theirs(&other, 1));
        take(&space, 0);
        thread.join().unwrap();
        assert_idle(&space);
    });
}

/// Numbers move between the space and the shards all the time. One that is free all the time is
/// found all the same, from any shard: here while another shard gives what it has too much of back.
#[test]
fn a_free_number_is_never_missed() {
    bounded(|| {
        let space = space::<u32>(2, 2);
        // The other shard has two numbers, which is as many as it keeps, and a third is out.
        let leases = [1, 2, 3].map(|n| space.alloc_on(1, n..=n, n).unwrap());
        let [one, two, three] = leases;
        drop((one, two));
        space.release_parked();
        let other = space.clone();
        let thread = thread::spawn(move || {
            drop(three);
            other.release_parked();
        });
        let lease = space.alloc_on(0, 1..=1, 9);
        assert_eq!(lease.map(|lease| lease.id().0), Ok(1), "free all the time");
        thread.join().unwrap();
        assert_idle(&space);
    });
}

/// What was freed before is not missed either while another shard takes what it does not need.
#[test]
fn alloc_takes_from_another_shards_cache() {
    bounded(|| {
        let space = space::<u32>(2, 2);
        drop(space.alloc_on(1, 1..=1, 1).unwrap());
        let other = space.clone();
        let thread = thread::spawn(move || {
            other.alloc_on(1, 3..=3, 3).map(|lease| lease.id().0).unwrap();
        });
        assert_eq!(space.alloc_on(0, 1..=1, 9).map(|lease| lease.id().0), Ok(1));
        thread.join().unwrap();
        assert_idle(&space);
    });
}

/// Somebody over his quota takes nothing away, not even for a moment.
#[test]
fn a_doomed_alloc_is_not_in_the_way() {
    bounded(|| {
        let space = space::<u32>(2, 1);
        let set = space.create_set("full", SetType::Native, 1).unwrap();
        let full = set.alloc(3..=3, 3).unwrap();
        let thread = thread::spawn(move || {
            let refused = set.alloc(1..=1, 1).unwrap_err();
            assert!(
                matches!(
                    refused,
                    AllocError::QuotaExceeded { quota: 1 } | AllocError::RangeFull { .. }
                ),
                "{refused}"
            );
            drop((full, set));
        });
        assert_eq!(space.alloc(1..=1, 9).map(|lease| lease.id().0), Ok(1));
        thread.join().unwrap();
        assert_idle(&space);
    });
}
