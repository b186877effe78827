//! Finds against what makes and unmakes that which is found.

use ioasid::{AllocError, Ioasid};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::Arc;
use loom::thread;

use super::{all, assert_idle, bounded, space, Life};

/// A find against a free and the next life of the number: it gives the first life, the second, or
/// nothing; what it gives stays readable; and while it stays, the number is not given out again.
#[test]
fn against_free_and_reuse() {
    all(|| {
        let space = space(1, 1);
        let first = space.alloc(1..=1, Life::new(1)).unwrap();
        let reader = space.reader();
        let reused = Arc::new(AtomicBool::new(false));

        let seen = reused.clone();
        let finder = thread::spawn(move || {
            let guard = reader.pin();
            if let Some(life) = guard.find(Ioasid(1)) {
                let which = life.check();
                thread::yield_now();
                if which == 1 {
                    assert!(!seen.load(Ordering::Acquire), "reused under a guard");
                }
                assert_eq!(life.check(), which);
            }
        });

        first.free().unwrap();
        match space.alloc(1..=1, Life::new(2)) {
            Ok(second) => {
                reused.store(true, Ordering::Release);
                assert_eq!(second.check(), 2);
                finder.join().unwrap();
            }
            Err(error) => {
                assert_eq!(error, AllocError::RangeFull { min: 1, max: 1 });
                finder.join().unwrap();
                assert!(space.alloc(1..=1, Life::new(3)).is_ok(), "the guard is gone");
            }
        }
        assert_idle(&space);
    });
}

/// A find while the leaf is being made and the ID published: nothing, or all of it.
#[test]
fn against_publish() {
    all(|| {
        let space = space(2, 1);
        let reader = space.reader();
        let finder = thread::spawn(move || {
            let guard = reader.pin();
            guard.find_tagged(Ioasid(3)).map(|(life, tag): (&Life, _)| (life.check(), tag))
        });
        let lease = space.alloc(3..=3, Life::new(1)).unwrap();
        if let Some(found) = finder.join().unwrap() {
            assert_eq!(found, (1, lease.tag()));
        }
    });
}

/// A reader that is made while a number is freed and reused.
#[test]
fn new_reader_against_free() {
    all(|| {
        let space = space(1, 1);
        let first = space.alloc(1..=1, Life::new(1)).unwrap();
        let other = space.clone();
        let finder = thread::spawn(move || {
            let reader = other.reader();
            let guard = reader.pin();
            guard.find(Ioasid(1)).map(Life::check)
        });
        first.free().unwrap();
        assert!(matches!(finder.join().unwrap(), None | Some(1)));
        assert!(space.alloc(1..=1, Life::new(2)).is_ok());
        assert_idle(&space);
    });
}

/// A reader that reads again: what it did under its first guard comes before the release of what it
/// found, also when only its second guard shows that the first has gone.
#[test]
fn twice_against_free() {
    bounded(|| {
        let space = space(1, 1);
        let lease = space.alloc(1..=1, Life::new(1)).unwrap();
        let reader = space.reader();
        let finder = thread::spawn(move || {
            for _ in 0..2 {
                let guard = reader.pin();
                assert!(matches!(guard.find(Ioasid(1)).map(Life::check), None | Some(1)));
            }
        });
        lease.free().unwrap();
        space.release_parked();
        finder.join().unwrap();
        assert_idle(&space);
    });
}
