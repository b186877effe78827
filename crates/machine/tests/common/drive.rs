//! Who does the work that register accesses only ask for: the caller itself, step by step and the
//! same each time, or threads.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dsa::model::{Device, Engine, Ran};
use iommu::SoftwareVm;
use machine::Machine;
use vtd::model::Progress;

use super::Verdict;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drive {
    Inline,
    Threads,
}

/// How long a guest with threads waits for anything.
const DEADLINE: Duration = Duration::from_secs(60);
/// Most of one turn of the wait that counts: time in which this machine stood still, as a virtual
/// one does now and then, stood still for the workers too.
const MAX_TURN: Duration = Duration::from_millis(100);
/// How many rounds of work a guest without threads waits for anything.
const MAX_ROUNDS: u32 = 1_000_000;
/// Steps of an engine's thread between two looks at whether it is to stop.
const STEPS: usize = 16;

/// Something to wait for.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    /// Waits until it was rung. Without a limit: a waker that is not called is to be noticed.
    fn wait(&self) {
        let rung = self.rung.lock().unwrap();
        *self.changed.wait_while(rung, |rung| !*rung).unwrap() = false;
    }
}

/// The bells of a machine's unit and of a device's engines.
#[derive(Default)]
pub struct Bells {
    pub unit: Arc<Bell>,
    pub engines: Vec<Arc<Bell>>,
}

pub enum Driver {
    Inline(RefCell<Vec<Engine>>),
    Threads(Threads),
}

impl Driver {
    pub fn new(
        drive: Drive,
        machine: &Arc<Machine<SoftwareVm>>,
        device: &Device,
        bells: &Bells,
    ) -> Self {
        let engines = (0..device.engines()).map(|index| device.engine(index).expect("not taken"));
        match drive {
            Drive::Inline => Self::Inline(RefCell::new(engines.collect())),
            Drive::Threads => Self::Threads(Threads::start(machine, engines.collect(), bells)),
        }
    }

    /// Waits until `done`; tells what it waited for if that does not come.
    pub fn wait(
        &self,
        machine: &Machine<SoftwareVm>,
        what: &str,
        mut done: impl FnMut() -> bool,
    ) -> Verdict {
        match self {
            Self::Inline(_) => {
                for _ in 0..MAX_ROUNDS {
                    if done() {
                        return Ok(());
                    }
                    if !self.round(machine) && !done() {
                        return Err(format!("all work is done, but not {what}"));
                    }
                }
            }
            Self::Threads(_) => {
                let (mut waited, mut last) = (Duration::ZERO, Instant::now());
                while waited < DEADLINE {
                    if done() {
                        return Ok(());
                    }
                    thread::yield_now();
                    waited += last.elapsed().min(MAX_TURN);
                    last = Instant::now();
                }
            }
        }
        Err(format!("waited in vain for {what}"))
    }

    /// One step of everything; whether there may be more to do.
    pub fn round(&self, machine: &Machine<SoftwareVm>) -> bool {
        let unit = machine.poll() != Progress::Idle;
        self.step_engines(1) || unit
    }

    /// Lets each engine work for `steps`; whether one may have more to do.
    pub fn step_engines(&self, steps: usize) -> bool {
        let Self::Inline(engines) = self else { return false };
        let mut busy = false;
        for engine in engines.borrow_mut().iter_mut() {
            busy |= engine.run(steps) == Ran::More;
        }
        busy
    }
}

impl Driver {
    /// One step of engine `index`, if this is who runs it.
    pub fn step_engine(&self, index: usize) {
        if let Self::Inline(engines) = self {
            let _ = engines.borrow_mut()[index].run(1);
        }
    }
}

/// A thread for the unit and one for each engine; they end with the value.
pub struct Threads {
    stopping: Arc<AtomicBool>,
    bells: Vec<Arc<Bell>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(machine: &Arc<Machine<SoftwareVm>>, engines: Vec<Engine>, bells: &Bells) -> Self {
        let stopping = Arc::<AtomicBool>::default();
        let mut threads = Vec::new();
        for (engine, bell) in engines.into_iter().zip(&bells.engines) {
            let (stopping, bell) = (stopping.clone(), bell.clone());
            threads.push(thread::spawn(move || work(engine, &bell, &stopping)));
        }
        let (machine, bell, stop) = (machine.clone(), bells.unit.clone(), stopping.clone());
        threads.push(thread::spawn(move || poll(&machine, &bell, &stop)));
        let bells = bells.engines.iter().chain([&bells.unit]).cloned().collect();
        Self { stopping, bells, threads }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.bells.iter().for_each(|bell| bell.ring());
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a worker panicked");
        }
    }
}

fn work(mut engine: Engine, bell: &Bell, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        if engine.run(STEPS) == Ran::Idle {
            bell.wait();
        }
    }
}

fn poll(machine: &Machine<SoftwareVm>, bell: &Bell, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        match machine.poll() {
            Progress::More => {}
            Progress::Waiting(_) => thread::yield_now(),
            Progress::Idle => bell.wait(),
        }
    }
}
