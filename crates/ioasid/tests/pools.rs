//! A pool for each requester, and numbers that are the same for all.

use ioasid::{AllocError, Config, ConfigError, Ioasid, Pool, PoolError, Pools, Scope};

fn config() -> Config {
    Config { width: 8, shards: 1, ..Config::default() }
}

fn pools() -> Pools<u16, u32> {
    Pools::new(config(), Some(100)).unwrap()
}

fn find(pools: &Pools<u16, u32>, requester: u16, number: u32) -> Option<u32> {
    pools.find(requester, Ioasid(number), |data, tag| {
        assert_eq!(tag.id(), Ioasid(number));
        *data
    })
}

/// Every number that a pool gives.
fn fill(pool: &Pool<u32>) -> Vec<ioasid::Lease<u32>> {
    std::iter::from_fn(|| pool.alloc(0..=u32::MAX, 7).ok()).collect()
}

#[test]
fn the_same_number_means_something_else_for_each() {
    let pools = pools();
    let (a, b) = (pools.add(1, Scope::Local).unwrap(), pools.add(2, Scope::Local).unwrap());
    let (x, y) = (a.alloc(5..=5, 1).unwrap(), b.alloc(5..=5, 2).unwrap());
    assert_eq!([1, 2, 3].map(|requester| find(&pools, requester, 5)), [Some(1), Some(2), None]);
    drop(x);
    assert_eq!([1, 2].map(|requester| find(&pools, requester, 5)), [None, Some(2)]);
    drop(y);
    assert_eq!(pools.len(), 2);
}

#[test]
fn using_all_of_one_harms_nobody() {
    let pools = pools();
    let (a, b) = (pools.add(1, Scope::Shared).unwrap(), pools.add(2, Scope::Shared).unwrap());
    let leases = fill(&a);
    assert_eq!(leases.len(), 99, "1 to 99");
    assert!(leases.iter().all(|lease| (1..100).contains(&lease.id().0)));
    let full = a.alloc(0..=u32::MAX, 0).unwrap_err();
    assert!(matches!(full, AllocError::RangeFull { .. }), "{full}");
    assert_eq!(fill(&b).len(), 99);
    let shared = pools.shared().unwrap();
    let all: Vec<_> = std::iter::from_fn(|| shared.alloc(0..=u32::MAX, 0).ok()).collect();
    assert_eq!(all.len(), 156, "100 to 255");
    assert!(all.iter().all(|lease| lease.id().0 >= 100));
}

#[test]
fn shared_numbers_are_found_by_those_who_opted_in() {
    let pools = pools();
    let (_a, _b) = (pools.add(1, Scope::Shared).unwrap(), pools.add(2, Scope::Shared).unwrap());
    let c = pools.add(3, Scope::Local).unwrap();
    let process = pools.shared().unwrap().alloc(0..=200, 9).unwrap();
    let number = process.id().0;
    assert_eq!(number, 100);
    assert_eq!(
        [1, 2, 3].map(|requester| find(&pools, requester, number)),
        [Some(9), Some(9), None]
    );
    let outside = c.alloc(number..=number, 0).unwrap_err();
    assert!(matches!(outside, AllocError::RangeFull { .. }), "{outside}");
    drop(process);
    assert_eq!(find(&pools, 1, number), None);
}

#[test]
fn a_requester_that_is_gone() {
    let pools = pools();
    let a = pools.add(1, Scope::Shared).unwrap();
    let own = a.alloc(5..=5, 1).unwrap();
    let process = pools.shared().unwrap().alloc(0..=200, 9).unwrap();
    let reader = pools.reader(1).unwrap();
    let before = reader.pin();
    assert_eq!((before.find(Ioasid(5)), before.find(process.id())), (Some(&1), Some(&9)));
    assert_eq!(pools.add(1, Scope::Local).unwrap_err(), PoolError::HasPool);
    drop(a);
    assert_eq!(before.find(Ioasid(5)), None);
    drop(before);
    let after = reader.pin();
    assert_eq!((after.find(Ioasid(5)), after.find(process.id())), (None, None));
    assert!(!own.is_live() && pools.reader(1).is_none() && pools.is_empty());
    assert!(process.is_live(), "it is not the requester's");
    // It comes back, with a lease of the old pool still about, and an old reader.
    let again = pools.add(1, Scope::Shared).unwrap();
    let new = again.alloc(5..=5, 2).unwrap();
    assert_eq!(find(&pools, 1, 5), Some(2));
    assert!(own.free().is_err());
    assert_eq!((find(&pools, 1, 5), after.find(Ioasid(5))), (Some(2), None));
    drop((new, again));
}

#[test]
fn without_a_split_all_numbers_are_local() {
    let pools = Pools::<u32, u32>::new(config(), None).unwrap();
    assert!(pools.shared().is_none());
    assert_eq!(pools.add(1, Scope::Shared).unwrap_err(), PoolError::NothingShared);
    let pool = pools.add(1, Scope::Local).unwrap();
    assert_eq!(fill(&pool).len(), 255);
}

#[test]
fn wrong_splits_and_configurations() {
    let empty = PoolError::Config(ConfigError::Capacity { capacity: 1, available: 0 });
    for split in [0, 1, 256, u32::MAX] {
        assert_eq!(Pools::<u16, u32>::new(config(), Some(split)).unwrap_err(), empty, "{split}");
    }
    for split in [2, 255] {
        assert!(Pools::<u16, u32>::new(config(), Some(split)).is_ok(), "{split}");
    }
    let wide = Config { width: 40, ..config() };
    let width = PoolError::Config(ConfigError::Width { width: 40 });
    assert_eq!(Pools::<u16, u32>::new(wide, None).unwrap_err(), width);
    let much = Config { capacity: Some(100), ..config() };
    let capacity = PoolError::Config(ConfigError::Capacity { capacity: 100, available: 99 });
    assert_eq!(Pools::<u16, u32>::new(much, Some(100)).unwrap_err(), capacity);
    let little = Config { capacity: Some(3), ..config() };
    let pools = Pools::<u16, u32>::new(little, Some(100)).unwrap();
    assert_eq!(fill(&pools.add(1, Scope::Local).unwrap()).len(), 3, "a capacity is for each");
}

#[test]
fn many_come_and_go_at_once() {
    let pools = pools();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let pools = &pools;
            scope.spawn(move || {
                for turn in 0..300 {
                    let requester = (turn + thread) % 5;
                    if let Ok(pool) = pools.add(requester, Scope::Shared) {
                        let lease = pool.alloc(1..=9, u32::from(requester)).unwrap();
                        assert_eq!(find(pools, requester, lease.id().0), Some(requester.into()));
                    }
                }
            });
        }
    });
    assert!(pools.is_empty());
}
