//! Who is told first.

use std::sync::{Arc, Mutex};

use ioasid::{BindError, NumberSource, Operations, Priority::*, SetType, SourceError, Spid};

use crate::common::*;

/// Two of the space and three of a set, subscribed in an order that is none of theirs.
#[test]
fn one_order_over_the_space_and_a_set_and_closing_is_its_reverse() {
    let (space, log) = (space(), Log::default());
    let set = space.create_set("guest", SetType::Native, 9).unwrap();
    let in_set = |name, priority| {
        let holder = space.holder(name).unwrap();
        set.subscribe(&holder, priority, Recorder::new(name, &log)).unwrap()
    };
    let _subscriptions = (
        subscribe(&space, Cpu, &Recorder::new("cpu", &log)),
        in_set("device", Device),
        in_set("last", Last),
        subscribe(&space, Iommu, &Recorder::new("iommu", &log)),
        in_set("device2", Device),
    );
    let opening = ["last", "iommu", "device", "device2", "cpu"];
    let told = |what: &str, id: u32, up: bool| -> Vec<String> {
        let mut lines: Vec<_> = opening.iter().map(|name| format!("{name} {what} {id}")).collect();
        if !up {
            lines.reverse();
        }
        lines
    };

    let lease = set.alloc(5..=5, 50).unwrap();
    assert_eq!(log.take(), told("Alloc", 5, true));
    let vfio = space.holder("vfio").unwrap();
    let prepared = lease.bind(&vfio).unwrap();
    assert_eq!(log.take(), told("Prepare", 5, true));
    let binding = prepared.commit();
    assert_eq!(log.take(), told("Commit", 5, true));
    assert_eq!((*binding, binding.id(), binding.is_live()), (50, lease.id(), true));
    binding.unbind();
    assert_eq!(log.take(), told("Unbind", 5, false));
    drop(lease.bind(&vfio).unwrap());
    assert_eq!(log.take(), [told("Prepare", 5, true), told("Abort", 5, false)].concat());
    lease.free().unwrap();
    assert_eq!(log.take(), [""; 0], "told by the work alone");
    assert_eq!(space.usage().parked, 1);
    work(&space);
    assert_eq!(log.take(), told("Free", 5, false));

    // What is of no set concerns the set's subscribers not at all.
    drop(space.alloc(6..=6, 60).unwrap());
    work(&space);
    assert_eq!(log.take(), ["iommu Alloc 6", "cpu Alloc 6", "cpu Free 6", "iommu Free 6"]);
    drop(set);
    assert_idle(&space);
}

#[test]
fn the_first_bind_and_the_last_unbind_are_told() {
    let (space, log) = (space(), Log::default());
    let _subscription = subscribe(&space, Iommu, &Recorder::new("iommu", &log));
    let (one, two) = (space.holder("one").unwrap(), space.holder("two").unwrap());
    let lease = space.alloc(1..=9, 0).unwrap();
    let by_reference = lease.share(&two).unwrap();

    let first = lease.bind(&one).unwrap().commit();
    assert_eq!(log.take(), ["iommu Alloc 1", "iommu Prepare 1", "iommu Commit 1"]);
    let second = by_reference.bind(&two).unwrap().commit();
    let third = lease.bind(&two).unwrap();
    drop(first);
    drop(second);
    assert_eq!(log.take(), [""; 0], "the third is being made");
    drop(third);
    assert_eq!(log.take(), ["iommu Unbind 1"]);
    let _again = lease.bind(&one).unwrap().commit();
    assert_eq!(log.take(), ["iommu Prepare 1", "iommu Commit 1"]);
}

#[test]
fn after_free_an_unbind_is_quiet() {
    let (space, log) = (space(), Log::default());
    let _subscription = subscribe(&space, Iommu, &Recorder::new("iommu", &log));
    let vfio = space.holder("vfio").unwrap();
    for told_first in [false, true] {
        let lease = space.alloc(1..=1, 0).unwrap();
        let binding = lease.bind(&vfio).unwrap().commit();
        let reference = lease.share(&vfio).unwrap();
        log.take();
        lease.free().unwrap();
        if told_first {
            work(&space);
            assert_eq!(log.take(), ["iommu Free 1"]);
        }
        assert!(!binding.is_live());
        let refused = reference.bind(&vfio).unwrap_err();
        assert_eq!(refused, BindError::Parked(binding.id()));
        drop(binding);
        work(&space);
        assert_eq!(log.take(), if told_first { vec![] } else { vec!["iommu Free 1"] });
        assert_eq!(space.usage().parked, 1, "the reference is left");
        drop(reference);
        assert_idle(&space);
    }
}

