//! The space against a slow reference model, under random commands: several shards and sets,
//! guards held across, handles that are stale, forged or of another space. After every step what
//! is found, counted and dropped is what the model says; in particular
//!
//! * what all sets have reserved, what is out beside them and what is unreserved is the capacity;
//! * a number that is handed out has no reference, no lease and no reader of an earlier life;
//! * data is dropped once, and not while somebody may look at it.

mod every;
mod reference;
mod run;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;

use ioasid::{Config, Geometry, Hooks, Shape, Space};
use proptest::prelude::*;
use run::Run;

const WIDTH: u32 = 5;
const LAST: u32 = (1 << WIDTH) - 1;
const SHARDS: usize = 3;
const READERS: usize = 3;
const OWNERS: usize = 2;
const HOLDERS: usize = 2;

/// Picks from what there is at the time, modulo how much that is.
type Index = usize;

/// What may be asked of a space.
#[derive(Clone, Debug)]
enum Command {
    Alloc {
        set: Index,
        shard: usize,
        range: (u32, u32),
    },
    AllocWith {
        set: Index,
        range: (u32, u32),
        panics: bool,
    },
    Free(Index),
    Keep {
        lease: Index,
        set: Index,
    },
    Take {
        set: Index,
        id: u32,
    },
    Hold {
        id: u32,
        holder: usize,
    },
    HoldIn {
        set: Index,
        id: u32,
        holder: usize,
    },
    ShareLease {
        lease: Index,
        holder: usize,
    },
    ShareRef {
        of: Index,
        holder: usize,
    },
    Put(Index),
    Pin(usize),
    Unpin(Index),
    Create {
        owner: Option<usize>,
        quota: u32,
    },
    CloneSet(Index),
    FindSet(usize),
    DropSet(Index),
    Close(Index),
    Adjust {
        set: Index,
        quota: u32,
    },
    /// What another space's handles may do here: nothing.
    Foreign {
        id: u32,
    },
    /// Everything is looked at that may be.
    Look,
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..=LAST, 1 => LAST..=LAST + 9, 1 => Just(u32::MAX)]
}

fn range() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![
        3 => (number(), number()),
        3 => number().prop_map(|number| (number, number)),
        // So that the space fills.
        4 => Just((0, LAST)),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    use Command::*;
    let index = any::<Index>;
    let holder = || 0..HOLDERS;
    prop_oneof![
        20 => (index(), 0..SHARDS + 1, range())
            .prop_map(|(set, shard, range)| Alloc { set, shard, range }),
        3 => (index(), range(), prop::bool::weighted(0.2))
            .prop_map(|(set, range, panics)| AllocWith { set, range, panics }),
        12 => index().prop_map(Free),
        4 => (index(), index()).prop_map(|(lease, set)| Keep { lease, set }),
        3 => (index(), number()).prop_map(|(set, id)| Take { set, id }),
        4 => (number(), holder()).prop_map(|(id, holder)| Hold { id, holder }),
        3 => (index(), number(), holder())
            .prop_map(|(set, id, holder)| HoldIn { set, id, holder }),
        4 => (index(), holder()).prop_map(|(lease, holder)| ShareLease { lease, holder }),
        2 => (index(), holder()).prop_map(|(of, holder)| ShareRef { of, holder }),
        8 => index().prop_map(Put),
        4 => (0..READERS).prop_map(Pin),
        5 => index().prop_map(Unpin),
        4 => (prop::option::of(0..OWNERS), 0..14u32)
            .prop_map(|(owner, quota)| Create { owner, quota }),
        1 => index().prop_map(CloneSet),
        1 => (0..OWNERS).prop_map(FindSet),
        2 => index().prop_map(DropSet),
        1 => index().prop_map(Close),
        3 => (index(), 0..20u32).prop_map(|(set, quota)| Adjust { set, quota }),
        1 => number().prop_map(|id| Foreign { id }),
        8 => Just(Look),
    ]
}

/// A third of the steps is looked at from all sides, which releases what can be; between those, the
/// space is left to itself.
fn commands() -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec(command(), 1..120)
}

fn reserved() -> impl Strategy<Value = Vec<RangeInclusive<u32>>> {
    let range = (0..=LAST, 0..6u32).prop_map(|(min, len)| min..=min + len);
    prop::collection::vec(range, 0..3)
}

/// How often the data of each allocation was dropped.
type Drops = Arc<Vec<AtomicU32>>;

/// What an ID's data has to be able to do.
trait Data: Sized {
    fn new(which: usize, drops: &Drops) -> Self;
    fn which(&self) -> usize;
    /// Whether it is gone, if it can be known.
    fn gone(which: usize, drops: &Drops) -> Option<bool>;
}

/// Data with a destructor: released as soon as may be.
struct Token {
    which: usize,
    drops: Drops,
}

impl Drop for Token {
    fn drop(&mut self) {
        assert_eq!(self.drops[self.which].fetch_add(1, Relaxed), 0, "dropped twice");
    }
}

impl Data for Token {
    fn new(which: usize, drops: &Drops) -> Self {
        Self { which, drops: drops.clone() }
    }

    fn which(&self) -> usize {
        assert_eq!(self.drops[self.which].load(Relaxed), 0, "seen after its drop");
        self.which
    }

    fn gone(which: usize, drops: &Drops) -> Option<bool> {
        Some(drops[which].load(Relaxed) == 1)
    }
}

/// Data without one: released a batch at a time.
struct Plain(usize);

impl Data for Plain {
    fn new(which: usize, _: &Drops) -> Self {
        Self(which)
    }

    fn which(&self) -> usize {
        self.0
    }

    fn gone(_: usize, _: &Drops) -> Option<bool> {
        None
    }
}

fn check<D: Data, G: Shape>(
    reserved: Vec<RangeInclusive<u32>>,
    capacity: u32,
    commands: &[Command],
) -> Result<(), TestCaseError> {
    let taken: BTreeSet<u32> =
        reserved.iter().cloned().flatten().filter(|&number| number <= LAST).collect();
    let capacity = capacity.min(LAST + 1 - taken.len() as u32);
    let config = Config {
        width: WIDTH,
        capacity: Some(capacity),
        reserved,
        shards: SHARDS,
        ..Config::default()
    };
    let space = Space::<D, G>::with_geometry(config, Hooks::default()).unwrap();
    let readers: Vec<_> = (0..READERS).map(|_| space.reader()).collect();
    let model = reference::Model::new(LAST, taken, capacity);
    let mut run = Run::new(&space, &readers, model, commands.len());
    for command in commands {
        run.step(command)?;
    }
    run.end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn with_the_usual_geometry(
        (reserved, capacity, commands) in (reserved(), 0..=LAST + 1, commands())
    ) {
        check::<Token, Geometry>(reserved, capacity, &commands)?;
    }

    #[test]
    fn with_the_smallest_geometry(
        (reserved, capacity, commands) in (reserved(), 0..=LAST + 1, commands())
    ) {
        check::<Token, Geometry<1, 1>>(reserved, capacity, &commands)?;
    }

    #[test]
    fn with_data_that_is_released_in_batches(
        (reserved, capacity, commands) in (reserved(), 0..=LAST + 1, commands())
    ) {
        check::<Plain, Geometry<2, 3>>(reserved, capacity, &commands)?;
    }
}
