//! Memory runs out at the Nth allocation, for every N: each call either succeeds or says so, and
//! the books are as they were. And what frees allocates nothing at all.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::Arc;

use ioasid::{
    AllocError, BindError, Config, ConfigError, Executor, Geometry, HoldError, Holder, HolderError,
    Hooks, Ioasid, NumberSource, Operations, Owner, Priority, RegisterError, ReportError, SetError,
    SetType, SourceError, Space, Spid, SpidError, SubscribeError, Subscriber, Usage, Work,
};

/// Allocations that may not fail, because there is no way to make them that could say so; by the
/// function that makes them and its file. How much of a function's path a backtrace names depends
/// on the debug information; its last part and the file are always there.
const CANNOT_FAIL: [(&str, &str); 2] = [("shared", "src/memory.rs"), ("new", "src/epoch.rs")];

/// Whether one of them is on the way to here.
fn is_spared(trace: &str) -> bool {
    let frames = || trace.lines().zip(trace.lines().skip(1));
    let is = |frame: &str, name: &str| {
        let path = frame.trim_start().split_once(": ").map_or("", |(_, path)| path);
        path.split('<').next().unwrap_or("").rsplit("::").next() == Some(name)
    };
    CANNOT_FAIL
        .iter()
        .any(|(name, file)| frames().any(|(frame, place)| is(frame, name) && place.contains(file)))
}

/// The system's allocator, which fails when a thread tells it to.
struct Failing;

#[global_allocator]
static ALLOCATOR: Failing = Failing;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plan {
    /// Nothing is counted.
    Off,
    /// Fails after so many more.
    After(usize),
    /// Has failed.
    Failed,
    /// It was one of those that may not fail.
    Spared,
}

