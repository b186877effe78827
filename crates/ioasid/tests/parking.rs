//! A number is not reused, and its data not dropped, while a guard may name it.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use common::{space, Counted};
use ioasid::{AllocError, Config, Ioasid, Lease, Space};

#[test]
fn a_guard_parks_what_is_freed_and_lets_go_of_it_when_it_ends() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let lease = space.alloc(1..=1, Counted(drops.clone())).unwrap();
    let reader = space.reader();

    let guard = reader.pin();
    let data = guard.find(Ioasid(1)).unwrap();
    lease.free().unwrap();
    assert_eq!(guard.find(Ioasid(1)).map(|_| ()), None, "parked");
    assert_eq!((space.usage().live, space.usage().parked), (0, 1));
    let full = AllocError::RangeFull { min: 1, max: 1 };
    assert_eq!(space.alloc(1..=1, Counted(drops.clone())).unwrap_err(), full);
    assert_eq!(data.0.load(Ordering::Relaxed), 1, "only the refused one was dropped");

    drop(guard);
    let again = space.alloc(1..=1, Counted(drops.clone())).unwrap();
    assert_eq!(again.id(), Ioasid(1));
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn a_guard_from_after_the_free_holds_nothing_back() {
    // Asked about readers at once, because the data has a destructor; else with the next batch.
    let space = space();
    space.alloc(1..=1, Box::new(1)).unwrap().free().unwrap();
    let reader = space.reader();
    let _guard = reader.pin();
    let lease = space.alloc(1..=1, Box::new(2)).unwrap();
    assert_eq!(lease.id(), Ioasid(1));
}

#[test]
fn parked_numbers_count_against_the_capacity() {
    let space = Space::new(Config { capacity: Some(1), ..Config::default() }).unwrap();
    let reader = space.reader();
    let guard = reader.pin();
    space.alloc(1..=9, ()).unwrap().free().unwrap();
    let full = AllocError::OutOfCapacity { capacity: 1 };
    assert_eq!(space.alloc(1..=9, ()).unwrap_err(), full);
    drop(guard);
    assert_eq!(space.alloc(1..=9, ()).unwrap().id(), Ioasid(1));
}

#[test]
fn nested_guards_of_one_reader_end_with_the_last() {
    let space = space();
    let reader = space.reader();
    let outer = reader.pin();
    let inner = reader.pin();
    space.alloc(1..=1, ()).unwrap().free().unwrap();
    drop(outer);
    assert!(space.alloc(1..=1, ()).is_err());
    assert_eq!(inner.find(Ioasid(1)), None);
    drop(inner);
    assert!(space.alloc(1..=1, ()).is_ok());
}

#[test]
fn a_forgotten_guard_ends_with_its_reader() {
    let space = space();
    let reader = space.reader();
    std::mem::forget(reader.pin());
    space.alloc(1..=1, ()).unwrap().free().unwrap();
    assert!(space.alloc(1..=1, ()).is_err());
    drop(reader);
    assert!(space.alloc(1..=1, ()).is_ok());
}

#[test]
fn a_tag_tells_one_life_of_a_number_from_the_next() {
    let space = space();
    let reader = space.reader();
    let first = space.alloc(5..=5, 'a').unwrap();
    let old = first.tag();
    first.free().unwrap();
    let second = space.alloc(5..=5, 'b').unwrap();
    let guard = reader.pin();
    assert_eq!(old.id(), second.id());
    assert_eq!(guard.find_exact(old), None);
    assert_eq!(guard.find_exact(second.tag()), Some(&'b'));
    assert_eq!(guard.find_tagged(Ioasid(5)), Some((&'b', second.tag())));
}

#[test]
fn data_may_know_its_number_and_a_panic_gives_the_number_back() {
    let space = space();
    let lease = space.alloc_with(3..=9, |id| id.0 * 2).unwrap();
    assert_eq!((*lease, lease.id()), (6, Ioasid(3)));

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        space.alloc_with(4..=4, |_| panic!("no data"))
    }));
    assert!(panicked.is_err());
    assert_eq!(space.usage().live, 1);
    assert_eq!(space.alloc(4..=4, 0).unwrap().id(), Ioasid(4));
}

