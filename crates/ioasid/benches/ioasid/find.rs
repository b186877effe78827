//! Finding by number: ours, the limit, and the peers, all holding the same.
//!
//! Place `i` of each holds the next place of one cycle through all, so that following it makes
//! each find wait for the last (latency); places known beforehand make them independent
//! (throughput).

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use ioasid::{Config, Ioasid, Lease, Reader, SetType, Space, Spid};

use crate::measure::{cycle, disturbed, in_turn, places, Effort, Random, Round, PLACES};
use crate::table::{Goal, Mode, Row, Table};

/// Follows the cycle.
fn chase(mut find: impl FnMut(u64) -> u64) -> impl FnMut(u64) -> u64 {
    let mut at = 0;
    move |ops| {
        for _ in 0..ops {
            at = find(at);
        }
        at
    }
}

/// Looks at places that are known beforehand.
fn scatter<'a>(
    places: &'a [u32],
    mut find: impl FnMut(u64) -> u64 + 'a,
) -> impl FnMut(u64) -> u64 + 'a {
    move |ops| {
        let (mut sum, mut at) = (0u64, 0usize);
        for _ in 0..ops {
            sum = sum.wrapping_add(find(places[at % PLACES].into()));
            at += 1;
        }
        sum
    }
}

/// Our space, with place `i` as number `i + 1`.
pub(crate) struct Ours {
    pub(crate) space: Space<u64>,
    pub(crate) leases: Vec<Lease<u64>>,
    pub(crate) reader: Reader<u64>,
}

impl Ours {
    pub(crate) fn new(live: usize) -> Self {
        let space = Space::new(Config::default()).expect("the default holds together");
        let leases: Vec<_> = cycle(live)
            .into_iter()
            .map(|next| space.alloc(1..=u32::MAX, next).expect("the space has room"))
            .collect();
        assert!(leases.iter().zip(1..).all(|(lease, id)| lease.id() == Ioasid(id)));
        let reader = space.reader();
        Self { space, leases, reader }
    }
}

/// The limit: a plain array of pointers, and what they point to.
struct Plain {
    pointers: Vec<AtomicPtr<u64>>,
    _data: Box<[u64]>,
}

impl Plain {
    fn new(live: usize) -> Self {
        let mut data = cycle(live).into_boxed_slice();
        let pointers = data.iter_mut().map(|next| AtomicPtr::new(ptr::from_mut(next))).collect();
        Self { pointers, _data: data }
    }

    #[inline]
    fn find(&self, at: u64) -> u64 {
        let pointer = self.pointers[at as usize].load(Ordering::Acquire);
        if pointer.is_null() {
            return 0;
        }
        // SAFETY: each pointer is to an element of the boxed slice beside them, which nothing
        // writes and which goes with them.
        unsafe { *pointer }
    }
}

type Sharded = sharded_slab::Slab<u64>;
type Papaya = papaya::HashMap<u32, u64>;
type Scc = scc::HashIndex<u32, u64>;
type Locked = parking_lot::RwLock<slab::Slab<u64>>;

/// All of them, holding `live` places.
struct Subjects {
    ours: Ours,
    plain: Plain,
    sharded: (Sharded, Vec<usize>),
    papaya: Papaya,
    scc: Scc,
    locked: Locked,
}

impl Subjects {
    fn new(live: usize) -> Self {
        let sharded = Sharded::new();
        let insert = |next| sharded.insert(next).expect("the slab has room");
        let keys = cycle(live).into_iter().map(insert).collect();
        let (papaya, scc, mut slab) = (Papaya::new(), Scc::new(), slab::Slab::new());
        for (at, next) in cycle(live).into_iter().enumerate() {
            papaya.pin().insert(at as u32, next);
            scc.insert_sync(at as u32, next).expect("a new key");
            assert_eq!(slab.insert(next), at);
        }
        Self {
            ours: Ours::new(live),
            plain: Plain::new(live),
            sharded: (sharded, keys),
            papaya,
            scc,
            locked: Locked::new(slab),
        }
    }

    /// What each does with a place, by name; the first is ours and the second the limit.
    fn rounds<'a>(&'a self, mode: Mode, places: &'a [u32]) -> (Vec<&'static str>, Vec<Round<'a>>) {
        fn shape<'a>(
            mode: Mode,
            places: &'a [u32],
            find: impl FnMut(u64) -> u64 + 'a,
        ) -> Round<'a> {
            match mode {
                Mode::Latency => Box::new(chase(find)),
                Mode::Throughput => Box::new(scatter(places, find)),
            }
        }
        let guard = self.ours.reader.pin();
        let (slab, keys) = &self.sharded;
        let map = self.papaya.pin();
        let epoch = scc::Guard::new();
        let (scc, locked) = (&self.scc, &self.locked);
        let of = |found: Option<u64>| found.expect("all places are there");
        let rounds: Vec<Round<'a>> = vec![
            shape(mode, places, move |at| of(guard.find(Ioasid(at as u32 + 1)).copied())),
            shape(mode, places, |at| self.plain.find(at)),
            shape(mode, places, move |at| of(slab.get(keys[at as usize]).map(|next| *next))),
            shape(mode, places, move |at| of(map.get(&(at as u32)).copied())),
            shape(mode, places, move |at| of(scc.peek(&(at as u32), &epoch).copied())),
            shape(mode, places, move |at| of(locked.read().get(at as usize).copied())),
        ];
        (vec![OURS, PLAIN, "sharded-slab", "papaya", "scc::HashIndex", "RwLock<slab>"], rounds)
    }
}

