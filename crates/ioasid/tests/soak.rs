//! A million operations of several threads on many sets, with references, guards and handles that
//! come and go; it ends with nothing live, nothing parked and every quota back.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ioasid::{
    AllocError, Config, Geometry, Holder, Hooks, Ioasid, Lease, Owner, Ref, Set, SetType, Shape,
    Space,
};

const THREADS: u64 = 4;
const ROUNDS: u64 = if cfg!(miri) { 500 } else { 250_000 };
const WIDTH: u32 = if cfg!(miri) { 6 } else { 12 };
const OWNERS: usize = 24;

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}

/// What is known of all data that was ever made.
#[derive(Default)]
struct Books {
    made: AtomicU64,
    dropped: AtomicU64,
    /// By number: how many have its lease or its data right now.
    out: Vec<AtomicU32>,
}

struct Data {
    id: Ioasid,
    alive: AtomicBool,
    books: Arc<Books>,
}

impl Data {
    fn new(id: Ioasid, books: &Arc<Books>) -> Self {
        books.made.fetch_add(1, Relaxed);
        let before = books.out[id.0 as usize].fetch_add(1, Relaxed);
        assert_eq!(before, 0, "{id} is out twice");
        Self { id, alive: AtomicBool::new(true), books: books.clone() }
    }

    fn check(&self, id: Ioasid) {
        assert!(self.alive.load(Relaxed), "{id} seen after its drop");
        assert_eq!(self.id, id);
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        assert!(self.alive.swap(false, Relaxed), "dropped twice");
        self.books.dropped.fetch_add(1, Relaxed);
        self.books.out[self.id.0 as usize].fetch_sub(1, Relaxed);
    }
}

/// Where threads leave handles for each other.
struct Shelf<V>(Mutex<Vec<V>>);

impl<V> Shelf<V> {
    fn put(&self, value: V) {
        self.0.lock().unwrap().push(value);
    }

    fn take(&self, dice: &mut Dice) -> Option<V> {
        let mut shelf = self.0.lock().unwrap();
        let at = dice.roll(shelf.len().max(1));
        (at < shelf.len()).then(|| shelf.swap_remove(at))
    }
}

impl<V> Default for Shelf<V> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

struct Soak<G: Shape> {
    space: Space<Data, G>,
    books: Arc<Books>,
    owners: Vec<Owner>,
    holders: Vec<Holder>,
    leases: Shelf<Lease<Data, G>>,
    refs: Shelf<Ref<Data, G>>,
    done: AtomicU64,
}

impl<G: Shape> Soak<G> {
    fn new() -> Self {
        let config = Config { width: WIDTH, shards: 3, ..Config::default() };
        let space = Space::with_geometry(config, Hooks::default()).unwrap();
        let out = (0..1 << WIDTH).map(|_| AtomicU32::new(0)).collect();
        Self {
            books: Arc::new(Books { out, ..Books::default() }),
            owners: (0..OWNERS).map(|n| Owner::new(&n.to_string())).collect(),
            holders: (0..3).map(|n| space.holder(&n.to_string()).unwrap()).collect(),
            leases: Shelf::default(),
            refs: Shelf::default(),
            done: AtomicU64::new(0),
            space,
        }
    }

    /// The set of some owner, as he finds it or made for him.
    fn set(&self, dice: &mut Dice) -> Option<Set<Data, G>> {
        let owner = &self.owners[dice.roll(OWNERS)];
        let found = self.space.set_of(owner);
        found.or_else(|| {
            let quota = 1 + dice.roll(200) as u32;
            self.space.create_set("soak", SetType::Owned(owner.clone()), quota).ok()
        })
    }

