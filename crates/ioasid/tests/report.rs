//! What a report says of sets and of parked IDs, and that the books balance.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use ioasid::{
    Awaiting, Clock, Config, Counts, Geometry, HeldBy, Hooks, Imbalance, NumberSource, Operations,
    Owner, Priority, Ref, SetType, SourceError, Space, Spid, Subscriber,
};
use proptest::prelude::*;

#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn space() -> (Space<u32>, Arc<Hand>) {
    let clock = Arc::new(Hand(AtomicU64::new(1)));
    let hooks = Hooks { clock: Some(clock.clone()), executor: None };
    (Space::with_geometry(Config { width: 8, ..Config::default() }, hooks).unwrap(), clock)
}

fn held_by(holder: &str, references: u32) -> HeldBy {
    HeldBy { holder: holder.to_owned(), references }
}

#[test]
fn an_empty_space() {
    let (space, _) = space();
    let report = space.report(9).unwrap();
    assert_eq!((report.capacity, report.unreserved), (255, 255));
    assert_eq!((report.no_set, report.readers), (Counts::default(), 0));
    assert!(report.sets.is_empty() && report.parked.is_empty());
    assert_eq!(report.balance(), Ok(()));
}

#[test]
fn sets_with_owners_and_quotas() {
    let (space, _) = space();
    let owner = Owner::new("guest 3");
    let guest = space.create_set("vtd", SetType::Owned(owner), 9).unwrap();
    let native = space.create_set("host", SetType::Native, 1).unwrap();
    let lease = guest.alloc(1..=99, 1).unwrap();
    let _loose = space.alloc(1..=99, 1).unwrap();
    native.close();
    guest.close();
    let report = space.report(0).unwrap();
    assert_eq!(report.balance(), Ok(()));
    let [set] = &report.sets[..] else { panic!("{report:?}") };
    assert_eq!((&*set.name, set.owner.as_deref()), ("vtd", Some("guest 3")));
    assert_eq!((set.quota, set.unused, set.open), (9, 8, false));
    assert_eq!(set.out, Counts { live: 0, parked: 1 });
    assert_eq!((report.no_set.live, report.unreserved), (1, 255 - 9 - 1));
    assert!(report.parked.is_empty(), "none was asked for");
    drop(lease);
    assert!(space.report(0).unwrap().sets.is_empty());
}

/// Nobody can hide an ID: what keeps it is named.
#[test]
fn what_stays_says_why() {
    let (space, clock) = space();
    let (iommu, cpu) = (space.holder("iommu").unwrap(), space.holder("cpu").unwrap());
    let guest = space.create_set("guest", SetType::Native, 9).unwrap();
    let lease = guest.alloc(1..=99, 1).unwrap();
    guest.attach_spid(&lease, Spid(5)).unwrap();
    let id = lease.id();
    let held: Vec<Ref<u32>> =
        [&iommu, &cpu, &iommu].iter().map(|holder| lease.share(holder).unwrap()).collect();
    let expected = [held_by("iommu", 2), held_by("cpu", 1)];
    assert_eq!(space.holders_of(id).unwrap(), expected);
    assert!(space.report(9).unwrap().parked.is_empty(), "it lives");
    clock.0.store(1_000, Ordering::Relaxed);
    drop(lease);
    clock.0.store(4_000, Ordering::Relaxed);
    let report = space.report(9).unwrap();
    let [parked] = &report.parked[..] else { panic!("{report:?}") };
    assert_eq!((parked.tag.id(), parked.spid), (id, Some(Spid(5))));
    assert_eq!((parked.set.as_deref(), parked.age_ns), (Some("guest"), 3_000));
    assert_eq!((&parked.holders[..], parked.leased), (&expected[..], false));
    assert_eq!(parked.awaiting, Awaiting::Holders);

    let reader = space.reader();
    let guard = reader.pin();
    drop(held);
    let report = space.report(9).unwrap();
    assert_eq!(report.parked[0].awaiting, Awaiting::Readers);
    assert_eq!((report.readers, report.parked[0].holders.len()), (1, 0));
    drop(guard);
    assert!(space.report(9).unwrap().parked.is_empty());
    assert!(space.holders_of(id).unwrap().is_empty());
}

#[test]
fn a_lease_of_a_closed_set() {
    let (space, _) = space();
    let guest = space.create_set("guest", SetType::Native, 9).unwrap();
    let (lease, kept) = (guest.alloc(1..=99, 1).unwrap(), guest.alloc(1..=99, 2).unwrap());
    let holder = space.holder("cpu").unwrap();
    let held = kept.share(&holder).unwrap();
    guest.keep(kept).unwrap();
    guest.close();
    let mut parked = space.report(9).unwrap().parked;
    parked.sort_by_key(|parked| parked.tag.id());
    let of = |id| parked.iter().find(|parked| parked.tag.id() == id).unwrap();
    assert!(of(lease.id()).leased && !of(held.id()).leased);
    assert_eq!(of(lease.id()).awaiting, Awaiting::Holders);
    drop((lease, held));
    assert!(space.report(9).unwrap().parked.is_empty());
}

