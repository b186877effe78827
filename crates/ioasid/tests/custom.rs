//! Numbers that come from elsewhere, from well-behaved sources and from others.

use std::collections::BTreeSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use ioasid::{
    AllocError, Config, Ioasid, NumberSource, Operations, RegisterError, SetType, SourceCounts,
    SourceError, SourceFault, Space, Spid, Work,
};

/// Hands out its numbers lowest first, and checks what is given back.
#[derive(Default)]
struct Register {
    free: Mutex<BTreeSet<u32>>,
    out: Mutex<BTreeSet<u32>>,
    calls: AtomicU32,
    /// Instead of a number.
    says: Mutex<Option<Result<u32, SourceError>>>,
    refuses_frees: AtomicBool,
    panics: AtomicBool,
}

impl Register {
    fn new(numbers: impl IntoIterator<Item = u32>) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(numbers.into_iter().collect()), ..Self::default() })
    }

    fn out(&self) -> Vec<u32> {
        self.out.lock().unwrap().iter().copied().collect()
    }

    fn say(&self, what: Result<u32, SourceError>) {
        *self.says.lock().unwrap() = Some(what);
    }
}

impl NumberSource for Register {
    fn alloc(&self, min: u32, max: u32) -> Result<u32, SourceError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(!self.panics.load(Ordering::Relaxed), "as it was told to");
        if let Some(what) = self.says.lock().unwrap().take() {
            return what;
        }
        let mut free = self.free.lock().unwrap();
        let number = free.range(min..=max).next().copied().ok_or(SourceError::Exhausted)?;
        free.remove(&number);
        assert!(self.out.lock().unwrap().insert(number));
        Ok(number)
    }

    fn free(&self, number: u32) -> Result<(), SourceError> {
        assert!(!self.panics.load(Ordering::Relaxed), "as it was told to");
        if self.refuses_frees.load(Ordering::Relaxed) {
            return Err(SourceError::Failed(7));
        }
        if self.out.lock().unwrap().remove(&number) {
            self.free.lock().unwrap().insert(number);
        }
        Ok(())
    }
}

fn space() -> Space<u32> {
    Space::new(Config { width: 8, ..Config::default() }).unwrap()
}

fn idle(space: &Space<u32>) {
    assert_eq!(space.work(usize::MAX), Work::Idle);
    let usage = space.usage();
    assert_eq!((usage.live, usage.parked, usage.unreserved), (0, 0, usage.capacity));
}

#[test]
fn numbers_come_from_the_source_and_go_back_by_work() {
    let space = space();
    let source = Register::new(40..=49);
    let registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    assert!(registration.is_active());
    let lease = space.alloc(0..=255, 1).unwrap();
    assert_eq!((lease.id(), space.get(Ioasid(40))), (Ioasid(40), Some(1)));
    let other = space.alloc(45..=255, 2).unwrap();
    assert_eq!(other.id(), Ioasid(45));
    drop(lease);
    space.release_parked();
    assert_eq!(source.out(), [40, 45], "only work may sleep");
    assert_eq!((space.usage().parked, space.source_counts().waiting), (1, 1));
    space.work(1);
    assert_eq!((source.out(), space.usage().parked), (vec![45], 0));
    drop(other);
    space.release_parked();
    space.work(usize::MAX);
    registration.unregister().unwrap();
    assert_eq!(space.alloc(0..=255, 1).unwrap().id(), Ioasid(1), "the space's own");
    idle(&space);
}

#[test]
fn data_that_is_dropped_at_once_and_made_late() {
    let space = Space::<String>::new(Config::default()).unwrap();
    let source = Register::new(40..=49);
    let _registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    let lease = space.alloc_with(0..=99, |id| format!("{id}")).unwrap();
    assert_eq!(*lease, "0x28");
    drop(lease);
    assert_eq!(source.out(), [40]);
    space.work(usize::MAX);
    assert_eq!(source.out(), []);
    let panics = catch_unwind(AssertUnwindSafe(|| {
        space.alloc_with(0..=99, |_| -> String { panic!("as it was told to") })
    }));
    assert!(panics.is_err());
    assert_eq!((source.out(), space.usage().live), (vec![], 0));
}

