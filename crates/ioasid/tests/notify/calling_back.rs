//! Handlers that call the space they are called by.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ioasid::{BindError, Lease, Priority::*, Subscription};

use crate::common::*;

/// Each handler allocates, binds and frees an ID of its own (whose events it gets as well, and
/// lets pass), subscribes somebody and does what work there is.
#[test]
fn a_handler_may_do_anything() {
    let (space, log) = (space(), Log::default());
    let (inner, nested) = (space.clone(), Arc::new(AtomicU32::new(0)));
    let depth = nested.clone();
    let quiet = Log::default();
    let vfio = space.holder("vfio").unwrap();
    let by = vfio.clone();
    let busy = Recorder::with("busy", &log, move |_, event| {
        if depth.fetch_add(1, Relaxed) == 0 {
            let lease = inner.alloc(10..=20, 1).unwrap();
            let other = subscribe(&inner, Device, &Recorder::new("other", &quiet));
            let binding = lease.bind(&by).unwrap().commit();
            let held = event.hold();
            if let Ok(held) = &held {
                // Whatever event of it is being told: it is one at a time.
                assert_eq!(held.bind(&by).unwrap_err(), BindError::Busy(event.id()));
            }
            drop((binding, held, other));
            drop(lease);
            work(&inner);
        }
        depth.fetch_sub(1, Relaxed);
        Ok(())
    });
    let subscription = subscribe(&space, Iommu, &busy);
    let lease = space.alloc(1..=1, 0).unwrap();
    drop(lease.bind(&vfio).unwrap());
    drop(lease.bind(&vfio).unwrap().commit());
    drop(lease);
    work(&space);
    let told: Vec<_> = log.take().into_iter().filter(|line| line.ends_with(" 1")).collect();
    let all = ["Alloc", "Prepare", "Abort", "Prepare", "Commit", "Unbind", "Free"];
    assert_eq!(told, all.map(|what| format!("busy {what} 1")));
    assert_eq!(nested.load(Relaxed), 0);
    drop(subscription);
    assert_idle(&space);
}

#[test]
fn a_handler_may_end_subscriptions_its_own_included() {
    for ended in ["own", "next", "previous"] {
        let (space, log) = (space(), Log::default());
        let all: Arc<Mutex<Vec<Subscription<Data>>>> = Arc::default();
        let ends = all.clone();
        let middle = Recorder::with("own", &log, move |what, _| {
            if what == What::Alloc {
                let mut all = ends.lock().unwrap();
                let at = all.iter().position(|one| one.holder().name() == ended).unwrap();
                let gone = all.remove(at);
                drop(all);
                drop(gone);
            }
            Ok(())
        });
        let previous = subscribe(&space, Last, &Recorder::new("previous", &log));
        let own = subscribe(&space, Device, &middle);
        let next = subscribe(&space, Cpu, &Recorder::new("next", &log));
        all.lock().unwrap().extend([previous, own, next]);
        let lease = space.alloc(1..=1, 0).unwrap();
        let mut expected = vec!["previous Alloc 1", "own Alloc 1", "next Alloc 1"];
        expected.retain(|line| ended != "next" || !line.starts_with("next"));
        assert_eq!(log.take(), expected);
        drop(lease);
        work(&space);
        let left = ["next", "own", "previous"].into_iter().filter(|name| *name != ended);
        assert_eq!(log.take(), left.map(|name| format!("{name} Free 1")).collect::<Vec<_>>());
        all.lock().unwrap().clear();
        assert_idle(&space);
    }
}

/// The ID's own lease goes in each of its handlers: FREE comes after the event it goes in.
#[test]
fn a_handler_may_free_the_very_id() {
    for at in [What::Prepare, What::Commit, What::Abort, What::Unbind] {
        let (space, log) = (space(), Log::default());
        let held: Arc<Mutex<Option<Lease<Data>>>> = Arc::default();
        let (gone, working) = (held.clone(), space.clone());
        let freeing = Recorder::with("one", &log, move |what, _| {
            if what == at {
                drop(gone.lock().unwrap().take());
                work(&working);
            }
            Ok(())
        });
        let subscription = subscribe(&space, Cpu, &freeing);
        let vfio = space.holder("vfio").unwrap();
        let lease = space.alloc(1..=1, 0).unwrap();
        let reference = lease.share(&vfio).unwrap();
        *held.lock().unwrap() = Some(lease);
        log.take();
        match (at, reference.bind(&vfio)) {
            (What::Prepare, bound) => {
                assert_eq!(bound.unwrap_err(), BindError::Parked(reference.id()));
            }
            (What::Abort, bound) => drop(bound.unwrap()),
            (_, bound) => drop(bound.unwrap().commit()),
        }
        work(&space);
        let told = match at {
            What::Prepare | What::Abort => vec!["one Prepare 1", "one Abort 1", "one Free 1"],
            // Freed while it was being bound: nobody is told of the unbind.
            What::Commit => vec!["one Prepare 1", "one Commit 1", "one Free 1"],
            _ => vec!["one Prepare 1", "one Commit 1", "one Unbind 1", "one Free 1"],
        };
        assert_eq!(log.take(), told);
        drop((reference, subscription));
        assert_idle(&space);
    }
}
