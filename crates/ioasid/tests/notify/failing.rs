//! What goes wrong half-way.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;

use ioasid::{BindError, Priority, Refusal, SetType, Subscription};

use crate::common::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const OPENING: [Priority; 5] =
    [Priority::Last, Priority::Iommu, Priority::Device, Priority::Device, Priority::Cpu];

/// For every one of five: it refuses, those before it are told to forget it, in reverse; those
/// after it hear nothing; everything is as before; and the next bind goes through.
#[test]
fn the_nth_of_five_refuses() {
    for n in 0..NAMES.len() {
        let (space, log) = (space(), Log::default());
        let refusing = Arc::new(AtomicU32::new(1));
        let subscriptions: Vec<Subscription<Data>> = (0..NAMES.len())
            .map(|at| {
                let refusing = refusing.clone();
                let one = Recorder::with(NAMES[at], &log, move |what, _| {
                    let refuse = at == n && what == What::Prepare && refusing.load(Relaxed) == 1;
                    if refuse {
                        Err(Refusal::Other(at as u32))
                    } else {
                        Ok(())
                    }
                });
                subscribe(&space, OPENING[at], &one)
            })
            .collect();
        let vfio = space.holder("vfio").unwrap();
        let lease = space.alloc(3..=3, 0).unwrap();
        log.take();

        let refused = lease.bind(&vfio).unwrap_err();
        let (by, why) = (subscriptions[n].holder().clone(), Refusal::Other(n as u32));
        assert_eq!(refused, BindError::Refused { by, why });
        assert_eq!(
            refused.to_string(),
            format!("{} does not let the ID be bound: reason {n:#x}", NAMES[n])
        );
        let asked = NAMES[..=n].iter().map(|name| format!("{name} Prepare 3"));
        let undone = NAMES[..n].iter().rev().map(|name| format!("{name} Abort 3"));
        assert_eq!(log.take(), asked.chain(undone).collect::<Vec<_>>());

        refusing.store(0, Relaxed);
        let binding = lease.bind(&vfio).unwrap().commit();
        drop(binding);
        drop((lease, log.take()));
        work(&space);
        let freed = NAMES.iter().rev().map(|name| format!("{name} Free 3")).collect::<Vec<_>>();
        assert_eq!(log.take(), freed);
        drop(subscriptions);
        assert_idle(&space);
    }
}

#[test]
fn an_id_that_is_freed_while_everybody_is_asked_is_not_bound() {
    let (space, log) = (space(), Log::default());
    let set = space.create_set("guest", SetType::Native, 9).unwrap();
    let closing = set.clone();
    let _first = subscribe(&space, Priority::Iommu, &Recorder::new("iommu", &log));
    let cpu = Recorder::with("cpu", &log, move |what, _| {
        if what == What::Prepare {
            closing.close();
        }
        Ok(())
    });
    let second = subscribe(&space, Priority::Cpu, &cpu);
    let vfio = space.holder("vfio").unwrap();
    let lease = set.alloc(2..=2, 0).unwrap();
    log.take();
    assert_eq!(lease.bind(&vfio).unwrap_err(), BindError::Parked(lease.id()));
    let told = ["iommu Prepare 2", "cpu Prepare 2", "cpu Abort 2", "iommu Abort 2"];
    assert_eq!(log.take(), told);
    work(&space);
    assert_eq!(
        log.take(),
        ["cpu Closed guest", "iommu Closed guest", "cpu Free 2", "iommu Free 2"]
    );
    assert!(lease.free().is_err(), "its set had been closed");
    work(&space);
    assert_eq!(log.take(), ["cpu Drained guest", "iommu Drained guest"]);
    drop((second, cpu, set));
    assert_idle(&space);
}