#[test]
fn errors_are_passed_through_and_change_nothing() {
    let space = space();
    let source = Register::new(40..=41);
    let _registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    let before = space.usage();
    assert_eq!(space.alloc(1..=9, 0).unwrap_err(), AllocError::Source(SourceError::Exhausted));
    source.say(Err(SourceError::Failed(3)));
    assert_eq!(space.alloc(1..=99, 0).unwrap_err(), AllocError::Source(SourceError::Failed(3)));
    assert_eq!(space.usage(), before);
    source.panics.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| space.alloc(1..=99, 0))).is_err());
    source.panics.store(false, Ordering::Relaxed);
    assert_eq!(space.usage(), before);
    let lease = space.alloc(1..=99, 0).unwrap();
    drop(lease);
    space.release_parked();
    source.panics.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| space.work(1))).is_err());
    assert_eq!(space.usage(), before, "given back as well as it could be");
}

#[test]
fn a_hostile_source_is_refused() {
    let space = space();
    let source = Register::new(40..=49);
    let _registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    let lease = space.alloc(40..=40, 0).unwrap();
    let before = space.usage();
    let cases = [
        (256, SourceFault::OutOfRange),
        (u32::MAX, SourceFault::OutOfRange),
        (0, SourceFault::Reserved),
        (40, SourceFault::InUse),
        (9, SourceFault::OutOfRange),
    ];
    for (number, fault) in cases {
        source.say(Ok(number));
        let error = AllocError::SourceFault { number, fault };
        assert_eq!(space.alloc(10..=99, 0).unwrap_err(), error);
        assert_eq!(space.usage(), before);
    }
    assert_eq!(source.out(), [40], "what is in use is not given back");
    assert_eq!(space.source_counts().refused, 5);
    // Parked, and waiting to be given back: in use as well.
    let reader = space.reader();
    let guard = reader.pin();
    drop(lease);
    let in_use = AllocError::SourceFault { number: 40, fault: SourceFault::InUse };
    source.say(Ok(40));
    assert_eq!(space.alloc(10..=99, 0).unwrap_err(), in_use);
    drop(guard);
    space.release_parked();
    source.say(Ok(40));
    assert_eq!(space.alloc(10..=99, 0).unwrap_err(), in_use);
    assert_eq!(source.out(), [40]);
    space.work(usize::MAX);
    assert_eq!(source.out(), []);
}

/// What is given back while the data of the refused allocation is dropped by the caller: just that.
#[test]
fn a_refused_number_goes_back_to_the_source() {
    struct Wild(Mutex<Vec<u32>>);
    impl NumberSource for Wild {
        fn alloc(&self, _: u32, _: u32) -> Result<u32, SourceError> {
            Ok(77)
        }
        fn free(&self, number: u32) -> Result<(), SourceError> {
            self.0.lock().unwrap().push(number);
            Ok(())
        }
    }
    let space = space();
    let source = Arc::new(Wild(Mutex::default()));
    let _registration = space.register_source(&Operations::new("wild"), source.clone()).unwrap();
    let refused = AllocError::SourceFault { number: 77, fault: SourceFault::OutOfRange };
    assert_eq!(space.alloc(1..=9, 0).unwrap_err(), refused);
    assert_eq!(*source.0.lock().unwrap(), [77]);
    assert_eq!(space.alloc(1..=99, 0).unwrap().id(), Ioasid(77), "free all the same");
}

#[test]
fn failed_frees_are_counted_and_do_not_leak() {
    let space = space();
    let source = Register::new(40..=49);
    let registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    let lease = space.alloc(1..=99, 0).unwrap();
    source.refuses_frees.store(true, Ordering::Relaxed);
    drop(lease);
    space.release_parked();
    idle(&space);
    let counts = SourceCounts { failed_frees: 1, refused: 0, waiting: 0 };
    assert_eq!(space.source_counts(), counts);
    registration.unregister().unwrap();
}