    fn thread(&self, which: u64) {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (which + 1));
        let reader = self.space.reader();
        let mut guard = None;
        let mut sets: Vec<Set<Data, G>> = Vec::new();
        for _ in 0..ROUNDS {
            self.done.fetch_add(1, Relaxed);
            match dice.roll(100) {
                0..30 => self.alloc(&mut sets, which, &mut dice),
                30..55 => drop(self.leases.take(&mut dice)),
                55..65 => {
                    if let Some(lease) = self.leases.take(&mut dice) {
                        lease.check(lease.id());
                        let holder = &self.holders[dice.roll(3)];
                        lease.share(holder).into_iter().for_each(|held| self.refs.put(held));
                        self.leases.put(lease);
                    }
                }
                65..70 => {
                    let id = Ioasid(dice.roll(1 << WIDTH) as u32);
                    if let Ok(held) = reader.pin().hold(id, &self.holders[0]) {
                        held.check(id);
                        self.refs.put(held);
                    }
                }
                70..84 => drop(self.refs.take(&mut dice)),
                84..90 => {
                    // Not for long: a thread that is not run holds everything back.
                    let pins = guard.is_none() && dice.roll(8) == 0;
                    guard = pins.then(|| reader.pin());
                }
                90..94 => {
                    if let (Some(set), Some(lease)) = (sets.last(), self.leases.take(&mut dice)) {
                        let id = lease.id();
                        let kept = set.keep(lease).is_ok();
                        if kept && dice.roll(2) == 0 {
                            set.take(id).into_iter().for_each(|lease| self.leases.put(lease));
                        }
                    }
                }
                94..97 => sets.extend(self.set(&mut dice)),
                97..99 => {
                    let at = dice.roll(sets.len().max(1));
                    if at < sets.len() {
                        drop(sets.swap_remove(at));
                    }
                }
                _ => match sets.last() {
                    Some(set) if dice.roll(4) == 0 => set.close(),
                    Some(set) => drop(set.adjust(1 + dice.roll(200) as u32)),
                    None => {}
                },
            }
            if let Some(guard) = &guard {
                let id = Ioasid(dice.roll(1 << WIDTH) as u32);
                guard.find(id).into_iter().for_each(|data| data.check(id));
            }
        }
    }

    fn alloc(&self, sets: &mut Vec<Set<Data, G>>, which: u64, dice: &mut Dice) {
        let data = |id| Data::new(id, &self.books);
        let low = dice.roll(1 << WIDTH) as u32;
        let range = low..=low + dice.roll(1 << WIDTH) as u32;
        // By number, on this thread's shard, or what the set has.
        let from = dice.roll(sets.len() + 1);
        let lease = match from {
            0 if which % 2 == 0 => self.space.alloc_with(range, data),
            0 => self.space.alloc_with(low..=low, data),
            at => sets[at - 1].alloc_with(range, data),
        };
        match lease {
            Ok(lease) => {
                lease.check(lease.id());
                self.leases.put(lease);
            }
            Err(AllocError::SetClosed) => drop(sets.swap_remove(from - 1)),
            Err(error) => assert!(
                !matches!(error, AllocError::EmptyRange { .. } | AllocError::NoMemory),
                "{error}"
            ),
        }
    }

    fn run(self) {
        std::thread::scope(|scope| {
            (0..THREADS).for_each(|which| {
                drop(scope.spawn({
                    let soak = &self;
                    move || soak.thread(which)
                }))
            });
        });
        let Self { space, books, leases, refs, .. } = &self;
        assert_eq!(self.done.load(Relaxed), THREADS * ROUNDS);
        // What the threads left, the references first and last.
        let mut held = std::mem::take(&mut *refs.0.lock().unwrap());
        let half = held.split_off(held.len() / 2);
        drop(half);
        leases.0.lock().unwrap().clear();
        space.report(8).unwrap().balance().unwrap();
        drop(held);
        let usage = space.usage();
        assert_eq!((usage.live, usage.parked), (0, 0));
        assert_eq!(usage.unreserved, usage.capacity, "a quota is missing");
        assert_eq!(books.made.load(Relaxed), books.dropped.load(Relaxed));
        let made = books.made.load(Relaxed);
        assert!(made > ROUNDS / 8, "too little happened: {made} IDs");
        assert!(self.owners.iter().all(|owner| space.set_of(owner).is_none()));
        // Every number can be had, on every shard.
        for number in 1..1 << WIDTH {
            let lease =
                space.alloc_on(number as usize, number..=number, Data::new(Ioasid(number), books));
            assert_eq!(lease.map(|lease| lease.id()).ok(), Some(Ioasid(number)));
        }
    }
}

#[test]
fn a_million_operations_leave_nothing() {
    Soak::<Geometry<4, 8>>::new().run();
}