#[test]
fn nobody_is_told_of_what_nobody_watches() {
    let (space, log) = (space(), Log::default());
    let set = space.create_set("guest", SetType::Native, 9).unwrap();
    let holder = space.holder("iommu").unwrap();
    let subscription = set.subscribe(&holder, Iommu, Recorder::new("iommu", &log)).unwrap();

    let lease = space.alloc(1..=1, 0).unwrap();
    drop(lease.bind(&holder).unwrap().commit());
    drop(lease);
    assert_eq!(space.usage().parked, 0, "no work stands before its release");

    let lease = set.alloc(2..=2, 0).unwrap();
    drop(subscription);
    drop(lease);
    assert_eq!(space.usage().parked, 0);
    assert_eq!(log.take(), ["iommu Alloc 2"]);
}

/// Who was not told of the bind is not told of its end: it could make nothing of it.
#[test]
fn a_latecomer_hears_no_unbind_without_its_bind() {
    let (space, log) = (space(), Log::default());
    let _early = subscribe(&space, Cpu, &Recorder::new("early", &log));
    let vfio = space.holder("vfio").unwrap();
    let lease = space.alloc(1..=1, 0).unwrap();
    let prepared = lease.bind(&vfio).unwrap();
    let _late = subscribe(&space, Iommu, &Recorder::new("late", &log));
    log.take();
    let binding = prepared.commit();
    drop(binding);
    assert_eq!(log.take(), ["early Commit 1", "early Unbind 1"]);
    let binding = lease.bind(&vfio).unwrap().commit();
    log.take();
    drop(binding);
    assert_eq!(log.take(), ["early Unbind 1", "late Unbind 1"]);
    drop(lease);
    work(&space);
    assert_eq!(log.take(), ["early Free 1", "late Free 1"], "of a FREE everybody hears");
}

#[test]
fn references_and_bindings_keep_a_freed_number_by_name() {
    let (space, log) = (space(), Log::default());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    let iommu = Recorder::with("iommu", &log, move |what, event| {
        match what {
            What::Prepare => keep.lock().unwrap().push(event.hold().unwrap()),
            What::Free => assert!(event.hold().is_err(), "nobody new"),
            _ => {}
        }
        Ok(())
    });
    let _subscription = subscribe(&space, Iommu, &iommu);
    let vfio = space.holder("vfio").unwrap();
    let lease = space.alloc(1..=1, 7).unwrap();
    let binding = lease.bind(&vfio).unwrap().commit();
    drop(lease);
    work(&space);
    for left in [1, 0] {
        assert_eq!(space.usage().parked, 1, "{left} are left besides");
        assert!(space.alloc(1..=1, 8).is_err());
        if left == 1 {
            assert_eq!(*kept.lock().unwrap()[0], 7, "its data stays");
            kept.lock().unwrap().clear();
        }
    }
    drop(binding);
    assert_eq!(space.usage().parked, 0);
}

/// Every event has the SPID of its time, and UNBIND the one of its BIND.
#[test]
fn events_carry_the_spid() {
    let (space, log) = (space(), Log::default());
    let set = space.create_set("guest", SetType::Native, 9).unwrap();
    let seen = log.clone();
    let one = Recorder::with("one", &Log::default(), move |what, event| {
        assert_eq!(event.set_name(), Some("guest"));
        seen.write(format!("{what:?} {:?}", event.spid().map(|spid| spid.0)));
        Ok(())
    });
    let _subscription = subscribe(&space, Iommu, &one);
    let vfio = space.holder("vfio").unwrap();
    let lease = set.alloc(1..=1, 0).unwrap();
    set.attach_spid(&lease, Spid(7)).unwrap();
    let binding = lease.bind(&vfio).unwrap().commit();
    set.detach_spid(&lease).unwrap();
    set.attach_spid(&lease, Spid(8)).unwrap();
    drop(binding);
    drop(lease);
    work(&space);
    let told = ["Alloc None", "Prepare Some(7)", "Commit Some(7)", "Unbind Some(7)"];
    assert_eq!(log.take(), [&told[..], &["Free Some(8)"]].concat());
}

/// A number goes back to its source after everybody was told, and not while somebody holds it.
#[test]
fn a_source_gets_its_number_back_after_the_free_was_told() {
    struct Source(Log);
    impl NumberSource for Source {
        fn alloc(&self, min: u32, _: u32) -> Result<u32, SourceError> {
            Ok(min)
        }
        fn free(&self, number: u32) -> Result<(), SourceError> {
            self.0.write(format!("source {number}"));
            Ok(())
        }
    }
    let (space, log) = (space(), Log::default());
    let source = Arc::new(Source(log.clone()));
    let registration = space.register_source(&Operations::new("vcmd"), source).unwrap();
    let subscription = subscribe(&space, Iommu, &Recorder::new("one", &log));
    let set = space.create_set("guest", SetType::Native, 9).unwrap();
    let lease = set.alloc(3..=9, 0).unwrap();
    let binding = lease.bind(subscription.holder()).unwrap().commit();
    log.take();
    set.close();
    drop(lease);
    work(&space);
    assert_eq!(log.take(), ["one Closed guest", "one Free 3"]);
    drop(binding);
    work(&space);
    assert_eq!(log.take(), ["source 3", "one Drained guest"]);
    drop((set, subscription));
    registration.unregister().unwrap();
    assert_idle(&space);
}
