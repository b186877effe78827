//! Many at a time: each event of an ID by itself and in its order, and nobody held up by another.

use std::collections::HashMap;
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};

use ioasid::{
    AllocError, BindError, Event, Priority::*, Refusal, Set, SetType, Space, Subscriber, Tag,
};
use proptest::prelude::*;

use crate::common::*;

/// A handler that takes long holds up who called it, and nobody else.
#[test]
fn a_slow_handler_holds_up_its_own_worker_only() {
    let (space, log) = (space(), Log::default());
    let (release, waits) = channel::<()>();
    let (enters, entered) = channel::<()>();
    let waits: Mutex<Receiver<()>> = Mutex::new(waits);
    let slow = Recorder::with("slow", &log, move |what, event| {
        if what == What::Free && event.id().0 == 1 {
            enters.send(()).unwrap();
            waits.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
    let subscription = subscribe(&space, Iommu, &slow);
    let vfio = space.holder("vfio").unwrap();
    let (one, two) = (space.alloc(1..=1, 0).unwrap(), space.alloc(2..=2, 0).unwrap());
    drop(one);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| space.work(10));
        entered.recv().unwrap();
        // Everything goes on meanwhile, on the same shard and with the same subscriber.
        let binding = two.bind(&vfio).unwrap().commit();
        drop(binding);
        drop(two);
        work(&space);
        drop(space.alloc(2..=2, 0).unwrap());
        work(&space);
        let set = space.create_set("set", SetType::Native, 3).unwrap();
        drop(set);
        work(&space);
        assert_eq!(space.usage().parked, 1, "the one that is being told");
        let holder = subscription.holder().clone();
        assert_eq!(space.running_handlers().unwrap(), [(holder, 1)], "and who takes so long");
        drop(subscription);
        release.send(()).unwrap();
        worker.join().unwrap();
    });
    assert_eq!(log.take().iter().filter(|line| line.as_str() == "slow Free 1").count(), 1);
    assert_idle(&space);
}

/// What an ID's users were told last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Allocated,
    Prepared,
    Bound,
    Free,
}

/// Complains about an event that comes at the wrong time, or while another of the same ID is told.
#[derive(Default)]
struct Judge {
    seen: Mutex<HashMap<Tag, (Seen, bool)>>,
    refuse: bool,
}

impl Judge {
    fn judge(&self, event: &Event<'_, Data>, from: &[Option<Seen>], to: Seen) {
        let tag = event.tag();
        let was = {
            let mut seen = self.seen.lock().unwrap();
            let was = seen.insert(tag, (to, true));
            assert!(was.is_none_or(|(_, running)| !running), "two events of {tag:?} at a time");
            was.map(|(seen, _)| seen)
        };
        assert!(from.contains(&was), "{tag:?} to {to:?} from {was:?}");
        assert_eq!(**event, 7, "the data is there");
        std::thread::yield_now();
        self.seen.lock().unwrap().insert(tag, (to, false));
    }
}

impl Subscriber<Data> for Judge {
    fn alloc(&self, event: &Event<'_, Data>) {
        self.judge(event, &[None], Seen::Allocated);
    }

    fn prepare_bind(&self, event: &Event<'_, Data>) -> Result<(), Refusal> {
        if self.refuse && event.id().0 % 2 == 0 {
            return Err(Refusal::NoSpace);
        }
        self.judge(event, &[Some(Seen::Allocated)], Seen::Prepared);
        Ok(())
    }

    fn commit_bind(&self, event: &Event<'_, Data>) {
        self.judge(event, &[Some(Seen::Prepared)], Seen::Bound);
    }

    fn abort_bind(&self, event: &Event<'_, Data>) {
        self.judge(event, &[Some(Seen::Prepared)], Seen::Allocated);
    }

    fn unbind(&self, event: &Event<'_, Data>) {
        self.judge(event, &[Some(Seen::Bound)], Seen::Allocated);
    }