#[test]
fn the_oldest_come_first_and_the_list_ends() {
    let (space, clock) = space();
    let holder = space.holder("cpu").unwrap();
    let mut held = Vec::new();
    for turn in 1..=100 {
        clock.0.store(turn * 10, Ordering::Relaxed);
        held.push(space.alloc(1..=255, 0).unwrap().share(&holder).unwrap());
    }
    clock.0.store(2_000, Ordering::Relaxed);
    for limit in [0, 1, 7, 100, usize::MAX] {
        let report = space.report(limit).unwrap();
        assert_eq!(report.no_set.parked, 100);
        let ages: Vec<_> = report.parked.iter().map(|parked| parked.age_ns).collect();
        let expected: Vec<_> = (1..=100.min(limit as u64)).map(|turn| 2_000 - turn * 10).collect();
        assert_eq!(ages, expected);
    }
    held.clear();
    assert_eq!(space.report(9).unwrap().no_set, Counts::default());
}

#[test]
fn what_waits_for_its_users_to_be_told() {
    struct Indifferent;
    impl Subscriber<u32> for Indifferent {}
    let (space, _) = space();
    let holder = space.holder("cpu").unwrap();
    let subscriber = Arc::new(Indifferent);
    let _subscription = space.subscribe(&holder, Priority::Cpu, subscriber).unwrap();
    let lease = space.alloc(1..=99, 0).unwrap();
    let held = lease.share(&holder).unwrap();
    drop(lease);
    let parked = space.report(9).unwrap().parked;
    assert_eq!(
        (parked[0].awaiting, &*parked[0].holders),
        (Awaiting::Teardown, &[held_by("cpu", 1)][..])
    );
    space.work(usize::MAX);
    assert_eq!(space.report(9).unwrap().parked[0].awaiting, Awaiting::Holders);
    drop(held);
    assert!(space.report(9).unwrap().parked.is_empty());
}

#[test]
fn what_waits_for_its_source() {
    struct Next(AtomicU64);
    impl NumberSource for Next {
        fn alloc(&self, _: u32, _: u32) -> Result<u32, SourceError> {
            Ok(self.0.fetch_add(1, Ordering::Relaxed) as u32)
        }
        fn free(&self, _: u32) -> Result<(), SourceError> {
            Err(SourceError::Failed(1))
        }
    }
    let (space, _) = space();
    let source = Arc::new(Next(AtomicU64::new(40)));
    let _registration = space.register_source(&Operations::new("next"), source).unwrap();
    drop(space.alloc(1..=99, 0).unwrap());
    let report = space.report(9).unwrap();
    assert_eq!((report.parked[0].awaiting, report.sources.waiting), (Awaiting::Source, 1));
    assert_eq!(report.balance(), Ok(()));
    space.work(9);
    let report = space.report(9).unwrap();
    assert_eq!((report.parked.len(), report.sources.failed_frees), (0, 1));
}

#[test]
fn an_imbalance_is_seen() {
    let (space, _) = space();
    let guest = space.create_set("guest", SetType::Native, 9).unwrap();
    let mut report = space.report(0).unwrap();
    report.sets[0].out.live += 1;
    let wrong = Imbalance::Set { name: "guest".to_owned(), total: 10, quota: 9 };
    assert_eq!(report.balance(), Err(wrong));
    report.sets[0].out.live -= 1;
    report.unreserved -= 1;
    assert_eq!(report.balance(), Err(Imbalance::Space { total: 254, capacity: 255 }));
    drop(guest);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After every step of a mixture of everything that moves quota.
    #[test]
    fn the_books_balance(steps in proptest::collection::vec((0..8u32, 0..16usize, 1..6u32), 1..60)) {
        let space = Space::<u32, Geometry<1, 2>>::with_geometry(
            Config { width: 4, shards: 2, ..Config::default() },
            Hooks::default(),
        ).unwrap();
        let holder = space.holder("cpu").unwrap();
        let (mut sets, mut leases, mut refs) = (Vec::new(), Vec::new(), Vec::new());
        let reader = space.reader();
        let mut guard = None;
        for (what, at, many) in steps {
            match what {
                0 => sets.extend(space.create_set("s", SetType::Native, many)),
                1 if !sets.is_empty() => drop(sets.swap_remove(at % sets.len())),
                2 if !sets.is_empty() => {
                    let _ = sets[at % sets.len()].adjust(many);
                }
                3 if !sets.is_empty() => {
                    leases.extend(sets[at % sets.len()].alloc_on(at, 1..=15, many));
                }
                4 => leases.extend(space.alloc_on(at, 1..=15, many)),
                5 if !leases.is_empty() => drop(leases.swap_remove(at % leases.len())),
                6 if !leases.is_empty() => {
                    refs.extend(leases[at % leases.len()].share(&holder));
                    if many == 1 {
                        refs.clear();
                    }
                }
                7 => guard = if many > 3 { Some(reader.pin()) } else { None },
                _ => {}
            }
            let report = space.report(usize::MAX).unwrap();
            prop_assert_eq!(report.balance(), Ok(()));
            let parked = report.sets.iter().map(|set| set.out.parked).sum::<u32>();
            prop_assert_eq!(report.parked.len() as u32, parked + report.no_set.parked);
            prop_assert_eq!(space.usage().live, leases.iter().filter(|l| l.is_live()).count() as u32);
        }
        drop(guard);
    }
}