#[test]
fn a_source_takes_over_only_from_an_empty_space() {
    let space = space();
    let (vcmd, source) = (Operations::new("vcmd"), Register::new(40..=49));
    let lease = space.alloc(1..=9, 0).unwrap();
    let refused = space.register_source(&vcmd, source.clone()).unwrap_err();
    assert_eq!(refused, RegisterError::InUse { out: 1 });
    let own = space.alloc(1..=99, 0).unwrap();
    assert_eq!(source.calls.load(Ordering::Relaxed), 0);
    let reader = space.reader();
    let guard = reader.pin();
    drop((lease, own));
    let refused = space.register_source(&vcmd, source.clone()).unwrap_err();
    assert_eq!(refused, RegisterError::InUse { out: 2 }, "parked is out");
    drop(guard);
    let registration = space.register_source(&vcmd, source.clone()).unwrap();
    let twice = space.register_source(&vcmd, source.clone()).unwrap_err();
    assert_eq!(twice, RegisterError::Registered);
    let lease = space.alloc(1..=99, 0).unwrap();
    let still = registration.unregister().unwrap_err();
    assert_eq!(still.out, 1);
    assert!(still.registration.is_active());
    drop(lease);
    still.registration.unregister().unwrap();
    idle(&space);
}

/// The defect of the original: after the first of several sharers had gone, its operations were
/// used on.
#[test]
fn sharers_of_the_same_operations() {
    let space = space();
    let vcmd = Operations::new("vcmd");
    let (first, second) = (Register::new(40..=40), Register::new(50..=50));
    let one = space.register_source(&vcmd, first.clone()).unwrap();
    let two = space.register_source(&vcmd.clone(), second.clone()).unwrap();
    assert_eq!((one.is_active(), two.is_active()), (true, false));
    let lease = space.alloc(1..=99, 0).unwrap();
    assert_eq!(lease.id(), Ioasid(40));
    one.unregister().unwrap(); // the numbers are the group's
    assert!(two.is_active());
    assert_eq!(space.alloc(1..=99, 0).unwrap().id(), Ioasid(50));
    assert_eq!(first.calls.load(Ordering::Relaxed), 1);
    drop(lease);
    space.release_parked();
    space.work(usize::MAX);
    assert_eq!(first.out(), [40], "given back to the second");
    assert_eq!(Arc::strong_count(&first), 1);
    two.unregister().unwrap();
    assert_eq!(Arc::strong_count(&second), 1);
}

#[test]
fn others_wait_for_their_turn() {
    let space = space();
    let sources: Vec<_> = (0..3).map(|n| Register::new([40 + n])).collect();
    let mut registrations: Vec<_> = sources
        .iter()
        .map(|source| space.register_source(&Operations::new("vcmd"), source.clone()).unwrap())
        .collect();
    let active = |all: &[ioasid::Registration<u32>]| -> Vec<_> {
        all.iter().map(ioasid::Registration::is_active).collect()
    };
    assert_eq!(active(&registrations), [true, false, false]);
    // One that waits may go while numbers are out.
    let lease = space.alloc(1..=99, 0).unwrap();
    registrations.remove(1).unregister().unwrap();
    assert_eq!(active(&registrations), [true, false]);
    drop(lease);
    registrations.remove(0).unregister().unwrap();
    assert_eq!(active(&registrations), [true]);
    assert_eq!(space.alloc(1..=99, 0).unwrap().id(), Ioasid(42));
    space.release_parked();
    space.work(usize::MAX);
    registrations.remove(0).unregister().unwrap();
    assert_eq!(space.alloc(1..=99, 0).unwrap().id(), Ioasid(1));
}