    fn free(&self, event: &Event<'_, Data>) {
        self.judge(event, &[Some(Seen::Allocated), Some(Seen::Bound)], Seen::Free);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc,
    /// Leaves the lease with the set, and takes another's out.
    Swap(u32),
    Bind(usize),
    Prepare(usize),
    Commit(usize),
    Unbind(usize),
    Free(usize),
    Close,
    Work,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Alloc),
        3 => (1..12u32).prop_map(Step::Swap),
        6 => (0..8usize).prop_map(Step::Bind),
        2 => (0..8usize).prop_map(Step::Prepare),
        2 => (0..8usize).prop_map(Step::Commit),
        4 => (0..8usize).prop_map(Step::Unbind),
        6 => (0..8usize).prop_map(Step::Free),
        1 => Just(Step::Close),
        3 => Just(Step::Work),
    ]
}

/// Does the steps on a few IDs of the set, which others use as well.
fn run(space: &Space<Data>, set: &Set<Data>, steps: &[Step]) {
    let holder = space.holder("user").unwrap();
    let (mut leases, mut bindings, mut prepared) = (Vec::new(), Vec::new(), Vec::new());
    fn pick<V>(from: &mut Vec<V>, at: usize) -> Option<V> {
        (!from.is_empty()).then(|| from.swap_remove(at % from.len()))
    }
    for step in steps {
        match *step {
            Step::Alloc => match set.alloc(1..=12, 7) {
                Ok(lease) => leases.push(lease),
                Err(AllocError::RangeFull { .. } | AllocError::SetClosed) => {}
                Err(AllocError::QuotaExceeded { .. }) => {}
                Err(other) => panic!("{other}"),
            },
            Step::Swap(number) => {
                if let Some(lease) = pick(&mut leases, number as usize) {
                    set.keep(lease).unwrap();
                }
                leases.extend(set.take(ioasid::Ioasid(number)));
            }
            Step::Bind(at) | Step::Prepare(at) if !leases.is_empty() => {
                match leases[at % leases.len()].bind(&holder) {
                    Ok(ready) if matches!(step, Step::Bind(_)) => bindings.push(ready.commit()),
                    Ok(ready) => prepared.push(ready),
                    Err(BindError::Busy(_) | BindError::Parked(_) | BindError::Refused { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            Step::Bind(_) | Step::Prepare(_) => {}
            Step::Commit(at) => {
                bindings.extend(pick(&mut prepared, at).map(ioasid::Prepared::commit));
            }
            Step::Unbind(at) => {
                drop(pick(&mut bindings, at));
                drop(pick(&mut prepared, at / 2));
            }
            Step::Free(at) => drop(pick(&mut leases, at)),
            Step::Close => set.close(),
            Step::Work => {
                space.work(2);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// ALLOC before BIND before UNBIND before FREE, one at a time, each ID by itself, with frees,
    /// unbinds and a closing set from two threads and two workers.
    #[test]
    fn events_of_an_id_come_one_by_one_and_in_order(
        one in prop::collection::vec(step(), 0..60),
        two in prop::collection::vec(step(), 0..60),
        refuse in any::<bool>(),
    ) {
        let space = space();
        let judges = [(); 2].map(|()| Arc::new(Judge { refuse, ..Judge::default() }));
        let set = space.create_set("set", SetType::Native, 10).unwrap();
        let (a, b) = (space.holder("a").unwrap(), space.holder("b").unwrap());
        let subscriptions = (
            space.subscribe(&a, Cpu, judges[0].clone()).unwrap(),
            set.subscribe(&b, Iommu, judges[1].clone()).unwrap(),
        );
        std::thread::scope(|scope| {
            let users = [&one, &two].map(|steps| scope.spawn(|| run(&space, &set, steps)));
            for user in users {
                user.join().unwrap();
            }
        });
        set.close();
        work(&space);
        drop(set);
        work(&space);
        prop_assert_eq!(space.handler_panics(), 0);
        for judge in judges {
            for (tag, seen) in judge.seen.lock().unwrap().iter() {
                prop_assert_eq!(*seen, (Seen::Free, false), "{:?}", tag);
            }
        }
        drop(subscriptions);
        assert_idle(&space);
    }
}

#[cfg(feature = "std")]
mod worker {
    use std::time::Duration;

    use ioasid::{Bell, Config, Hooks, Work, Worker};

    use super::*;

    fn served() -> (Arc<Bell>, Space<Data>) {
        let bell = Arc::new(Bell::default());
        let hooks = Hooks { executor: Some(bell.clone()), ..Hooks::default() };
        let config = Config { width: 6, shards: 2, ..Config::default() };
        (bell, Space::with_geometry(config, hooks).unwrap())
    }

    #[test]
    fn a_worker_tells_of_frees_and_ends_when_dropped() {
        let ((bell, space), log) = (served(), Log::default());
        let (tells, told) = channel();
        let one = Recorder::with("one", &log, move |what, event| {
            if what == What::Free {
                tells.send((event.id().0, std::thread::current().id())).unwrap();
            }
            Ok(())
        });
        let subscription = subscribe(&space, Cpu, &one);
        drop(space.alloc(1..=1, 0).unwrap()); // before there is a worker
        let workers = [(); 2].map(|()| Worker::spawn(&bell, &space).unwrap());
        let (id, thread) = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(id, 1);
        assert_ne!(thread, std::thread::current().id());
        for number in 2..20 {
            drop(space.alloc(number..=number, 0).unwrap());
            assert_eq!(told.recv_timeout(Duration::from_secs(60)).unwrap().0, number);
        }
        drop(workers);
        drop(space.alloc(1..=1, 0).unwrap());
        assert!(told.try_recv().is_err(), "nobody is left to tell it");
        assert_eq!(space.work(9), Work::Idle);
        assert_eq!(told.try_recv().unwrap().0, 1);
        drop(subscription);
        assert_idle(&space);
    }

    /// One ring for two IDs: the worker that is held up by the first leaves the second to another.
    #[test]
    fn a_worker_that_is_held_up_does_not_keep_the_rest_to_itself() {
        let ((bell, space), log) = (served(), Log::default());
        let _workers = [(); 2].map(|()| Worker::spawn(&bell, &space).unwrap());
        let (tells, told) = channel();
        let (release, waits) = channel::<()>();
        let waits = Mutex::new(waits);
        let one = Recorder::with("one", &log, move |what, _| {
            if what == What::Free {
                tells.send(()).unwrap();
                waits.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        let set = space.create_set("set", SetType::Native, 4).unwrap();
        let holder = space.holder("one").unwrap();
        let subscription = set.subscribe(&holder, Cpu, one).unwrap();
        let leases = [1, 2].map(|n| set.alloc(n..=n, 0).unwrap());
        set.close();
        // The second waits for the receiver, which the first has locked.
        for _ in 0..2 {
            told.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        drop((leases, subscription));
    }

    #[test]
    fn a_worker_may_be_dropped_by_what_it_tells() {
        let ((bell, space), log) = (served(), Log::default());
        let held: Arc<Mutex<Option<Worker>>> = Arc::default();
        let (ends, ended) = channel();
        let gone = held.clone();
        let one = Recorder::with("one", &log, move |what, _| {
            if what == What::Free {
                drop(gone.lock().unwrap().take());
                ends.send(()).unwrap();
            }
            Ok(())
        });
        let subscription = subscribe(&space, Cpu, &one);
        *held.lock().unwrap() = Some(Worker::spawn(&bell, &space).unwrap());
        drop(space.alloc(1..=1, 0).unwrap());
        ended.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(held.lock().unwrap().is_none());
        drop(subscription);
    }
}
