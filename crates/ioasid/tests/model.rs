//! The space against a slow reference model, under random commands.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ioasid::{AllocError, Config, Ioasid, Lease, Space, Tag};
use proptest::prelude::*;

const WIDTH: u32 = 7;
const LAST: u32 = (1 << WIDTH) - 1;

/// The specification: a map, no cache, no bit tricks.
struct Model {
    live: BTreeMap<u32, u64>,
    reserved: Vec<RangeInclusive<u32>>,
    capacity: u32,
}

impl Model {
    fn alloc(&mut self, min: u32, max: u32, data: u64) -> Result<u32, AllocError> {
        if min > max || min > LAST {
            return Err(AllocError::EmptyRange { min, max, last: LAST });
        }
        if self.live.len() as u32 >= self.capacity {
            return Err(AllocError::OutOfCapacity { capacity: self.capacity });
        }
        let max = max.min(LAST);
        let id = (min..=max)
            .find(|n| !self.live.contains_key(n) && !self.reserved.iter().any(|r| r.contains(n)))
            .ok_or(AllocError::RangeFull { min, max })?;
        self.live.insert(id, data);
        Ok(id)
    }
}

#[derive(Clone, Debug)]
enum Command {
    Alloc { min: u32, max: u32, data: u64 },
    Free { which: prop::sample::Index },
    Find { id: u32 },
}

fn command() -> impl Strategy<Value = Command> {
    let number = prop_oneof![8 => 0..=LAST, 1 => 0..=LAST + 9, 1 => Just(u32::MAX)];
    prop_oneof![
        5 => (number.clone(), number.clone(), any::<u64>())
            .prop_map(|(min, max, data)| Command::Alloc { min, max, data }),
        // Wide ranges, so that the space fills.
        3 => any::<u64>().prop_map(|data| Command::Alloc { min: 0, max: LAST, data }),
        5 => any::<prop::sample::Index>().prop_map(|which| Command::Free { which }),
        2 => number.prop_map(|id| Command::Find { id }),
    ]
}

fn reserved() -> impl Strategy<Value = Vec<RangeInclusive<u32>>> {
    let range = (0..=LAST, 0..20u32).prop_map(|(min, len)| min..=min + len);
    prop::collection::vec(range, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_space_does_what_the_model_does(
        reserved in reserved(),
        capacity in 0..=40u32,
        commands in prop::collection::vec(command(), 1..200),
    ) {
        let config =
            Config { width: WIDTH, capacity: Some(capacity), reserved: reserved.clone(), ..Config::default() };
        let space = Space::new(config).unwrap();
        let reader = space.reader();
        let mut model = Model { live: BTreeMap::new(), reserved, capacity };
        let mut leases: Vec<Lease<u64>> = Vec::new();
        let mut dead: Vec<Tag> = Vec::new();

        for command in commands {
            match command {
                Command::Alloc { min, max, data } => {
                    let lease = space.alloc(min..=max, data);
                    prop_assert_eq!(
                        lease.as_ref().map(|lease| lease.id().0).map_err(|&error| error),
                        model.alloc(min, max, data)
                    );
                    leases.extend(lease);
                }
                Command::Free { which } if !leases.is_empty() => {
                    let lease = leases.swap_remove(which.index(leases.len()));
                    prop_assert_eq!(model.live.remove(&lease.id().0), Some(*lease));
                    dead.push(lease.tag());
                    lease.free().unwrap();
                }
                Command::Free { .. } => {}
                Command::Find { id } => {
                    let guard = reader.pin();
                    prop_assert_eq!(guard.find(Ioasid(id)), model.live.get(&id));
                }
            }
            let usage = space.usage();
            prop_assert_eq!((usage.live as usize, usage.parked), (model.live.len(), 0));
        }

        let guard = reader.pin();
        for id in 0..=LAST {
            prop_assert_eq!(guard.find(Ioasid(id)), model.live.get(&id));
        }
        for lease in &leases {
            prop_assert_eq!(guard.find_exact(lease.tag()), Some(&**lease));
        }
        for tag in dead {
            prop_assert_eq!(guard.find_exact(tag), None, "{:?} is of an earlier life", tag);
        }
    }
}
