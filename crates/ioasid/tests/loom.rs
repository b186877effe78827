//! Every interleaving of the lock-free claims, on a space of two or four numbers.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ioasid --release --test loom --target-dir target/loom`;
//! with `--cfg sabotage="ioasid-no-parking"` or `"ioasid-no-fence"` as well, it must fail.
#![cfg(loom)]

use std::sync::Arc;

use ioasid::{AllocError, Config, Ioasid, Space};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

/// Which life of the number it is, and whether its drop has begun. Loom reports a read that is
/// not ordered before the write of the drop.
struct Life {
    which: u32,
    dropped: UnsafeCell<bool>,
}

// SAFETY: that the accesses are ordered is what the tests below show.
unsafe impl Sync for Life {}

impl Life {
    fn new(which: u32) -> Self {
        Self { which, dropped: UnsafeCell::new(false) }
    }

    fn check(&self) -> u32 {
        // SAFETY: as for `Sync`.
        assert!(!self.dropped.with(|dropped| unsafe { *dropped }), "read after its drop");
        self.which
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // SAFETY: as for `Sync`.
        self.dropped.with_mut(|dropped| unsafe { *dropped = true });
    }
}

fn space<T>(width: u32) -> Space<T> {
    Space::new(Config { width, ..Config::default() }).unwrap()
}

/// A find against a free and the next life of the number: it gives the first life, the second, or
/// nothing; what it gives stays readable; and while it stays, the number is not given out again.
#[test]
fn find_against_free_and_reuse() {
    loom::model(|| {
        let space = space(2);
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
    });
}

/// A find while the leaf is being made and the ID published: nothing, or all of it.
#[test]
fn find_against_publish() {
    loom::model(|| {
        let space = space::<Life>(2);
        let reader = space.reader();
        let finder = thread::spawn(move || {
            let guard = reader.pin();
            guard.find_tagged(Ioasid(3)).map(|(life, tag)| (life.check(), tag))
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
    loom::model(|| {
        let space = space(1);
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
        space.release_parked();
        assert_eq!((space.usage().live, space.usage().parked), (0, 0));
    });
}

/// Two threads that allocate from a space with one number for them: at most one has it.
#[test]
fn alloc_against_alloc() {
    loom::model(|| {
        let space = space(1);
        let held = Arc::new(AtomicBool::new(false));
        let take = {
            let held = held.clone();
            move |space: &Space<u32>, data| {
                if let Ok(lease) = space.alloc(1..=1, data) {
                    assert!(!held.swap(true, Ordering::AcqRel), "held twice");
                    assert_eq!(*lease, data);
                    held.store(false, Ordering::Release);
                }
            }
        };
        let other = space.clone();
        let theirs = take.clone();
        let thread = thread::spawn(move || theirs(&other, 1));
        take(&space, 2);
        thread.join().unwrap();
        assert_eq!((space.usage().live, space.usage().parked), (0, 0));
    });
}
