//! Every interleaving of what is told, on a space of two numbers with one shard. Run like
//! `loom.rs`; with `--cfg sabotage="ioasid-no-phase"` as well, it must fail.
#![cfg(loom)]

use std::sync::{Arc, Mutex};

use ioasid::{
    BindError, Config, Event, Geometry, Hooks, Ioasid, Owner, Priority, SetType, Space,
    SubscribeError, Subscriber, Work,
};
use loom::thread;

type Tiny = Geometry<1, 1>;

/// What was told of the one ID. Loom sees the space's locks alone; this one is never waited for.
#[derive(Default)]
struct Told(Mutex<Vec<&'static str>>);

impl Told {
    fn add(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
        // The handler takes its time.
        thread::yield_now();
        self.0.lock().unwrap().push("done");
    }

    /// What was told, one after the other.
    fn events(&self) -> Vec<&'static str> {
        let told = self.0.lock().unwrap().clone();
        assert!(told.chunks(2).all(|pair| pair[0] != "done" && pair[1] == "done"), "{told:?}");
        told.into_iter().filter(|what| *what != "done").collect()
    }
}

impl Subscriber<u32, Tiny> for Told {
    fn alloc(&self, _: &Event<'_, u32, Tiny>) {
        self.add("alloc");
    }

    fn commit_bind(&self, _: &Event<'_, u32, Tiny>) {
        self.add("bind");
    }

    fn unbind(&self, _: &Event<'_, u32, Tiny>) {
        self.add("unbind");
    }

    fn free(&self, _: &Event<'_, u32, Tiny>) {
        self.add("free");
    }
}

/// Without a bound this takes eight minutes, and finds nothing else; with it, seconds.
fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(run);
}

fn space() -> Space<u32, Tiny> {
    let config = Config { width: 1, shards: 1, ..Config::default() };
    Space::with_geometry(config, Hooks::default()).unwrap()
}

fn assert_idle(space: &Space<u32, Tiny>) {
    assert_eq!(space.work(9), Work::Idle);
    space.release_parked();
    let usage = space.usage();
    assert_eq!((usage.live, usage.parked, usage.unreserved), (0, 0, usage.capacity));
}

/// A lease that goes, and work that is done, while a reference is bound: what is told comes in
/// order and one at a time, and FREE exactly once.
#[test]
fn free_against_bind_commit() {
    model(|| {
        let (space, told) = (space(), Arc::new(Told::default()));
        let holder = space.holder("cpu").unwrap();
        let subscription = space.subscribe(&holder, Priority::Cpu, told.clone()).unwrap();
        let lease = space.alloc(1..=1, 7).unwrap();
        let reference = lease.share(&holder).unwrap();
        let binder = thread::spawn(move || match reference.bind(&holder) {
            Ok(prepared) => drop(prepared.commit()),
            Err(error) => assert_eq!(error, BindError::Parked(Ioasid(1))),
        });
        drop(lease);
        space.work(1);
        binder.join().unwrap();
        assert_eq!(space.work(9), Work::Idle);
        let events = told.events();
        let orders = [
            &["alloc", "free"][..],
            &["alloc", "bind", "free"],
            &["alloc", "bind", "unbind", "free"],
        ];
        assert!(orders.contains(&&events[..]), "{events:?}");
        drop(subscription);
        assert_idle(&space);
    });
}

/// A set that is closed while one of its IDs is allocated: no FREE before the ALLOC is over.
#[test]
fn close_against_alloc() {
    model(|| {
        let (space, told) = (space(), Arc::new(Told::default()));
        let holder = space.holder("cpu").unwrap();
        let set = space.create_set("guest", SetType::Native, 1).unwrap();
        let subscription = space.subscribe(&holder, Priority::Cpu, told.clone()).unwrap();
        let theirs = set.clone();
        let user = thread::spawn(move || theirs.alloc(1..=1, 7).is_ok());
        set.close();
        space.work(2);
        let allocated = user.join().unwrap();
        assert_eq!(space.work(9), Work::Idle);
        assert_eq!(told.events(), if allocated { vec!["alloc", "free"] } else { vec![] });
        assert!(set.is_drained());
        drop((set, subscription));
        assert_idle(&space);
    });
}

/// Who subscribes to an owner hears of every ID of his set, or is refused because of one.
#[test]
fn subscribe_against_alloc() {
    model(|| {
        let (space, told) = (space(), Arc::new(Told::default()));
        let holder = space.holder("kvm").unwrap();
        let guest = Owner::new("guest");
        let set = space.create_set("guest", SetType::Owned(guest.clone()), 1).unwrap();
        let theirs = set.clone();
        let user = thread::spawn(move || theirs.alloc(1..=1, 7).unwrap());
        let subscribed = space.subscribe_owner(&guest, &holder, Priority::Cpu, told.clone());
        let lease = user.join().unwrap();
        match &subscribed {
            Ok(_) => assert_eq!(told.events(), ["alloc"]),
            Err(error) => {
                assert_eq!(*error, SubscribeError::HasIds { out: 1 });
                assert_eq!(told.events(), [""; 0]);
            }
        }
        drop((lease, set));
        assert_idle(&space);
    });
}

/// A subscription that ends while an ID is freed: it is told of or not, and not stuck.
#[test]
fn unsubscribe_against_free() {
    model(|| {
        let (space, told) = (space(), Arc::new(Told::default()));
        let holder = space.holder("cpu").unwrap();
        let subscription = space.subscribe(&holder, Priority::Cpu, told.clone()).unwrap();
        let lease = space.alloc(1..=1, 7).unwrap();
        let ender = thread::spawn(move || drop(subscription));
        drop(lease);
        space.work(1);
        ender.join().unwrap();
        assert_idle(&space);
        assert_eq!(Arc::strong_count(&told), 1);
    });
}
