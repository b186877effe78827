//! Engines: each takes a descriptor from the queues of its group, works through it piece by piece
//! without any lock of the device, and completes it. A descriptor that has to wait for a page is set
//! aside meanwhile.

mod batch;
mod check;
mod complete;
mod dma;
mod unit;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{AddressSpace, Channel, ResponseCode, WantedPage};

use super::device::Shared;
use super::ops::{Scratch, Task};
use super::paging::{Blocking, RETRY_LIMIT};
use super::queue::Sequence;
use super::schedule::{Dispatch, Next, Rules};
use batch::Batch;
use complete::Completion;
pub(in crate::model) use dma::{Dma, Short, Stop};
use unit::{Turn, Unit};

/// Whether an engine has more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Ran {
    /// Nothing is queued for it: run it again when the waker says so.
    Idle,
    /// It used up its budget.
    More,
}

/// A hardware engine. Whoever has it runs it; engines run independently of each other.
pub struct Engine {
    index: usize,
    parts: Parts,
    scratch: Box<Scratch>,
    job: Option<Job>,
    /// What waits for pages: [`SET_ASIDE`](super::SET_ASIDE) of each queue at most, as the state
    /// has it.
    aside: Vec<Job>,
}

/// What an engine works with.
struct Parts {
    shared: Arc<Shared>,
    channel: Channel,
    /// Set when a command, a reset or a halt wants the present descriptor abandoned.
    cancel: Arc<AtomicBool>,
}

/// A descriptor from a queue, under way.
#[derive(Debug)]
struct Job {
    dispatch: Dispatch,
    doing: Doing,
    /// How often it has asked for pages since it last came forward.
    retries: u32,
}

#[derive(Debug)]
enum Doing {
    Unit(Unit),
    Batch(Box<Batch>),
}

/// What the checks make of a descriptor.
enum Work {
    One(Task),
    Batch(Box<Batch>),
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, index: usize, cancel: Arc<AtomicBool>) -> Self {
        let channel = shared.endpoint.channel();
        let parts = Parts { shared, channel, cancel };
        Self { index, parts, scratch: Scratch::new(), job: None, aside: Vec::new() }
    }

    /// Which engine it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Works, for at most `budget` steps; each takes up a descriptor, or works through at most
    /// [`CHUNK`](super::CHUNK) bytes of one. Commands, resets and invalidations take effect
    /// between steps. An engine that only waits for pages is idle.
    pub fn run(&mut self, budget: usize) -> Ran {
        for _ in 0..budget {
            match self.job.take() {
                None if !self.begin() => return Ran::Idle,
                None => {}
                Some(job) => self.go_on(job),
            }
        }
        Ran::More
    }

    /// Takes up a descriptor, or goes on with one; `false` if there is none.
    fn begin(&mut self) -> bool {
        let (index, aside) = (self.index, &mut self.aside);
        let next = self.parts.shared.change(|state, fx| {
            if let Some(slot) = state.engines.get_mut(index) {
                if core::mem::take(&mut slot.purge) {
                    aside.retain(|job| slot.has_blocked(job.sequence()));
                }
            }
            state.next(index, fx)
        });
        match next {
            Next::Nothing => return false,
            Next::New(dispatch) => {
                self.parts.shared.tally.descriptors.add(1);
                let job = Job::new(dispatch, &self.parts);
                match job.is_concluding() {
                    true => self.go_on(job),
                    false => self.job = Some(job),
                }
            }
            Next::GoOn(sequence, code) => {
                match self.aside.iter().position(|job| job.sequence() == sequence) {
                    Some(at) => {
                        let mut job = self.aside.swap_remove(at);
                        job.answer(code);
                        self.job = Some(job);
                    }
                    None => self.end(Completion::Abandoned),
                }
            }
        }
        true
    }

    /// Does the next step of `job`.
    fn go_on(&mut self, mut job: Job) {
        match job.step(&self.parts, &mut self.scratch) {
            Turn::More => {
                job.retries = 0;
                self.job = Some(job);
            }
            Turn::Blocked(page) => self.block(job, page),
            Turn::Over(completion) => self.end(completion),
        }
    }

    /// Sets `job` aside until `page` is there.
    fn block(&mut self, mut job: Job, page: WantedPage) {
        job.retries += 1;
        let index = self.index;
        let blocking = match job.retries > RETRY_LIMIT {
            true => Blocking::Refused(ResponseCode::Invalid),
            false => self.parts.shared.change(|state, _| state.block(index, page)),
        };
        match blocking {
            // The answer may be there already; the next look for work finds it.
            Blocking::Aside => self.aside.push(job),
            Blocking::Cancelled => self.end(Completion::Abandoned),
            Blocking::Refused(code) => {
                job.retries = 0;
                job.answer(code);
                self.job = Some(job);
            }
        }
    }

    fn end(&mut self, completion: Completion) {
        if completion == Completion::Abandoned {
            self.parts.shared.tally.abandoned.add(1);
        }
        let index = self.index;
        self.parts.shared.change(|state, fx| state.finished(index, fx));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.job.take().is_some() {
            self.end(Completion::Abandoned);
        }
        let index = self.index;
        self.parts.shared.change(|state, fx| state.engine_gone(index, fx));
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("index", &self.index)
            .field("busy", &self.job.is_some())
            .field("aside", &self.aside.len())
            .finish_non_exhaustive()
    }
}

impl Job {
    fn new(dispatch: Dispatch, parts: &Parts) -> Self {
        let Dispatch { descriptor, running, rules } = dispatch;
        let doing = match parts.check(&descriptor, &rules, running.space, check::Place::Queue) {
            Ok(Work::One(task)) => Doing::Unit(Unit::new(descriptor, None, Ok(task))),
            Ok(Work::Batch(batch)) => Doing::Batch(batch),
            Err(outcome) => Doing::Unit(Unit::new(descriptor, None, Err(outcome))),
        };
        Self { dispatch, doing, retries: 0 }
    }

    fn sequence(&self) -> Sequence {
        self.dispatch.running.sequence
    }

    fn is_concluding(&self) -> bool {
        matches!(&self.doing, Doing::Unit(unit) if unit.is_concluding())
    }

    /// Takes the answer to the page that it needed.
    fn answer(&mut self, code: ResponseCode) {
        match &mut self.doing {
            Doing::Unit(unit) => unit.answer(code),
            Doing::Batch(batch) => batch.answer(code),
        }
    }

    /// Does the next step.
    fn step(&mut self, parts: &Parts, scratch: &mut Scratch) -> Turn<Completion> {
        if parts.is_cancelled() {
            return Turn::Over(Completion::Abandoned);
        }
        if let Doing::Batch(batch) = &mut self.doing {
            let conclusion = match batch.step(&self.dispatch, parts, scratch) {
                Turn::More => return Turn::More,
                Turn::Blocked(page) => return Turn::Blocked(page),
                Turn::Over(None) => return Turn::Over(Completion::Abandoned),
                Turn::Over(Some(conclusion)) => conclusion,
            };
            self.doing = Doing::Unit(Unit::concluding(self.dispatch.descriptor, conclusion));
        }
        match &mut self.doing {
            Doing::Unit(unit) => unit.step(&self.dispatch, parts, scratch),
            Doing::Batch(_) => Turn::More,
        }
    }
}

impl Parts {
    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// Accesses for one step.
    fn dma(&self, space: AddressSpace, rules: &Rules) -> Dma<'_> {
        Dma::new(self.channel.enter(), space, rules.ats)
    }
}
