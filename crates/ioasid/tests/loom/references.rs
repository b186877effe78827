//! References against frees.

use std::sync::Arc;

use ioasid::{HoldError, Ioasid};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{all, assert_idle, bounded, space, Life};

/// Somebody gets a reference while the lease goes: either he has it, and then the number is not
/// reused before he puts it, or he is told why not.
#[test]
fn last_put_against_get() {
    all(|| {
        let space = space(1, 1);
        let holder = space.holder("device").unwrap();
        let first = space.alloc(1..=1, Life::new(1)).unwrap();
        let reader = space.reader();
        let reused = loom::sync::Arc::new(AtomicBool::new(false));
        let seen = reused.clone();
        let getter = thread::spawn(move || match reader.pin().hold(Ioasid(1), &holder) {
            Ok(life) if life.check() == 1 => {
                thread::yield_now();
                assert!(!seen.load(Ordering::Acquire), "reused under a reference");
                assert_eq!(life.check(), 1);
            }
            Ok(life) => assert_eq!(life.check(), 2),
            Err(error) => assert!(
                [HoldError::Parked(Ioasid(1)), HoldError::NotFound(Ioasid(1))].contains(&error)
            ),
        });
        first.free().unwrap();
        let second = space.alloc(1..=1, Life::new(2));
        if second.is_ok() {
            reused.store(true, Ordering::Release);
        }
        getter.join().unwrap();
        drop(second);
        assert_eq!(space.alloc(1..=1, Life::new(3)).map(|lease| lease.check()).ok(), Some(3));
        assert_idle(&space);
    });
}

/// The lease and two references go at the same time: the data goes once, with the last.
#[test]
fn two_puts_and_a_free() {
    all(|| {
        let drops = Arc::default();
        let space = space(1, 1);
        let holder = space.holder("device").unwrap();
        let lease = space.alloc(1..=1, Life::counted(1, &drops)).unwrap();
        let (one, two) = (lease.share(&holder).unwrap(), lease.share(&holder).unwrap());
        let thread = thread::spawn(move || {
            assert_eq!(one.check(), 1);
            drop(one);
        });
        drop(lease);
        assert_eq!(two.check(), 1);
        drop(two);
        thread.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert_idle(&space);
    });
}

/// Somebody gets a reference by number while the number is freed and lives again in another shard,
/// under another lock.
#[test]
fn get_against_reuse_in_another_shard() {
    bounded(|| {
        let drops = Arc::default();
        let space = space(1, 2);
        let holder = space.holder("device").unwrap();
        let first = space.alloc_on(0, 1..=1, Life::counted(1, &drops)).unwrap();
        let reader = space.reader();
        let getter = thread::spawn(move || reader.pin().hold(Ioasid(1), &holder).ok());
        drop(first);
        let second = space.alloc_on(1, 1..=1, Life::counted(2, &drops));
        drop(second);
        // Put last, so that it is the put that ends whichever life it holds; until then nobody can
        // have the number.
        if let Some(life) = getter.join().unwrap() {
            assert!(space.alloc_on(1, 1..=1, Life::new(3)).is_err(), "reused under a reference");
            life.check();
        }
        assert_idle(&space);
        assert_eq!(drops.load(Ordering::Relaxed), 2, "each life ends once, a refused one too");
    });
}