#[test]
fn a_free_between_the_two_steps_is_told_after_the_bind() {
    let (space, log) = (space(), Log::default());
    let _subscription = subscribe(&space, Priority::Iommu, &Recorder::new("iommu", &log));
    let vfio = space.holder("vfio").unwrap();
    for commits in [true, false] {
        let lease = space.alloc(1..=1, 0).unwrap();
        let reference = lease.share(&vfio).unwrap();
        let prepared = reference.bind(&vfio).unwrap();
        log.take();
        assert_eq!(lease.bind(&vfio).unwrap_err(), BindError::Busy(lease.id()));
        lease.free().unwrap();
        work(&space);
        assert_eq!(log.take(), [""; 0], "not in the middle of a bind");
        assert!(!prepared.is_live());
        if commits {
            let binding = prepared.commit();
            work(&space);
            assert_eq!(log.take(), ["iommu Commit 1", "iommu Free 1"]);
            drop(binding);
        } else {
            drop(prepared);
            work(&space);
            assert_eq!(log.take(), ["iommu Abort 1", "iommu Free 1"]);
        }
        drop(reference);
        assert_idle(&space);
        assert_eq!(log.take(), [""; 0], "nothing after FREE");
    }
}

#[cfg(feature = "std")]
mod with_std {
    use super::*;

    /// Who panics in each handler in turn: it is counted, everybody else is told, and nothing is
    /// left behind.
    #[test]
    fn a_panic_concerns_its_handler_alone() {
        use What::*;
        for panics_in in [Alloc, Prepare, Commit, Abort, Unbind, Free] {
            let (space, log) = (space(), Log::default());
            let bad = Recorder::with("bad", &log, move |what, _| {
                if what == panics_in {
                    // As a payload, so that nothing is printed.
                    std::panic::resume_unwind(Box::new(PanicsAgain));
                }
                Ok(())
            });
            let first = subscribe(&space, Priority::Iommu, &Recorder::new("first", &log));
            let subscription = subscribe(&space, Priority::Device, &bad);
            let last = subscribe(&space, Priority::Cpu, &Recorder::new("last", &log));
            let vfio = space.holder("vfio").unwrap();
            let lease = space.alloc(1..=1, 0).unwrap();
            assert_eq!(log.take(), ["first Alloc 1", "bad Alloc 1", "last Alloc 1"]);

            let bound = lease.bind(&vfio);
            if panics_in == Prepare {
                let by = subscription.holder().clone();
                let refused = BindError::Refused { by, why: Refusal::Panicked };
                assert_eq!(bound.unwrap_err(), refused);
                assert_eq!(log.take(), ["first Prepare 1", "bad Prepare 1", "first Abort 1"]);
            } else {
                drop(bound.unwrap());
                log.take();
                let binding = lease.bind(&vfio).unwrap().commit();
                log.take();
                drop(binding);
                assert_eq!(log.take(), ["last Unbind 1", "bad Unbind 1", "first Unbind 1"]);
            }
            drop(lease);
            work(&space);
            assert_eq!(log.take(), ["last Free 1", "bad Free 1", "first Free 1"]);
            assert_eq!((space.handler_panics(), subscription.panics(), last.panics()), (1, 1, 0));
            drop((first, subscription, last));
            assert_idle(&space);
        }
    }

    /// A payload whose drop panics.
    struct PanicsAgain;

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new(()));
        }
    }

    #[test]
    fn a_subscriber_may_panic_when_it_is_dropped_by_its_last_event() {
        struct Bomb(std::sync::Mutex<Option<Subscription<Data>>>);
        impl ioasid::Subscriber<Data> for Bomb {
            fn alloc(&self, _: &ioasid::Event<'_, Data>) {
                drop(self.0.lock().unwrap().take());
            }
        }
        impl Drop for Bomb {
            fn drop(&mut self) {
                std::panic::resume_unwind(Box::new(()));
            }
        }
        let space = space();
        let holder = space.holder("bomb").unwrap();
        let bomb = Arc::new(Bomb(std::sync::Mutex::new(None)));
        let subscription = space.subscribe(&holder, Priority::Cpu, bomb.clone()).unwrap();
        *bomb.0.lock().unwrap() = Some(subscription);
        drop(bomb);
        drop(space.alloc(1..=1, 0).unwrap());
        assert_eq!(space.handler_panics(), 1);
        assert_idle(&space);
    }
}
