//! SPIDs: a bijection inside each set, found without a lock, taken until release or detach.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasid::{Config, ConfigError, Geometry, Hooks, Set, SetType, Space, Spid, SpidError};
use proptest::prelude::*;

type Tiny = Geometry<1, 1>;

fn space() -> Space<u32> {
    Space::new(Config::default()).unwrap()
}

fn set(space: &Space<u32>, name: &str) -> Set<u32> {
    space.create_set(name, SetType::Native, 64).unwrap()
}

fn found(space: &Space<u32>, set: &Set<u32>, spid: u32) -> Option<u32> {
    let reader = space.reader();
    let guard = reader.pin();
    guard.find_by_spid(set, Spid(spid)).map(|(data, _)| *data)
}

#[test]
fn attach_find_detach() {
    let space = space();
    let guest = set(&space, "guest");
    let lease = guest.alloc(1..=99, 7).unwrap();
    assert_eq!((found(&space, &guest, 5), lease.spid()), (None, None));
    guest.attach_spid(&lease, Spid(5)).unwrap();
    assert_eq!((found(&space, &guest, 5), lease.spid()), (Some(7), Some(Spid(5))));
    assert_eq!((found(&space, &guest, 4), found(&space, &guest, 6)), (None, None));
    assert_eq!(guest.detach_spid(&lease), Ok(Spid(5)));
    assert_eq!((found(&space, &guest, 5), lease.spid()), (None, None));
    assert_eq!(guest.detach_spid(&lease), Err(SpidError::NoSpid(lease.id())));
}

#[test]
fn a_reference_will_do() {
    let space = space();
    let guest = set(&space, "guest");
    let holder = space.holder("cpu").unwrap();
    let lease = guest.alloc(1..=99, 7).unwrap();
    let reference = lease.share(&holder).unwrap();
    guest.attach_spid(&reference, Spid(0)).unwrap();
    assert_eq!((reference.spid(), lease.spid()), (Some(Spid(0)), Some(Spid(0))));
    drop(lease);
    assert_eq!(found(&space, &guest, 0), None, "freed");
    assert_eq!(guest.attach_spid(&reference, Spid(1)), Err(SpidError::Parked(reference.id())));
    assert_eq!(guest.detach_spid(&reference), Ok(Spid(0)), "also of a parked ID");
}

#[test]
fn the_same_spid_in_many_sets() {
    let space = space();
    let sets: Vec<_> = (0..8).map(|n| set(&space, &n.to_string())).collect();
    let leases: Vec<_> = sets.iter().zip(0..).map(|(s, n)| s.alloc(1..=99, n).unwrap()).collect();
    for (set, lease) in sets.iter().zip(&leases) {
        set.attach_spid(lease, Spid(0xfffff)).unwrap();
    }
    for (set, n) in sets.iter().zip(0..) {
        assert_eq!(found(&space, set, 0xfffff), Some(n));
    }
}

#[test]
fn one_to_one_within_a_set() {
    let space = space();
    let guest = set(&space, "guest");
    let (a, b) = (guest.alloc(1..=99, 1).unwrap(), guest.alloc(1..=99, 2).unwrap());
    guest.attach_spid(&a, Spid(5)).unwrap();
    assert_eq!(guest.attach_spid(&b, Spid(5)), Err(SpidError::InUse { spid: Spid(5), id: a.id() }));
    assert_eq!(b.spid(), None);
    let has = |spid| Err(SpidError::HasSpid { id: a.id(), spid });
    assert_eq!(guest.attach_spid(&a, Spid(6)), has(Spid(5)));
    assert_eq!(guest.attach_spid(&a, Spid(5)), has(Spid(5)));
    assert_eq!((found(&space, &guest, 5), found(&space, &guest, 6)), (Some(1), None));
    guest.attach_spid(&b, Spid(6)).unwrap();
    assert_eq!((found(&space, &guest, 5), found(&space, &guest, 6)), (Some(1), Some(2)));
}