/// A registration that is dropped while numbers are out: nothing is allocated until they are back,
/// then the next takes over.
#[test]
fn a_dropped_registration_retires() {
    let space = space();
    let (first, second) = (Register::new(40..=49), Register::new(50..=59));
    let (vcmd, virtio) = (Operations::new("vcmd"), Operations::new("virtio"));
    let one = space.register_source(&vcmd, first.clone()).unwrap();
    let two = space.register_source(&virtio, second.clone()).unwrap();
    let lease = space.alloc(1..=99, 0).unwrap();
    drop(one);
    assert!(!two.is_active());
    assert_eq!(space.alloc(1..=99, 0).unwrap_err(), AllocError::SourceGone);
    assert_eq!(space.get(lease.id()), Some(0));
    // The same operations again revive it.
    let again = space.register_source(&vcmd, first.clone()).unwrap();
    assert!(again.is_active());
    drop(space.alloc(1..=99, 0).unwrap());
    drop(again);
    drop(lease);
    space.release_parked();
    space.work(usize::MAX);
    assert_eq!(first.out(), []);
    assert_eq!(Arc::strong_count(&first), 1);
    assert!(two.is_active());
    assert_eq!(space.alloc(1..=99, 0).unwrap().id(), Ioasid(50));
}

#[test]
fn quotas_sets_and_spids_are_the_same() {
    let space = space();
    let set = space.create_set("before", SetType::Native, 2).unwrap();
    let source = Register::new(40..=49);
    let registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    let late = space.create_set("after", SetType::Native, 1).unwrap();
    let (a, b) = (set.alloc(1..=99, 1).unwrap(), set.alloc(1..=99, 2).unwrap());
    set.attach_spid(&a, Spid(1)).unwrap();
    let full = AllocError::QuotaExceeded { quota: 2 };
    assert_eq!(set.alloc(1..=99, 3).unwrap_err(), full);
    let c = late.alloc(1..=99, 3).unwrap();
    assert_eq!(late.alloc(1..=99, 3).unwrap_err(), AllocError::QuotaExceeded { quota: 1 });
    drop(a);
    space.release_parked();
    // What waits for the source is given back rather than missed.
    let a = set.alloc(1..=99, 4).unwrap();
    assert_eq!((a.id(), a.spid()), (Ioasid(40), None));
    set.attach_spid(&b, Spid(1)).unwrap();
    set.close();
    assert_eq!(set.alloc(1..=99, 3).unwrap_err(), AllocError::SetClosed);
    drop((a, b));
    assert!(!set.is_drained(), "the source has to have them back first");
    space.work(usize::MAX);
    assert!(set.is_drained());
    let kept = late.keep(c).unwrap();
    drop(late);
    assert_eq!(space.get(kept.id()), None);
    registration.unregister().unwrap();
    idle(&space);
    assert_eq!(source.out(), []);
}

/// With leases left when all handles of the space have gone, the last of them gives back.
#[test]
fn the_end_of_the_space_gives_everything_back() {
    let source = Register::new(40..=49);
    let leases = {
        let space = space();
        let _registration = space.register_source(&Operations::new("a"), source.clone()).unwrap();
        let freed = space.alloc(1..=99, 0).unwrap();
        let leases: Vec<_> = (0..3).map(|n| space.alloc(1..=99, n).unwrap()).collect();
        drop(freed);
        leases
    };
    assert_eq!(source.out().len(), 4);
    drop(leases);
    assert_eq!(source.out(), []);
    assert_eq!(Arc::strong_count(&source), 1);
}