const OURS: &str = "ioasid";
const PLAIN: &str = "plain array";

/// Random finds of every subject at one population, alone and with another thread that allocates
/// and frees.
pub(crate) fn find(table: &mut Table, live: usize, effort: Effort) {
    let subjects = Subjects::new(live);
    let places = places(live);
    for mode in [Mode::Latency, Mode::Throughput] {
        let (names, mut rounds) = subjects.rounds(mode, &places);
        let times = in_turn(effort, &mut rounds);
        let most = if mode == Mode::Latency { 1.5 } else { 3.0 };
        let goal = Goal::times_limit(most);
        let peers = || names.iter().copied().zip(times.iter().copied()).skip(2);
        table.add(Row::new("find", mode, live, times[0]).peers(peers()).limit(times[1]).goal(goal));
    }
    each_pinned(table, &subjects.ours, live, effort, &places);
    by_spid(table, &subjects.ours, live, effort, &places);
    churn(table, &subjects, effort, &places);
}

/// What a guard for every single find costs.
fn each_pinned(table: &mut Table, ours: &Ours, live: usize, effort: Effort, places: &[u32]) {
    let find = |at: u64| {
        ours.reader.pin().find(Ioasid(at as u32 + 1)).copied().expect("all places are there")
    };
    let times = in_turn(effort, &mut [Box::new(scatter(places, find))]);
    table.add(Row::new("find, a guard for each", Mode::Throughput, live, times[0]));
}

/// The same by the numbers that a set gave them, beside finds by the space's.
fn by_spid(table: &mut Table, ours: &Ours, live: usize, effort: Effort, places: &[u32]) {
    let space = Space::new(Config::default()).expect("the default holds together");
    let set = space.create_set("guest", SetType::Native, live as u32).expect("room for all");
    let member = |(at, next): (usize, u64)| {
        let lease = set.alloc(1..=u32::MAX, next).expect("the set has room");
        set.attach_spid(&lease, Spid(at as u32)).expect("a new SPID");
        lease
    };
    let _members: Vec<Lease<u64>> = cycle(live).into_iter().enumerate().map(member).collect();
    let reader = space.reader();
    let (guard, ids) = (reader.pin(), ours.reader.pin());
    let by_spid = |at: u64| {
        guard.find_by_spid(&set, Spid(at as u32)).map(|(next, _)| *next).expect("all are there")
    };
    let by_id = |at: u64| ids.find(Ioasid(at as u32 + 1)).copied().expect("all are there");
    for mode in [Mode::Latency, Mode::Throughput] {
        let mut rounds: [Round<'_>; 2] = match mode {
            Mode::Latency => [Box::new(chase(by_spid)), Box::new(chase(by_id))],
            Mode::Throughput => {
                [Box::new(scatter(places, by_spid)), Box::new(scatter(places, by_id))]
            }
        };
        let times = in_turn(effort, &mut rounds);
        let row = Row::new("find by SPID", mode, live, times[0]).peers([("find", times[1])]);
        table.add(row.goal(Goal::times_peer("find", 2.0)));
    }
}

/// The same finds while another thread allocates and frees, or inserts and removes.
fn churn(table: &mut Table, subjects: &Subjects, effort: Effort, places: &[u32]) {
    let live = subjects.ours.leases.len();
    let mut held: Vec<_> = (0..CHURNED).map(|_| None).collect();
    let space = &subjects.ours.space;
    let mut random = Random::new(7);
    let ours = move || {
        let at = random.below(CHURNED);
        held[at] = None;
        held[at] = space.alloc(1..=u32::MAX, 0).ok();
    };
    let mut random = Random::new(7);
    let mut round = 0u32;
    let scc = &subjects.scc;
    let theirs = move || {
        let key = (1 << 24) + random.below(CHURNED) as u32;
        round = round.wrapping_add(1);
        if !scc.remove_sync(&key) {
            let _ = scc.insert_sync(key, round.into());
        }
    };
    let one = |which: usize| {
        let (_, mut rounds) = subjects.rounds(Mode::Throughput, places);
        in_turn(effort, &mut rounds[which..=which])[0]
    };
    // Quiet and disturbed in turn, so that a slow minute is slow for both.
    let (mut quiet, mut times, mut peer) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    let (mut ours, mut theirs) = (ours, theirs);
    for _ in 0..CHURN_TURNS {
        quiet = quiet.min(one(0));
        times = times.min(disturbed(&mut ours, || one(0)));
        peer = peer.min(disturbed(&mut theirs, || one(4)));
    }
    table.add(
        Row::new("find under churn", Mode::Throughput, live, times)
            .peers([("scc::HashIndex", peer), ("ioasid, quiet", quiet)])
            .goal(Goal::times_peer("ioasid, quiet", 1.2)),
    );
}

/// IDs that the disturbing thread has out.
const CHURNED: usize = 1000;
const CHURN_TURNS: usize = 3;
