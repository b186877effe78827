//! Allocating and freeing.

use std::hint::black_box;

use ioasid::{Config, Lease, Set, SetType, Space};

use crate::find::Ours;
use crate::measure::{in_turn, together, Effort, Random, Round};
use crate::table::{Goal, Mode, Row, Table};

/// Threads that allocate at the same time.
const THREADS: usize = 2;

/// Allocates and frees the same again and again.
fn hot(set: &Set<u64>) -> Round<'_> {
    Box::new(move |ops| {
        let mut sum = 0;
        for op in 0..ops {
            let lease = set.alloc(1..=u32::MAX, op).expect("the set has room");
            sum += u64::from(black_box(lease.id()).0);
        }
        sum
    })
}

/// Frees one of many at random, and allocates another.
fn random<'a>(set: &'a Set<u64>, mut leases: Vec<Option<Lease<u64>>>, seed: u64) -> Round<'a> {
    let mut random = Random::new(seed);
    Box::new(move |ops| {
        let mut sum = 0;
        for op in 0..ops {
            let at = random.below(leases.len());
            let lease = &mut leases[at];
            *lease = None;
            let new = set.alloc(1..=u32::MAX, op).expect("the set has room");
            sum += u64::from(new.id().0);
            *lease = Some(new);
        }
        sum
    })
}

fn fill(set: &Set<u64>, live: usize) -> Vec<Option<Lease<u64>>> {
    (0..live).map(|data| Some(set.alloc(1..=u32::MAX, data as u64).expect("room"))).collect()
}

fn set() -> (Space<u64>, Set<u64>) {
    let space = Space::new(Config::default()).expect("the default holds together");
    let all = space.usage().unreserved;
    let set = space.create_set("bench", SetType::Native, all).expect("all is unreserved");
    (space, set)
}

/// Pairs on one thread and on two, which allocate from the same set.
pub(crate) fn pairs(table: &mut Table, live: usize, effort: Effort) {
    let peers = crate::peers::pairs(live, effort);
    let (_space, one) = set();
    let ballast = fill(&one, live);
    let alone = in_turn(effort, &mut [hot(&one)])[0];
    let row = Row::new("alloc + free, hot", Mode::Throughput, live, alone);
    table.add(row.peers(peers.hot).goal(Goal::below(25.0)));
    let both = together(effort, THREADS, |_| hot(&one));
    table.add(two_threads("alloc + free, hot", live, both, alone));
    drop(ballast);

    let (_space, one) = set();
    let leases = std::sync::Mutex::new(Some(fill(&one, live)));
    let take = || leases.lock().ok().and_then(|mut leases| leases.take()).expect("once");
    let alone = in_turn(effort, &mut [random(&one, take(), 3)])[0];
    let row = Row::new("alloc + free, random", Mode::Throughput, live, alone);
    table.add(row.peers(peers.random).goal(Goal::below(40.0)));
    // Each has half of them, and frees its own.
    let (_space, one) = set();
    let half = |index: usize| random(&one, fill(&one, live / THREADS), 3 + index as u64);
    let both = together(effort, THREADS, half);
    table.add(two_threads("alloc + free, random", live, both, alone));
}

fn two_threads(name: &'static str, live: usize, both: f64, alone: f64) -> Row {
    Row::new(name, Mode::Throughput, live, both)
        .threads(THREADS)
        .peers([("one thread", alone)])
        .goal(Goal::times_peer("one thread", 1.5))
}

/// Allocation in a range of 64k that has one hole, and in one that has none.
pub(crate) fn nearly_full(table: &mut Table, effort: Effort) {
    const RANGE: std::ops::RangeInclusive<u32> = 1..=65536;
    let (_space, set) = set();
    let mut leases: Vec<_> =
        RANGE.map(|_| set.alloc(RANGE, 0).expect("the range has room")).collect();
    let full: Round<'_> =
        Box::new(|ops| (0..ops).map(|_| u64::from(black_box(set.alloc(RANGE, 0)).is_err())).sum());
    let none = in_turn(effort, &mut [full])[0];
    let row = Row::new("alloc in a full range", Mode::Throughput, 65536, none);
    table.add(row.goal(Goal::below(5.0)));
    drop(leases.swap_remove(40_000));
    let hole: Round<'_> = Box::new(|ops| {
        let id = |_| u64::from(set.alloc(RANGE, 0).expect("there is a hole").id().0);
        (0..ops).map(id).sum()
    });
    let one = in_turn(effort, &mut [hole])[0];
    table.add(Row::new("alloc + free, one hole", Mode::Throughput, 65536, one));
}

/// Iterating a set of eight among 64k others.
pub(crate) fn iterate(table: &mut Table, effort: Effort) {
    const MEMBERS: u64 = 8;
    let Ours { space, leases, .. } = Ours::new(65536);
    let set = space.create_set("eight", SetType::Native, 8).expect("room for eight");
    let members: Vec<_> =
        (0..MEMBERS).map(|data| set.alloc(1..=u32::MAX, data).expect("room")).collect();
    let all: u64 = members.iter().map(|lease| u64::from(lease.id().0)).sum();
    let each: Round<'_> = Box::new(|ops| {
        let mut sum = 0;
        for _ in 0..ops / MEMBERS {
            let before = sum;
            set.for_each(|tag| sum += u64::from(tag.id().0));
            debug_assert_eq!(sum - before, all);
        }
        assert_eq!(sum, ops / MEMBERS * all, "every member each time");
        sum
    });
    let time = in_turn(effort, &mut [each])[0];
    let row = Row::new("iterate a set of 8, a member", Mode::Throughput, 65536, time);
    table.add(row.goal(Goal::below(2.0)));
    drop(leases);
}
