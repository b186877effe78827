//! Whose events a subscription is about, and since when.

use std::sync::{Arc, Mutex};

use ioasid::{Owner, Priority::*, SetError, SetType, SubscribeError};

use crate::common::*;

#[test]
fn an_owner_is_subscribed_to_before_his_set_exists() {
    let (space, log) = (space(), Log::default());
    let (guest, other) = (Owner::new("guest"), Owner::new("guest"));
    let holder = space.holder("kvm").unwrap();
    let kvm = Recorder::new("kvm", &log);
    let subscription = space.subscribe_owner(&guest, &holder, Cpu, kvm).unwrap();

    let strange = space.create_set("strange", SetType::Owned(other), 3).unwrap();
    drop(strange.alloc(1..=1, 0).unwrap());
    drop((strange, space.alloc(1..=1, 0).unwrap()));
    work(&space);
    assert_eq!(log.take(), [""; 0], "a name is no owner");

    for round in ["first", "second"] {
        let set = space.create_set(round, SetType::Owned(guest.clone()), 3).unwrap();
        assert_eq!(log.take(), [format!("kvm Created {round}")]);
        drop(set.alloc(2..=2, 0).unwrap());
        set.close();
        work(&space);
        let told = ["kvm Alloc 2".into(), format!("kvm Closed {round}"), "kvm Free 2".into()];
        assert_eq!(log.take(), [&told[..], &[format!("kvm Drained {round}")]].concat());
    }
    drop(subscription);
    let set = space.create_set("third", SetType::Owned(guest), 3).unwrap();
    drop(set.alloc(2..=2, 0).unwrap());
    assert_eq!(log.take(), [""; 0]);
    drop(set);
    assert_idle(&space);
}

#[test]
fn an_owner_whose_set_has_ids_is_too_late_to_subscribe_to() {
    let (space, log) = (space(), Log::default());
    let guest = Owner::new("guest");
    let holder = space.holder("kvm").unwrap();
    let set = space.create_set("set", SetType::Owned(guest.clone()), 7).unwrap();
    let subscribe =
        || space.subscribe_owner(&guest, &holder, Cpu, Recorder::new("kvm", &log)).map(|_kept| ());
    let (one, two) = (set.alloc(1..=1, 0).unwrap(), set.alloc_on(1, 2..=2, 0).unwrap());
    let kept = two.share(&holder).unwrap();
    assert_eq!(subscribe(), Err(SubscribeError::HasIds { out: 2 }));
    drop((one, two));
    assert_eq!(subscribe(), Err(SubscribeError::HasIds { out: 1 }), "parked is not gone");
    drop(kept);
    let during = set.alloc_with(3..=3, |_| {
        assert_eq!(subscribe(), Err(SubscribeError::HasIds { out: 1 }), "about to be");
        0
    });
    drop(during);
    assert_eq!(log.take(), [""; 0], "refused, and told nothing");

    // The refused ones have left nothing behind: the next set is not theirs.
    assert_eq!(set.usage().quota, 7);
    let kvm = Recorder::new("kvm", &log);
    let subscription = space.subscribe_owner(&guest, &holder, Cpu, kvm).unwrap();
    let all: Vec<_> = (1..=7).map(|n| set.alloc_on(n, 1..=60, 0).unwrap()).collect();
    assert_eq!(log.take().len(), 7, "the whole quota, told once each");
    drop((all, set));
    work(&space);
    log.take();
    drop(subscription);
    assert_idle(&space);
}

#[test]
fn a_refused_set_is_heard_of_by_nobody() {
    let (space, log) = (space(), Log::default());
    let guest = Owner::new("guest");
    let holder = space.holder("kvm").unwrap();
    let kvm = Recorder::new("kvm", &log);
    let _subscription = space.subscribe_owner(&guest, &holder, Cpu, kvm).unwrap();
    let too_many = space.create_set("big", SetType::Owned(guest.clone()), 1_000);
    assert!(matches!(too_many, Err(SetError::OutOfCapacity { .. })));
    let set = space.create_set("one", SetType::Owned(guest.clone()), 1).unwrap();
    let twice = space.create_set("two", SetType::Owned(guest.clone()), 1);
    assert_eq!(twice.map(|_| ()), Err(SetError::HasSet));
    assert_eq!(log.take(), ["kvm Created one"]);
    drop(set);
    work(&space);
    assert_eq!(log.take(), ["kvm Closed one", "kvm Drained one"]);
    // It listened to the index that this set gets, and does not any more.
    let next = space.create_set("next", SetType::Native, 1).unwrap();
    drop(next.alloc(1..=9, 0).unwrap());
    assert_eq!((space.usage().parked, log.take()), (0, vec![]));
}