#[test]
fn foreign_ids_and_spids_are_refused() {
    let (space, other) = (space(), space());
    let (mine, theirs) = (set(&space, "mine"), set(&space, "theirs"));
    let stranger = set(&other, "stranger");
    let strange = stranger.alloc(1..=99, 3).unwrap();
    let (own, foreign, none) = (
        mine.alloc(1..=99, 0).unwrap(),
        theirs.alloc(1..=99, 1).unwrap(),
        space.alloc(1..=99, 2).unwrap(),
    );
    for lease in [&foreign, &none, &strange] {
        let error = Err(SpidError::ForeignSet(lease.id()));
        assert_eq!(mine.attach_spid(lease, Spid(1)), error);
        assert_eq!(mine.detach_spid(lease).map(drop), error);
    }
    let last = 0xfffff;
    for spid in [last + 1, u32::MAX - 1, u32::MAX].map(Spid) {
        assert_eq!(mine.attach_spid(&own, spid), Err(SpidError::Invalid { spid, last }));
        assert_eq!(found(&space, &mine, spid.0), None);
    }
    // A guard of another space finds nothing by it.
    mine.attach_spid(&own, Spid(1)).unwrap();
    assert_eq!(found(&space, &mine, 1), Some(0));
    assert_eq!(found(&other, &mine, 1), None);
}

/// Taken while the freed ID is held, free once it is released.
#[test]
fn taken_until_released() {
    let space = space();
    let guest = set(&space, "guest");
    let holder = space.holder("iommu").unwrap();
    let (first, second) = (guest.alloc(1..=99, 1).unwrap(), guest.alloc(1..=99, 2).unwrap());
    let id = first.id();
    guest.attach_spid(&first, Spid(5)).unwrap();
    let held = first.share(&holder).unwrap();
    first.free().unwrap();
    let taken = Err(SpidError::InUse { spid: Spid(5), id });
    assert_eq!(guest.attach_spid(&second, Spid(5)), taken);
    let reader = space.reader();
    let guard = reader.pin();
    drop(held);
    space.release_parked();
    assert_eq!(guest.attach_spid(&second, Spid(5)), taken, "a guard may still name it");
    drop(guard);
    space.release_parked();
    guest.attach_spid(&second, Spid(5)).unwrap();
    assert_eq!(found(&space, &guest, 5), Some(2));
}

#[test]
fn closing_the_set_frees_them_all() {
    let space = space();
    let guest = set(&space, "guest");
    let lease = guest.alloc(1..=99, 1).unwrap();
    guest.attach_spid(&lease, Spid(5)).unwrap();
    guest.close();
    assert_eq!(found(&space, &guest, 5), None);
    assert_eq!(guest.attach_spid(&lease, Spid(6)), Err(SpidError::Parked(lease.id())));
    assert!(lease.free().is_err());
    assert!(guest.is_drained());
    let next = set(&space, "next");
    assert_eq!(found(&space, &next, 5), None);
}

#[test]
fn the_width_is_checked() {
    let with = |width, spid_width| {
        Space::<u32, Tiny>::with_geometry(
            Config { width, spid_width, ..Config::default() },
            Hooks::default(),
        )
    };
    for width in [0, 21, 32] {
        assert_eq!(with(4, Some(width)).err(), Some(ConfigError::SpidWidth { width }));
    }
    for (width, spid_width, last) in [(4, None, 15), (4, Some(7), 127), (4, Some(1), 1)] {
        let space = with(width, spid_width).unwrap();
        let guest = space.create_set("guest", SetType::Native, 4).unwrap();
        let lease = guest.alloc(1..=9, 1).unwrap();
        let over = Spid(last + 1);
        assert_eq!(guest.attach_spid(&lease, over), Err(SpidError::Invalid { spid: over, last }));
        guest.attach_spid(&lease, Spid(last)).unwrap();
    }
    let widest = Space::<u32>::new(Config { width: 31, ..Config::default() }).unwrap();
    let guest = set(&widest, "guest");
    let lease = guest.alloc(0x7fff_ffff..=0x7fff_ffff, 1).unwrap();
    guest.attach_spid(&lease, Spid(0xfffff)).unwrap();
    assert_eq!(found(&widest, &guest, 0xfffff), Some(1));
}

