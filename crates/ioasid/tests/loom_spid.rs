//! Every interleaving of what SPIDs and sources claim, on a space of a few numbers.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ioasid --release --test loom_spid --target-dir target/loom`;
//! with `--cfg sabotage="ioasid-no-spid-recheck"` as well, it must fail.
#![cfg(loom)]

use std::sync::Arc;

use ioasid::{
    AllocError, Config, Geometry, Hooks, NumberSource, Operations, RegisterError, Set, SetType,
    SourceError, Space, Spid, SpidError,
};
use loom::thread;

type Tiny = Geometry<1, 1>;

const SPID: Spid = Spid(1);

/// One shard, numbers 1 to 3, SPIDs 0 and 1.
fn space<T>() -> (Space<T, Tiny>, Set<T, Tiny>) {
    let config = Config { width: 2, shards: 1, spid_width: Some(1), ..Config::default() };
    let space = Space::with_geometry(config, Hooks::default()).unwrap();
    let set = space.create_set("guest", SetType::Native, 2).unwrap();
    (space, set)
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(5);
    builder.check(f);
}

/// An attach through a reference against the free of the ID: it is refused, or what it attached is
/// gone when the ID is. Either way another ID can have the SPID afterwards.
#[test]
fn attach_against_free() {
    model(|| {
        let (space, set) = space::<u32>();
        let holder = space.holder("cpu").unwrap();
        let lease = set.alloc(1..=1, 1).unwrap();
        let held = lease.share(&holder).unwrap();
        let attacher = {
            let set = set.clone();
            thread::spawn(move || {
                let (attached, id) = (set.attach_spid(&held, SPID), held.id());
                assert!(matches!(attached, Ok(()) | Err(SpidError::Parked(_))), "{id}");
            })
        };
        lease.free().unwrap();
        attacher.join().unwrap();
        space.release_parked();
        let next = set.alloc(1..=1, 2).unwrap();
        assert_eq!(next.spid(), None);
        assert_eq!(set.attach_spid(&next, SPID), Ok(()));
        let reader = space.reader();
        let tag = reader.pin().find_by_spid(&set, SPID).map(|(&data, tag)| (data, tag));
        assert_eq!(tag, Some((2, next.tag())));
    });
}

/// Two IDs want the same SPID, the first one of their set: just one gets it.
#[test]
fn attach_against_attach() {
    model(|| {
        let (space, set) = space::<u32>();
        let (a, b) = (set.alloc(1..=1, 1).unwrap(), set.alloc(2..=2, 2).unwrap());
        let theirs = set.clone();
        let other = thread::spawn(move || (theirs.attach_spid(&b, SPID), b));
        let first = set.attach_spid(&a, SPID);
        let (second, b) = other.join().unwrap();
        assert!(first.is_ok() != second.is_ok(), "{first:?}, {second:?}");
        let reader = space.reader();
        let guard = reader.pin();
        let winner = if first.is_ok() { a.tag() } else { b.tag() };
        assert_eq!(guard.find_by_spid(&set, SPID).map(|(_, tag)| tag), Some(winner));
    });
}

/// A find by SPID against its detach and the reuse of the number by an ID without one: it never
/// gives that ID.
#[test]
fn find_against_detach_and_reuse() {
    model(|| {
        let (space, set) = space::<u32>();
        let lease = set.alloc(1..=1, 1).unwrap();
        set.attach_spid(&lease, SPID).unwrap();
        let (reader, theirs) = (space.reader(), set.clone());
        let finder = thread::spawn(move || {
            let guard = reader.pin();
            let found = guard.find_by_spid(&theirs, SPID).map(|(&data, _)| data);
            assert!(matches!(found, None | Some(1)), "{found:?}");
        });
        set.detach_spid(&lease).unwrap();
        lease.free().unwrap();
        let next = set.alloc(1..=1, 2);
        finder.join().unwrap();
        drop(next);
    });
}

/// The same where the release clears it, and another ID gets the SPID next.
#[test]
fn find_against_release_and_reattach() {
    model(|| {
        let (space, set) = space::<u32>();
        let first = set.alloc(1..=1, 1).unwrap();
        set.attach_spid(&first, SPID).unwrap();
        let (reader, theirs) = (space.reader(), set.clone());
        let finder = thread::spawn(move || {
            let guard = reader.pin();
            let found = guard.find_by_spid(&theirs, SPID).map(|(&data, _)| data);
            assert!(matches!(found, None | Some(1 | 3)), "{found:?}");
        });
        first.free().unwrap();
        space.release_parked();
        // The number again, without the SPID; then the SPID again, with another number.
        let nameless = set.alloc(1..=1, 2);
        let last = set.alloc(2..=2, 3);
        if let Ok(last) = &last {
            let _ = set.attach_spid(last, SPID);
        }
        finder.join().unwrap();
        drop((nameless, last));
    });
}

/// Gives number 1, when it has it.
struct One(std::sync::Mutex<bool>);

impl NumberSource for One {
    fn alloc(&self, _: u32, _: u32) -> Result<u32, SourceError> {
        let mut out = self.0.lock().unwrap();
        if std::mem::replace(&mut *out, true) {
            return Err(SourceError::Exhausted);
        }
        Ok(1)
    }

    fn free(&self, number: u32) -> Result<(), SourceError> {
        assert_eq!(number, 1);
        assert!(std::mem::take(&mut *self.0.lock().unwrap()), "given back twice");
        Ok(())
    }
}

/// A source that takes over against an allocation: it does, and the number is its, or it does not
/// because the number is the space's.
#[test]
fn source_against_alloc() {
    model(|| {
        let (space, set) = space::<u32>();
        let source = Arc::new(One(std::sync::Mutex::new(false)));
        let allocator = {
            let set = set.clone();
            thread::spawn(move || set.alloc(1..=1, 1).unwrap())
        };
        let registered = space.register_source(&Operations::new("one"), source.clone());
        let lease = allocator.join().unwrap();
        assert_eq!(registered.is_ok(), *source.0.lock().unwrap());
        assert!(matches!(registered, Ok(_) | Err(RegisterError::InUse { out: 1 })));
        drop(lease);
        space.release_parked();
        space.work(usize::MAX);
        assert!(!*source.0.lock().unwrap());
        assert_eq!(space.report(0).unwrap().balance(), Ok(()));
    });
}

/// A source's number that is given back against its next allocation: never in use by two, and
/// never taken for a fault of the source.
#[test]
fn giving_back_against_alloc() {
    model(|| {
        let (space, set) = space::<u32>();
        let source = Arc::new(One(std::sync::Mutex::new(false)));
        let registration = space.register_source(&Operations::new("one"), source.clone()).unwrap();
        drop(set.alloc(1..=1, 1).unwrap());
        space.release_parked();
        let worker = {
            let space = space.clone();
            thread::spawn(move || {
                space.work(1);
            })
        };
        match set.alloc(1..=1, 2) {
            Ok(lease) => assert_eq!(*lease, 2),
            Err(error) => assert!(
                matches!(error, AllocError::Source(_) | AllocError::RangeFull { .. }),
                "{error}"
            ),
        }
        worker.join().unwrap();
        space.release_parked();
        space.work(usize::MAX);
        assert_eq!(space.source_counts(), Default::default());
        assert_eq!(space.usage().unreserved, 1, "of 3, 2 are the set's");
        registration.unregister().unwrap();
        assert_eq!(space.report(0).unwrap().balance(), Ok(()));
    });
}