/// A source that calls back into the space from both its calls: no lock is held.
#[test]
fn a_source_may_use_the_space() {
    struct Nosy(Mutex<Option<Space<u32>>>, Arc<Register>);
    impl NumberSource for Nosy {
        fn alloc(&self, min: u32, max: u32) -> Result<u32, SourceError> {
            let space = self.0.lock().unwrap().clone().unwrap();
            let _ = (space.usage(), space.create_set("a", SetType::Native, 1).unwrap());
            self.1.alloc(min, max)
        }
        fn free(&self, number: u32) -> Result<(), SourceError> {
            let space = self.0.lock().unwrap().clone().unwrap();
            let _ = (space.usage(), space.reader(), space.source_counts());
            self.1.free(number)
        }
    }
    let space = space();
    let source = Arc::new(Nosy(Mutex::new(Some(space.clone())), Register::new(40..=49)));
    let registration = space.register_source(&Operations::new("nosy"), source.clone()).unwrap();
    drop(space.alloc(1..=99, 0).unwrap());
    space.release_parked();
    space.work(usize::MAX);
    registration.unregister().unwrap();
    source.0.lock().unwrap().take();
    idle(&space);
}

/// Stops who does the work, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Threads that allocate and free while another does the work: the source hands numbers out again
/// as soon as it has them, which is never taken for a fault.
#[test]
fn under_threads() {
    let space = space();
    let source = Register::new(1..=4);
    let registration = space.register_source(&Operations::new("vcmd"), source.clone()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                space.work(8);
                std::thread::yield_now();
            }
        });
        let over = Over(&over);
        let churn = |seed: u32| {
            let set = space.create_set("guest", SetType::Native, 3).unwrap();
            for turn in 0..2_000 {
                match set.alloc(1..=4, seed + turn) {
                    Ok(lease) => assert_eq!(*lease, seed + turn),
                    Err(error) => assert!(
                        matches!(
                            error,
                            AllocError::Source(SourceError::Exhausted)
                                | AllocError::QuotaExceeded { .. }
                                | AllocError::RangeFull { .. }
                        ),
                        "{error}"
                    ),
                }
            }
        };
        let threads = [0, 1 << 16, 2 << 16].map(|seed| scope.spawn(move || churn(seed)));
        for thread in threads {
            thread.join().unwrap();
        }
        drop(over);
    });
    space.release_parked();
    registration.unregister().unwrap();
    idle(&space);
    assert_eq!((source.out(), space.source_counts().refused), (vec![], 0));
}

/// The source has the number and hands it out again before its `free` has returned: that is no
/// fault, and what is left of the first release does not touch the second life.
#[test]
fn handed_out_again_while_being_given_back() {
    use std::sync::Barrier;
    struct Slow(Arc<Register>, Barrier, Barrier, AtomicBool);
    impl NumberSource for Slow {
        fn alloc(&self, min: u32, max: u32) -> Result<u32, SourceError> {
            self.0.alloc(min, max)
        }
        fn free(&self, number: u32) -> Result<(), SourceError> {
            let result = self.0.free(number);
            if !self.3.swap(true, Ordering::Relaxed) {
                self.1.wait();
                self.2.wait();
            }
            result
        }
    }
    let space = space();
    let register = Register::new([40]);
    let source =
        Arc::new(Slow(register.clone(), Barrier::new(2), Barrier::new(2), AtomicBool::new(false)));
    let registration = space.register_source(&Operations::new("slow"), source.clone()).unwrap();
    let set = space.create_set("guest", SetType::Native, 1).unwrap();
    let first = set.alloc(1..=99, 1).unwrap();
    set.attach_spid(&first, Spid(1)).unwrap();
    drop(first);
    space.release_parked();
    std::thread::scope(|scope| {
        scope.spawn(|| space.work(1));
        source.1.wait();
        assert_eq!(set.alloc(1..=99, 2).unwrap_err(), AllocError::QuotaExceeded { quota: 1 });
        let again = space.alloc(1..=99, 2).unwrap();
        assert_eq!((again.id(), set.usage().parked), (Ioasid(40), 0));
        source.2.wait();
        assert_eq!(*again, 2);
    });
    space.release_parked();
    assert_eq!(space.usage().parked, 1, "the second life");
    registration.unregister().unwrap();
    drop(set);
    idle(&space);
    assert_eq!((register.out(), space.source_counts()), (vec![], SourceCounts::default()));
}