/// Numbers and SPIDs are reused by one thread while another finds: it finds the ID whose data says
/// that it had this SPID at some time, and never one that has none.
#[test]
fn find_under_churn() {
    let space = Space::<(u32, u32)>::new(Config { width: 4, ..Config::default() }).unwrap();
    let guest = space.create_set("guest", SetType::Native, 4).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = space.reader();
            while !over.load(Ordering::Relaxed) {
                let guard = reader.pin();
                for spid in 0..4 {
                    if let Some((&(had, number), tag)) = guard.find_by_spid(&guest, Spid(spid)) {
                        assert_eq!((had, number), (spid, tag.id().0));
                    }
                }
            }
        });
        for turn in 0..if cfg!(miri) { 60 } else { 30_000 } {
            let spid = turn % 4;
            let named = guest.alloc_with(1..=4, |id| (spid, id.0)).unwrap();
            let nameless = guest.alloc(1..=4, (u32::MAX, 0)).ok();
            guest.attach_spid(&named, Spid(spid)).unwrap();
            drop((named, nameless));
            while space.usage().parked > 0 {
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Free(usize),
    Attach(usize, usize, u32),
    Detach(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..2usize).prop_map(Step::Alloc),
        1 => (0..8usize).prop_map(Step::Free),
        4 => (0..2usize, 0..8usize, 0..6u32).prop_map(|(set, at, spid)| Step::Attach(set, at, spid)),
        2 => (0..2usize, 0..8usize).prop_map(|(set, at)| Step::Detach(set, at)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against two plain maps a set, one each way.
    #[test]
    fn like_a_pair_of_maps(steps in proptest::collection::vec(step(), 1..60)) {
        let space = Space::<u32, Tiny>::with_geometry(
            Config { width: 3, spid_width: Some(2), shards: 2, ..Config::default() },
            Hooks::default(),
        ).unwrap();
        let sets = ["a", "b"].map(|name| space.create_set(name, SetType::Native, 3).unwrap());
        let mut leases = Vec::new();
        let mut by_spid = [HashMap::new(), HashMap::new()];
        for (turn, step) in (0u32..).zip(steps) {
            match step {
                Step::Alloc(set) => {
                    if let Ok(lease) = sets[set].alloc_on(turn as usize, 1..=7, turn) {
                        leases.push((set, lease));
                    }
                }
                Step::Free(at) if at < leases.len() => {
                    let (set, lease) = leases.swap_remove(at);
                    by_spid[set].retain(|_, id| *id != lease.id());
                    lease.free().unwrap();
                    space.release_parked();
                }
                Step::Attach(to, at, spid) if at < leases.len() => {
                    let (set, lease) = &leases[at];
                    let id = lease.id();
                    let had = by_spid[*set].iter().find(|(_, owner)| **owner == id);
                    let expected = if spid > 3 {
                        Err(SpidError::Invalid { spid: Spid(spid), last: 3 })
                    } else if *set != to {
                        Err(SpidError::ForeignSet(id))
                    } else if let Some((&spid, _)) = had {
                        Err(SpidError::HasSpid { id, spid })
                    } else if let Some(&id) = by_spid[to].get(&Spid(spid)) {
                        Err(SpidError::InUse { spid: Spid(spid), id })
                    } else {
                        by_spid[to].insert(Spid(spid), id);
                        Ok(())
                    };
                    prop_assert_eq!(sets[to].attach_spid(lease, Spid(spid)), expected);
                }
                Step::Detach(from, at) if at < leases.len() => {
                    let (set, lease) = &leases[at];
                    let id = lease.id();
                    let had = by_spid[*set].iter().find(|(_, owner)| **owner == id);
                    let expected = match had {
                        _ if *set != from => Err(SpidError::ForeignSet(id)),
                        None => Err(SpidError::NoSpid(id)),
                        Some((&spid, _)) => Ok(spid),
                    };
                    if let Ok(spid) = expected {
                        by_spid[from].remove(&spid);
                    }
                    prop_assert_eq!(sets[from].detach_spid(lease), expected);
                }
                _ => {}
            }
            let reader = space.reader();
            let guard = reader.pin();
            for (set, by_spid) in sets.iter().zip(&by_spid) {
                for spid in (0..6).map(Spid) {
                    let id = guard.find_by_spid(set, spid).map(|(_, tag)| tag.id());
                    prop_assert_eq!(id, by_spid.get(&spid).copied());
                }
            }
        }
    }
}