/// Frees the numbers that it holds in the same space when it is dropped itself.
struct Nested(#[allow(dead_code)] Option<Lease<Nested>>);

#[test]
fn data_may_hold_leases_of_its_own_space() {
    let space = space();
    let inner = space.alloc(1..=9, Nested(None)).unwrap();
    let outer = space.alloc(1..=9, Nested(Some(inner))).unwrap();
    drop(outer);
    space.release_parked();
    assert_eq!((space.usage().live, space.usage().parked), (0, 0));
}

/// Looks through its space while it is dropped, when its number is in no list of the space.
struct Curious(Space<Curious>);

impl Drop for Curious {
    fn drop(&mut self) {
        assert_eq!((self.0.usage().live, self.0.usage().parked), (0, 1));
    }
}

#[test]
fn a_number_is_free_after_a_look_through_the_space_during_its_release() {
    let config = Config { width: 4, shards: 2, ..Config::default() };
    let space: Space<Curious> = Space::new(config).unwrap();
    for round in 0..3 {
        for n in 1..16 {
            let lease = space.alloc(n..=n, Curious(space.clone()));
            assert_eq!(lease.map(|lease| lease.id()).ok(), Some(Ioasid(n)), "round {round}");
        }
    }
}

#[test]
fn a_space_that_goes_drops_what_was_still_parked() {
    let drops = Arc::new(AtomicU32::new(0));
    let space = space();
    let reader = space.reader();
    let guard = reader.pin();
    space.alloc(1..=1, Counted(drops.clone())).unwrap().free().unwrap();
    space.alloc(2..=2, Counted(drops.clone())).unwrap().free().unwrap();
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    drop(guard);
    drop((reader, space));
    assert_eq!(drops.load(Ordering::Relaxed), 2);
}

#[test]
fn a_backlog_goes_away_on_request() {
    let space = space();
    let reader = space.reader();
    let leases: Vec<_> = (0..100).map(|n| space.alloc(1..=200, n).unwrap()).collect();
    let guard = reader.pin();
    drop(leases);
    space.release_parked();
    assert_eq!(space.usage().parked, 100, "the guard may name each of them");
    drop(guard);
    space.release_parked();
    assert_eq!(space.usage().parked, 0);
}

/// Threads that allocate, check and free beside one that finds: no number is held twice, and
/// nothing is left at the end.
#[test]
fn threads_share_a_small_space() {
    const ROUNDS: u32 = if cfg!(miri) { 50 } else { 3_000 };
    let space = Space::new(Config { width: 4, ..Config::default() }).unwrap();
    let held: Vec<AtomicU32> = (0..16).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let Ok(lease) = space.alloc_with(round % 8..=15, |id| id.0 * 3) else {
                        continue;
                    };
                    let holders = &held[lease.id().0 as usize];
                    assert_eq!(holders.fetch_add(1, Ordering::Relaxed), 0, "held twice");
                    assert_eq!(*lease, lease.id().0 * 3);
                    holders.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let reader = space.reader();
            for round in 0..ROUNDS {
                let guard = reader.pin();
                if let Some(data) = guard.find(Ioasid(round % 16)) {
                    assert_eq!(*data, round % 16 * 3);
                }
            }
        });
    });
    space.release_parked();
    assert_eq!((space.usage().live, space.usage().parked), (0, 0));
}

#[cfg(feature = "std")]
mod thread_local {
    use super::*;

    #[test]
    fn calls_may_be_nested_and_spaces_come_and_go() {
        for _ in 0..3 {
            let (one, two) = (space(), space());
            let a = one.alloc(1..=9, 10).unwrap();
            let b = two.alloc(1..=9, 20).unwrap();
            let sum = one.with(|g| {
                a.free().unwrap();
                assert_eq!(one.get(Ioasid(1)), None);
                assert_eq!(one.usage().parked, 1, "the outer call still has its guard");
                assert_eq!(g.find(Ioasid(1)), None);
                two.with(|h| *h.find(b.id()).unwrap()) + two.get(b.id()).unwrap()
            });
            assert_eq!(sum, 40);
            one.release_parked();
            assert_eq!(one.usage().parked, 0);
        }
    }

    #[test]
    fn a_thread_that_ended_holds_nothing_back() {
        let space = space();
        std::thread::scope(|scope| {
            scope.spawn(|| space.with(|guard| assert_eq!(guard.find(Ioasid(1)), None)));
        });
        let lease = space.alloc(1..=1, 1).unwrap();
        lease.free().unwrap();
        assert_eq!(space.usage().parked, 0);
    }
}
