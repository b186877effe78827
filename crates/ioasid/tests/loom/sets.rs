//! The end of a set against everything that may be going on in it.

use ioasid::{AllocError, Owner, Set, SetType, Space, TakeError};
use loom::thread;

use super::{all, assert_idle, bounded, space, Life, Tiny};

fn with_set(quota: u32, shards: usize) -> (Space<Life, Tiny>, Set<Life, Tiny>) {
    let space = space(2, shards);
    let set = space.create_set("guest", SetType::Native, quota).unwrap();
    (space, set)
}

/// All quota is back, and the set's index too: the next set is a different one in its place.
fn assert_gone(space: &Space<Life, Tiny>, set: Set<Life, Tiny>) {
    assert!(set.is_drained());
    assert_idle(space);
    drop(set);
    let next = space.create_set("next", SetType::Native, 3).unwrap();
    drop(next.alloc(1..=1, Life::new(9)).unwrap());
    drop(next);
    assert_idle(space);
}

#[test]
fn teardown_against_alloc() {
    all(|| {
        let (space, set) = with_set(1, 1);
        let theirs = set.clone();
        let thread = thread::spawn(move || match theirs.alloc(1..=1, Life::new(1)) {
            Ok(lease) => assert_eq!(lease.check(), 1),
            Err(error) => assert_eq!(error, AllocError::SetClosed),
        });
        set.close();
        thread.join().unwrap();
        assert_gone(&space, set);
    });
}

/// The number was claimed before, and its data is made while the set is closed.
#[test]
fn teardown_against_alloc_with() {
    all(|| {
        let (space, set) = with_set(1, 1);
        let theirs = set.clone();
        let thread = thread::spawn(move || match theirs.alloc_with(1..=1, |id| Life::new(id.0)) {
            Ok(lease) => assert_eq!(lease.check(), 1),
            Err(error) => assert_eq!(error, AllocError::SetClosed),
        });
        set.close();
        thread.join().unwrap();
        assert_gone(&space, set);
    });
}

/// Both end it, once: the free, and the teardown.
#[test]
fn teardown_against_free() {
    all(|| {
        let (space, set) = with_set(2, 1);
        let lease = set.alloc(1..=1, Life::new(1)).unwrap();
        let thread = thread::spawn(move || {
            let _ = lease.free();
        });
        set.close();
        thread.join().unwrap();
        assert_gone(&space, set);
    });
}

#[test]
fn teardown_against_keep() {
    all(|| {
        let (space, set) = with_set(1, 1);
        let lease = set.alloc(1..=1, Life::new(1)).unwrap();
        let theirs = set.clone();
        let thread = thread::spawn(move || {
            theirs.keep(lease).map_err(drop).unwrap();
        });
        set.close();
        thread.join().unwrap();
        assert_gone(&space, set);
    });
}

/// A kept lease is taken out by one of two, or freed by the teardown.
#[test]
fn teardown_against_take() {
    all(|| {
        let (space, set) = with_set(1, 1);
        let lease = set.alloc(1..=1, Life::new(1)).unwrap();
        let id = set.keep(lease).map_err(drop).unwrap().id();
        let theirs = set.clone();
        let thread = thread::spawn(move || match theirs.take(id) {
            Ok(lease) => assert_eq!(lease.check(), 1),
            Err(error) => {
                assert!([TakeError::NotFound(id), TakeError::Parked(id)].contains(&error));
            }
        });
        set.close();
        thread.join().unwrap();
        assert_gone(&space, set);
    });
}

#[test]
fn take_against_take() {
    all(|| {
        let (space, set) = with_set(1, 1);
        let lease = set.alloc(1..=1, Life::new(1)).unwrap();
        let id = set.keep(lease).map_err(drop).unwrap().id();
        let theirs = set.clone();
        let thread = thread::spawn(move || theirs.take(id).ok());
        let mine = set.take(id).ok();
        let yours = thread.join().unwrap();
        assert!(mine.is_some() != yours.is_some(), "exactly one has it");
        drop((mine, yours));
        set.close();
        assert_gone(&space, set);
    });
}

/// The owner looks for his set while its last handle goes: he finds it open, or not at all.
#[test]
fn find_by_owner_against_last_handle() {
    all(|| {
        let space = space::<Life>(2, 1);
        let owner = Owner::new("guest");
        let set = space.create_set("guest", SetType::Owned(owner.clone()), 1).unwrap();
        let other = space.clone();
        let thread = thread::spawn(move || {
            if let Some(set) = other.set_of(&owner) {
                assert!(set.alloc(1..=1, Life::new(1)).is_ok(), "open while there is a handle");
            }
        });
        drop(set);
        thread.join().unwrap();
        assert_idle(&space);
    });
}

/// Quota that one shard has and does not need is found by another.
#[test]
fn quota_is_never_missed() {
    all(|| {
        let (space, set) = with_set(1, 2);
        drop(set.alloc_on(1, 1..=1, Life::new(1)).unwrap());
        space.release_parked();
        let other = space.clone();
        let thread = thread::spawn(move || other.release_parked());
        assert!(set.alloc_on(0, 2..=2, Life::new(2)).is_ok(), "one of one is free all the time");
        thread.join().unwrap();
        set.close();
        assert_gone(&space, set);
    });
}

/// While a quota is made smaller nobody is refused who is within the new one.
#[test]
fn adjust_against_alloc() {
    all(|| {
        let (space, set) = with_set(2, 1);
        let theirs = set.clone();
        let thread = thread::spawn(move || {
            assert!(theirs.alloc(1..=1, Life::new(1)).is_ok(), "one of one, or of two");
        });
        set.adjust(1).unwrap();
        thread.join().unwrap();
        assert_eq!(space.usage().unreserved, 2);
        set.close();
        assert_gone(&space, set);
    });
}

/// A set is made while the index of another becomes free: no two sets have the same.
#[test]
fn create_against_drained() {
    bounded(|| {
        let space = space::<Life>(2, 1);
        let create = || space.create_set("guest", SetType::Native, 1).unwrap();
        let (first, second) = (create(), create());
        let lease = first.alloc(1..=1, Life::new(1)).unwrap();
        drop((first, second));
        let thread = thread::spawn(move || drop(lease));
        let third = create();
        thread.join().unwrap();
        let fourth = create();
        let (mine, yours) = (third.alloc(2..=2, Life::new(2)), fourth.alloc(3..=3, Life::new(3)));
        let (mine, yours) = (mine.ok().unwrap(), yours.ok().unwrap());
        let reader = space.reader();
        let guard = reader.pin();
        assert!(guard.find_in(&third, mine.id()).is_ok());
        assert!(guard.find_in(&third, yours.id()).is_err(), "two sets with one index");
    });
}

/// The last handle closes its set, while the set drains and another takes its place: nothing of that
/// is touched.
#[test]
fn last_handle_against_the_next_set() {
    bounded(|| {
        let (space, set) = with_set(1, 1);
        let lease = set.alloc(1..=1, Life::new(1)).unwrap();
        let thread = thread::spawn(move || drop(set));
        drop(lease);
        let next = space.create_set("next", SetType::Native, 1).unwrap();
        let lease = next.alloc(2..=2, Life::new(2)).unwrap_or_else(|error| panic!("{error}"));
        thread.join().unwrap();
        assert!(lease.is_live(), "parked by another set's end");
        drop((lease, next));
        assert_idle(&space);
    });
}
