//! Engines: each takes a descriptor from the queues of its group, works through it piece by piece
//! without any lock of the device, and completes it.

mod batch;
mod check;
mod complete;
mod dma;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use iommu::{AddressSpace, Channel};

use super::device::Shared;
use super::ops::{Scratch, Step, Task};
use super::state::{Dispatch, Rules};
use batch::Batch;
use complete::Completion;
pub(in crate::model) use dma::{Dma, Short, Stop};

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
}

/// What an engine works with.
struct Parts {
    shared: Arc<Shared>,
    channel: Channel,
    /// Set when a command, a reset or a halt wants the present descriptor abandoned.
    cancel: Arc<AtomicBool>,
}

/// A descriptor from a queue, under way.
struct Job {
    dispatch: Dispatch,
    work: Work,
}

enum Work {
    One(Task),
    Batch(Batch),
}

impl Engine {
    pub(super) fn new(shared: Arc<Shared>, index: usize, cancel: Arc<AtomicBool>) -> Self {
        let channel = shared.endpoint.channel();
        let parts = Parts { shared, channel, cancel };
        Self { index, parts, scratch: Scratch::new(), job: None }
    }

    /// Which engine it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Works, for at most `budget` steps; each takes up a descriptor, or works through at most
    /// [`CHUNK`](super::CHUNK) bytes of one. Commands, resets and invalidations take effect
    /// between steps.
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

    /// Takes up a descriptor; `false` if there is none.
    fn begin(&mut self) -> bool {
        let index = self.index;
        let Some(dispatch) = self.parts.shared.change(|state, fx| state.dispatch(index, fx)) else {
            return false;
        };
        self.parts.shared.tally.descriptors.add(1);
        let Dispatch { descriptor, running, rules } = dispatch;
        let work = self.parts.check(&descriptor, &rules, running.space, check::Place::Queue);
        match work {
            Ok(work) => self.job = Some(Job { dispatch, work }),
            Err(outcome) => {
                let completion = self.parts.complete(&dispatch, &descriptor, None, outcome);
                self.end(completion);
            }
        }
        true
    }

    /// Does the next step of `job`.
    fn go_on(&mut self, mut job: Job) {
        match job.step(&self.parts, &mut self.scratch) {
            None => self.job = Some(job),
            Some(completion) => self.end(completion),
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
        self.parts.shared.change(|state, _| {
            if let Some(slot) = state.engines.get_mut(index) {
                slot.taken = false;
            }
        });
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("index", &self.index)
            .field("busy", &self.job.is_some())
            .finish_non_exhaustive()
    }
}

impl Job {
    /// Does the next step; `None` if there is more to do.
    fn step(&mut self, parts: &Parts, scratch: &mut Scratch) -> Option<Completion> {
        if parts.is_cancelled() {
            return Some(Completion::Abandoned);
        }
        let Dispatch { descriptor, running, rules } = self.dispatch;
        let outcome = match &mut self.work {
            Work::One(task) => match task.step(&parts.dma(running.space, &rules), scratch) {
                Step::More => return None,
                Step::Detached => return Some(Completion::Abandoned),
                Step::Done(outcome) => outcome,
            },
            Work::Batch(batch) => match batch.step(&self.dispatch, parts, scratch) {
                Step::More => return None,
                Step::Detached => return Some(Completion::Abandoned),
                Step::Done(outcome) => outcome,
            },
        };
        Some(parts.complete(&self.dispatch, &descriptor, None, outcome))
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
