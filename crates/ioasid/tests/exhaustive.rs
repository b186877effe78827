//! Spaces small enough to try everything.

use ioasid::{AllocError, Config, ConfigError, Ioasid, Lease, Space};

fn space(width: u32, capacity: Option<u32>, reserved: &[(u32, u32)]) -> Space<u32> {
    let reserved = reserved.iter().map(|&(min, max)| min..=max).collect();
    Space::new(Config { width, capacity, reserved, ..Config::default() }).unwrap()
}

/// Brings a fresh space of `width` bits to hold exactly the numbers of `taken`.
fn holding(width: u32, taken: u32) -> (Space<u32>, Vec<Option<Lease<u32>>>) {
    let space = space(width, None, &[]);
    let lease = |n| (taken >> n & 1 == 1).then(|| space.alloc(n..=n, n).unwrap());
    let leases = (0..1 << width).map(lease).collect();
    (space, leases)
}

/// From every population of a space of up to eight numbers, every range is tried, and every
/// number is freed.
#[test]
fn every_range_over_every_population() {
    for width in 1..=3 {
        let count = 1u32 << width;
        for taken in 0..1u32 << count {
            let (space, mut leases) = holding(width, taken);
            for min in 0..count {
                for max in 0..count + 1 {
                    let last = max.min(count - 1);
                    let free = |n: &u32| taken >> n & 1 == 0;
                    let got = space.alloc(min..=max, 99).map(|lease| lease.id().0);
                    // Which of the free ones it is depends on what was free when.
                    let right = match got {
                        Ok(n) => (min..=last).contains(&n) && free(&n),
                        Err(AllocError::RangeFull { min: low, max: high }) => {
                            (low, high) == (min, last) && !(min..=last).any(|n| free(&n))
                        }
                        Err(error) => {
                            let empty = AllocError::EmptyRange { min, max, last: count - 1 };
                            min > max && error == empty
                        }
                    };
                    assert!(right, "{got:?} for {min}..={max} of {width} bits holding {taken:b}");
                }
            }
            for n in 0..count {
                let found = space.reader().pin().find(Ioasid(n)).copied();
                assert_eq!(found, (taken >> n & 1 == 1).then_some(n));
                if leases[n as usize].take().is_some() {
                    let again = space.alloc(n..=n, n).unwrap();
                    assert_eq!(again.id(), Ioasid(n), "freed, so free");
                }
            }
            assert_eq!(space.usage().live + space.usage().parked, 0);
        }
    }
}

/// Of a fresh space the numbers come lowest first, whatever the range; what was freed comes again
/// before, the last one first.
#[test]
fn which_number_comes_is_as_the_crate_page_says() {
    let space = space(20, None, &[(0, 0)]);
    let take = |min: u32, max: u32| space.alloc(min..=max, 0).unwrap();
    let leases: Vec<_> = (1..=40).map(|_| take(1, 1 << 19)).collect();
    assert!(leases.iter().map(|lease| lease.id().0).eq(1..=40));
    let high = take(5_000, 6_000);
    assert_eq!(high.id(), Ioasid(5_000));
    let mut leases = leases.into_iter();
    let (one, two) = (leases.next(), leases.next());
    drop(one);
    drop(two);
    space.release_parked();
    assert_eq!((take(1, 99).id(), take(1, 1).id()), (Ioasid(2), Ioasid(1)));
}

#[test]
fn zero_is_given_only_when_asked_for_and_not_reserved() {
    let default = Space::new(Config::default()).unwrap();
    assert_eq!(default.alloc(0..=0, ()).unwrap_err(), AllocError::RangeFull { min: 0, max: 0 });
    assert_eq!(default.alloc(0..=9, ()).unwrap().id(), Ioasid(1));

    let open = space(20, None, &[]);
    assert_eq!(open.alloc(0..=9, 0).unwrap().id(), Ioasid(0));
    let open = space(20, None, &[]);
    assert_eq!(open.alloc(1..=9, 0).unwrap().id(), Ioasid(1));
    assert_eq!(open.alloc(0..=0, 0).unwrap().id(), Ioasid(0));
}

#[test]
fn the_default_space_gives_exactly_the_numbers_of_20_bits() {
    let space = Space::new(Config::default()).unwrap();
    let last = (1 << 20) - 1;
    assert_eq!(space.usage().capacity, last);
    assert_eq!(space.alloc(last..=u32::MAX, ()).unwrap().id(), Ioasid(last));
    assert_eq!(
        space.alloc(last + 1..=u32::MAX, ()).unwrap_err(),
        AllocError::EmptyRange { min: last + 1, max: u32::MAX, last }
    );
    let reader = space.reader();
    assert_eq!(reader.pin().find(Ioasid(last + 1)), None);
    assert_eq!(reader.pin().find(Ioasid(u32::MAX)), None);
}

#[test]
fn both_ends_of_the_widest_space_can_be_had() {
    let space = space(31, None, &[(1 << 20, (1 << 31) - 2)]);
    let last = (1u32 << 31) - 1;
    let top = space.alloc(1 << 20..=last, 7).unwrap();
    assert_eq!(top.id(), Ioasid(last));
    assert_eq!(space.reader().pin().find(Ioasid(last)), Some(&7));
    assert_eq!(space.usage().capacity, (1 << 20) + 1);
}

#[test]
fn a_capacity_below_the_space_is_kept_and_named() {
    let space = space(20, Some(2), &[(0, 0)]);
    let one = space.alloc(1..=9, 0).unwrap();
    let two = space.alloc(1..=9, 0).unwrap();
    let full = AllocError::OutOfCapacity { capacity: 2 };
    assert_eq!(space.alloc(1..=9, 0).unwrap_err(), full);
    drop(one);
    let three = space.alloc(1..=9, 0).unwrap();
    assert_eq!((two.id(), three.id()), (Ioasid(2), Ioasid(1)));
    assert_eq!(space.alloc(100..=200, 0).unwrap_err(), full);
}

#[test]
fn a_config_that_does_not_hold_together_is_refused() {
    let refuse = |config: Config| Space::<()>::new(config).unwrap_err();
    let config = Config::default;
    for width in [0, 32, u32::MAX] {
        assert_eq!(refuse(Config { width, ..config() }), ConfigError::Width { width });
    }
    assert_eq!(
        refuse(Config { width: 4, capacity: Some(16), ..config() }),
        ConfigError::Capacity { capacity: 16, available: 15 }
    );
    let empty = core::ops::RangeInclusive::new(5, 4);
    assert_eq!(
        refuse(Config { reserved: vec![0..=3, empty], ..config() }),
        ConfigError::EmptyReservation { min: 5, max: 4 }
    );
}

#[test]
fn reservations_may_overlap_touch_and_reach_past_the_end() {
    let space = space(4, None, &[(4, 6), (0, 1), (2, 4), (12, u32::MAX), (40, 50)]);
    assert_eq!(space.usage().capacity, 5);
    let leases: Vec<_> = (0..5).map(|_| space.alloc(0..=99, 0).unwrap()).collect();
    let ids: Vec<u32> = leases.iter().map(|lease| lease.id().0).collect();
    assert_eq!(ids, [7, 8, 9, 10, 11]);
}