#[test]
fn a_subscription_needs_an_open_set_and_a_holder_of_its_space() {
    let (space, log) = (space(), Log::default());
    let stranger = crate::common::space().holder("stranger").unwrap();
    let one = Recorder::new("one", &log);
    let set = space.create_set("set", SetType::Native, 1).unwrap();
    let foreign = Err(SubscribeError::ForeignHolder);
    assert_eq!(space.subscribe(&stranger, Cpu, one.clone()).map(|_| ()), foreign);
    assert_eq!(set.subscribe(&stranger, Cpu, one.clone()).map(|_| ()), foreign);
    let holder = space.holder("one").unwrap();
    set.close();
    let closed = Err(SubscribeError::Closed);
    assert_eq!(set.subscribe(&holder, Cpu, one.clone()).map(|_| ()), closed);
    let lease = space.alloc(1..=1, 0).unwrap();
    assert_eq!(lease.bind(&stranger).unwrap_err(), ioasid::BindError::ForeignHolder);
    assert_eq!(Arc::strong_count(&one), 1, "no refused subscription keeps it");
}

#[test]
fn an_ended_subscription_lets_go_of_its_subscriber() {
    let (space, log) = (space(), Log::default());
    let one = Recorder::new("one", &log);
    let subscription = subscribe(&space, Cpu, &one);
    let lease = space.alloc(1..=1, 0).unwrap();
    let binding = lease.bind(subscription.holder()).unwrap().commit();
    log.take();
    drop(subscription);
    assert_eq!(Arc::strong_count(&one), 1);
    drop(binding);
    drop(lease);
    assert_eq!(log.take(), [""; 0]);
    assert_idle(&space);
    // And one that outlives its space.
    let subscription = subscribe(&space, Cpu, &one);
    drop(space);
    assert_eq!(subscription.holder().name(), "one");
    drop(subscription);
    assert_eq!(Arc::strong_count(&one), 1);
}

#[test]
fn who_unsubscribes_between_the_steps_of_a_bind_hears_no_more_of_it() {
    let (space, log) = (space(), Log::default());
    let one = subscribe(&space, Iommu, &Recorder::new("one", &log));
    let two = subscribe(&space, Cpu, &Recorder::new("two", &log));
    let vfio = space.holder("vfio").unwrap();
    let lease = space.alloc(1..=1, 0).unwrap();
    let prepared = lease.bind(&vfio).unwrap();
    drop(one);
    log.take();
    let binding = prepared.commit();
    drop(two);
    drop(binding);
    assert_eq!(log.take(), ["two Commit 1"]);
    drop(lease);
    assert_idle(&space);
}

#[test]
fn a_set_is_not_found_before_its_users_know_it() {
    let (space, log) = (space(), Log::default());
    let guest = Owner::new("guest");
    let (asked, found) = (space.clone(), Arc::new(Mutex::new(None)));
    struct Finder(ioasid::Space<Data>, Owner, Arc<Mutex<Option<bool>>>);
    impl ioasid::Subscriber<Data> for Finder {
        fn set_event(&self, event: &ioasid::SetEvent<'_>) {
            assert_eq!(event.owner(), Some(&self.1));
            *self.2.lock().unwrap() = Some(self.0.set_of(&self.1).is_some());
        }
    }
    let holder = space.holder("finder").unwrap();
    let finder = Arc::new(Finder(asked, guest.clone(), found.clone()));
    let subscription = space.subscribe(&holder, Cpu, finder).unwrap();
    let set = space.create_set("set", SetType::Owned(guest.clone()), 1).unwrap();
    assert_eq!(*found.lock().unwrap(), Some(false));
    assert!(space.set_of(&guest).is_some());
    drop((subscription, set, log));
    assert_idle(&space);
}

/// A set that is closed is not drained before that was told, even if it is empty.
#[test]
fn closed_is_told_before_drained() {
    let (space, log) = (space(), Log::default());
    let subscription = subscribe(&space, Cpu, &Recorder::new("one", &log));
    let set = space.create_set("set", SetType::Native, 4).unwrap();
    let again = set.clone();
    set.close();
    again.close();
    assert!(!set.is_drained());
    log.take();
    assert_eq!(space.work(1), ioasid::Work::More);
    assert_eq!(log.take(), ["one Closed set"]);
    assert!(set.is_drained());
    work(&space);
    assert_eq!(log.take(), ["one Drained set"]);
    drop(subscription);
    drop((set, again));
    assert_idle(&space);
}