thread_local! {
    static PLAN: Cell<Plan> = const { Cell::new(Plan::Off) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

impl Failing {
    /// Whether this allocation is to fail.
    fn fails(&self) -> bool {
        COUNT.set(COUNT.get() + 1);
        match PLAN.get() {
            Plan::After(0) => {
                PLAN.set(Plan::Off);
                let spared = is_spared(&Backtrace::force_capture().to_string());
                PLAN.set(if spared { Plan::Spared } else { Plan::Failed });
                !spared
            }
            Plan::After(more) => {
                PLAN.set(Plan::After(more - 1));
                false
            }
            _ => false,
        }
    }
}

// SAFETY: it is the system's allocator, which may also refuse.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.fails() {
            return null_mut();
        }
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        if self.fails() {
            return null_mut();
        }
        // SAFETY: as the caller promised.
        unsafe { System.realloc(memory, layout, len) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often `f` allocates.
fn allocations<R>(f: impl FnOnce() -> R) -> (usize, R) {
    let before = COUNT.get();
    let result = f();
    (COUNT.get() - before, result)
}

type Tiny = Geometry<2, 2>;
type Data = Box<u32>;

struct Nobody;

impl Subscriber<Data, Tiny> for Nobody {}

impl Executor for Nobody {
    fn schedule(&self) {}
}

impl NumberSource for Nobody {
    fn alloc(&self, min: u32, _: u32) -> Result<u32, SourceError> {
        Ok(min)
    }

    fn free(&self, _: u32) -> Result<(), SourceError> {
        Ok(())
    }
}

/// A space, with all that its calls need made before.
struct World {
    space: Space<Data, Tiny>,
    holder: Holder,
    owner: Owner,
    operations: Operations,
    nobody: Arc<Nobody>,
}

impl World {
    fn new() -> Self {
        let nobody = Arc::new(Nobody);
        let hooks = Hooks { executor: Some(nobody.clone()), ..Hooks::default() };
        let config = Config { width: 8, shards: 2, ..Config::default() };
        let space = Space::with_geometry(config, hooks).unwrap();
        let (owner, operations) = (Owner::new("guest"), Operations::new("register"));
        Self { holder: space.holder("device").unwrap(), space, owner, operations, nobody }
    }

    fn books(&self) -> Usage {
        self.space.report(100).unwrap().balance().unwrap();
        self.space.usage()
    }
}

/// Runs `call` with the Nth allocation failing, for every N, each in a world of its own, in which
/// `before` was done. An error says whether it means that there was no memory.
fn each<S, R>(before: impl Fn(&World) -> S, call: impl Fn(&World, &S) -> Result<R, bool>) {
    let mut failed = 0;
    for nth in 0..1_000 {
        let world = World::new();
        let state = before(&world);
        let books = world.books();
        PLAN.set(Plan::After(nth));
        let result = call(&world, &state);
        let plan = PLAN.replace(Plan::Off);
        match (result, plan) {
            (Err(no_memory), Plan::Failed) => {
                assert!(no_memory, "the {nth}th failed, and something else was said");
                assert_eq!(world.books(), books, "changed when the {nth}th failed");
                assert!(call(&world, &state).is_ok(), "with memory, after the {nth}th had failed");
                failed += 1;
            }
            // One that it can do without.
            (Ok(made), Plan::Failed) => drop(made),
            (result, plan) => assert!(result.is_ok(), "{plan:?} at the {nth}th"),
        }
        drop(state);
        while world.space.work(8) == Work::More {}
        let idle = world.books();
        assert_eq!((idle.live, idle.parked, idle.unreserved), (0, 0, idle.capacity));
        if matches!(plan, Plan::After(_)) {
            assert!(failed > 0, "it never allocated");
            return;
        }
    }
    panic!("it allocates without end");
}

fn nothing(_: &World) {}

#[test]
fn space() {
    each(nothing, |_, ()| {
        let config = given(|| Config { width: 8, shards: 2, ..Config::default() });
        Space::<Data, Tiny>::with_geometry(config, Hooks::default())
            .map_err(|error| error == ConfigError::NoMemory)
    });
}

/// What a call is given is made in there too: a failure of that is not the space's.
fn given<R>(make: impl FnOnce() -> R) -> R {
    let plan = PLAN.replace(Plan::Off);
    let made = make();
    PLAN.set(plan);
    made
}

fn data() -> Data {
    given(|| Box::new(7))
}

#[test]
fn alloc() {
    let no_memory = |error| error == AllocError::NoMemory;
    each(nothing, |world, ()| world.space.alloc(100..=200, data()).map_err(no_memory));
    each(nothing, |world, ()| world.space.alloc_with(9..=9, |_| data()).map_err(no_memory));
    let set = |world: &World| world.space.create_set("set", SetType::Native, 9).unwrap();
    each(set, |_, set| set.alloc_on(1, 0..=255, data()).map_err(no_memory));
    // Numbers that another shard has, and quota.
    let elsewhere = |world: &World| {
        let set = set(world);
        let leases: Vec<_> = (0..9).map(|_| set.alloc_on(0, 1..=9, data()).unwrap()).collect();
        drop(leases);
        set
    };
    each(elsewhere, |_, set| set.alloc_on(1, 1..=9, data()).map_err(no_memory));
}

/// Leaves that cannot be made do not let a shard hoard what it took for them.
#[test]
fn a_cache_does_not_grow_while_there_is_no_memory() {
    let space = World::new().space;
    for round in 0..3 {
        for number in 4..=255 {
            PLAN.set(Plan::After(round));
            let lease = space.alloc_on(0, number..=number, data());
            let failed = PLAN.replace(Plan::Off) == Plan::Failed;
            assert_eq!(lease.is_err(), failed);
            let (count, _) = allocations(|| drop(lease));
            assert_eq!(count, 0);
        }
    }
    for number in 1..=255 {
        assert_eq!(space.alloc_on(1, number..=number, data()).unwrap().id(), Ioasid(number));
    }
}

#[test]
fn create_set() {
    let no_memory = |error| error == SetError::NoMemory;
    let create = |world: &World, kind| world.space.create_set("a set", kind, 9).map_err(no_memory);
    each(nothing, |world, ()| create(world, SetType::Native));
    each(nothing, |world, ()| create(world, SetType::Owned(world.owner.clone())));
    let subscribed = |world: &World| {
        let (holder, nobody) = (&world.holder, world.nobody.clone());
        world.space.subscribe_owner(&world.owner, holder, Priority::Device, nobody).unwrap()
    };
    each(subscribed, |world, _| create(world, SetType::Owned(world.owner.clone())));
}

#[test]
fn references() {
    let no_memory = |error| error == HoldError::NoMemory;
    let lease = |world: &World| world.space.alloc(1..=9, data()).unwrap();
    each(lease, |world, lease| lease.share(&world.holder).map_err(no_memory));
    let reader = |world: &World| (lease(world), world.space.reader());
    each(reader, |world, (lease, reader)| {
        reader.pin().hold(lease.id(), &world.holder).map_err(no_memory)
    });
    each(nothing, |world, ()| {
        world.space.holder("another").map_err(|error| error == HolderError::NoMemory)
    });
}

#[test]
fn spids() {
    let no_memory = |error| error == SpidError::NoMemory;
    let owned = |world: &World| {
        let set = world.space.create_set("set", SetType::Native, 9).unwrap();
        let lease = set.alloc(1..=9, data()).unwrap();
        (lease, set)
    };
    each(owned, |_, (lease, set)| set.attach_spid(lease, Spid(3)).map_err(no_memory));
}

#[test]
fn subscriptions_and_binds() {
    let no_memory = |error| error == SubscribeError::NoMemory;
    each(nothing, |world, ()| {
        let nobody = world.nobody.clone();
        world.space.subscribe(&world.holder, Priority::Device, nobody).map_err(no_memory)
    });
    each(nothing, |world, ()| {
        let (holder, nobody) = (&world.holder, world.nobody.clone());
        world
            .space
            .subscribe_owner(&world.owner, holder, Priority::Device, nobody)
            .map_err(no_memory)
    });
    let set = |world: &World| world.space.create_set("set", SetType::Native, 9).unwrap();
    each(set, |world, set| {
        let nobody = world.nobody.clone();
        set.subscribe(&world.holder, Priority::Cpu, nobody).map_err(no_memory)
    });
    let watched = |world: &World| {
        let nobody = world.nobody.clone();
        let told = world.space.subscribe(&world.holder, Priority::Cpu, nobody).unwrap();
        (world.space.alloc(1..=9, data()).unwrap(), told)
    };
    each(watched, |world, (lease, _)| {
        lease
            .bind(&world.holder)
            .map(|prepared| prepared.commit())
            .map_err(|error| matches!(error, BindError::NoMemory))
    });
}

#[test]
fn sources_and_reports() {
    each(nothing, |world, ()| {
        world
            .space
            .register_source(&world.operations, world.nobody.clone())
            .map_err(|error| error == RegisterError::NoMemory)
    });
    let lease = |world: &World| world.space.alloc(1..=9, data()).unwrap();
    each(lease, |world, _| world.space.report(10).map_err(|error| error == ReportError::NoMemory));
}

/// Allocates nothing, whatever else it does.
fn allocates_nothing<R>(what: &str, f: impl FnOnce() -> R) -> R {
    let (count, result) = allocations(f);
    assert_eq!(count, 0, "{what} allocates");
    result
}

/// Everything that frees, with subscribers and without.
#[test]
fn what_frees_allocates_nothing() {
    for watched in [false, true] {
        let world = World::new();
        let World { space, holder, nobody, .. } = &world;
        let told = watched.then(|| space.subscribe(holder, Priority::Device, nobody.clone()));
        let set = space.create_set("set", SetType::Owned(world.owner.clone()), 120).unwrap();
        let reader = space.reader();
        let leases: Vec<_> = (0..60).map(|n| set.alloc_on(n, 1..=255, data()).unwrap()).collect();
        let more: Vec<_> = (0..60).map(|n| space.alloc_on(n, 1..=255, data()).unwrap()).collect();
        let refs: Vec<_> = leases.iter().map(|lease| lease.share(holder).unwrap()).collect();
        for (lease, n) in leases.iter().zip(0..) {
            set.attach_spid(lease, Spid(n)).unwrap();
        }
        let guard = allocates_nothing("pin", || reader.pin());
        let mut leases = leases.into_iter();
        for lease in leases.by_ref().take(20) {
            let tag = allocates_nothing("keep", || set.keep(lease)).map_err(drop).unwrap();
            if tag.id().0 % 2 == 0 {
                drop(allocates_nothing("take", || set.take(tag.id())).unwrap());
            }
        }
        for lease in leases {
            let spid = allocates_nothing("detach_spid", || set.detach_spid(&lease));
            spid.unwrap();
            allocates_nothing("free", || lease.free()).unwrap();
        }
        for lease in more {
            allocates_nothing("a lease's drop under a guard", || drop(lease));
        }
        allocates_nothing("close", || set.close());
        for reference in refs {
            allocates_nothing("a reference's drop", || drop(reference));
        }
        allocates_nothing("find", || guard.find(Ioasid(1)).is_some());
        allocates_nothing("unpin", || drop(guard));
        allocates_nothing("release_parked", || space.release_parked());
        allocates_nothing("work", || while space.work(8) == Work::More {});
        allocates_nothing("a set's drop", || drop(set));
        let usage = allocates_nothing("usage", || space.usage());
        assert_eq!((usage.live, usage.parked, usage.unreserved), (0, 0, usage.capacity));
        drop(told);
    }
}

/// The usual pair neither, once the shard has numbers and the set room.
#[test]
fn a_pair_allocates_nothing() {
    let space = Space::<u32>::new(Config::default()).unwrap();
    (0..200).for_each(|round| drop(space.alloc(1..=999, round).unwrap()));
    for round in 0..10_000 {
        allocates_nothing("a pair", || drop(space.alloc(1..=999, round).unwrap()));
    }
}
