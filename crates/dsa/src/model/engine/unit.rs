//! One descriptor under way: its work, then its completion, each of which may have to wait for a
//! page and goes on from there.

use iommu::{ResponseCode, WantedPage};
use mem::Iova;

use super::complete::{Completion, Conclusion};
use super::Parts;
use crate::model::ops::{Outcome, Scratch, Step, Task};
use crate::model::schedule::{Dispatch, Rules};
use crate::spec::{Descriptor, Flags, Status, StatusByte};

/// What a turn of something led to.
#[derive(Debug)]
#[must_use]
pub(super) enum Turn<T> {
    /// There is more to do.
    More,
    /// It cannot go on without a page: it is to be told the answer before its next turn.
    Blocked(WantedPage),
    /// It is over.
    Over(T),
}

/// A descriptor under way that is no batch: one from a queue, or a member of a batch.
#[derive(Debug)]
pub(super) struct Unit {
    descriptor: Descriptor,
    /// Where in its batch it is.
    batch_index: Option<u16>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// What it does.
    Work(Task),
    /// That, stopped where a page is missing, with what it ends with if the page cannot be had.
    Stopped(Task, Outcome),
    /// It has ended, and this is still to be told.
    Conclude(Conclusion),
}

impl Unit {
    /// What a check made of `descriptor`.
    pub(super) fn new(
        descriptor: Descriptor,
        batch_index: Option<u16>,
        work: Result<Task, Outcome>,
    ) -> Self {
        let stage = match work {
            Ok(task) => Stage::Work(task),
            Err(outcome) => Stage::Conclude(Conclusion::new(outcome)),
        };
        Self { descriptor, batch_index, stage }
    }

    /// A batch whose members are over.
    pub(super) fn concluding(descriptor: Descriptor, conclusion: Conclusion) -> Self {
        Self { descriptor, batch_index: None, stage: Stage::Conclude(conclusion) }
    }

    /// Whether its work is over.
    pub(super) fn is_concluding(&self) -> bool {
        matches!(self.stage, Stage::Conclude(_))
    }

    /// Whether it has ended with success.
    pub(super) fn succeeded(&self) -> bool {
        match &self.stage {
            Stage::Conclude(conclusion) => conclusion.status() == Some(Status::Success),
            Stage::Work(_) | Stage::Stopped(..) => false,
        }
    }

    /// Does one step of its work, or concludes it.
    pub(super) fn step(
        &mut self,
        dispatch: &Dispatch,
        parts: &Parts,
        scratch: &mut Scratch,
    ) -> Turn<Completion> {
        if let Stage::Work(task) = &mut self.stage {
            let step = task.step(&parts.dma(dispatch.running.space, &dispatch.rules), scratch);
            match step {
                Step::More => return Turn::More,
                Step::Detached => return Turn::Over(Completion::Abandoned),
                Step::Done(outcome) => {
                    if let Some(page) = self.stop(&dispatch.rules, outcome) {
                        return Turn::Blocked(page);
                    }
                    self.stage = Stage::Conclude(Conclusion::new(outcome));
                }
            }
        }
        let Stage::Conclude(conclusion) = &mut self.stage else { return Turn::More };
        parts.conclude(dispatch, &self.descriptor, self.batch_index, conclusion)
    }

    /// Stops where a page is missing that may be asked for; gives the page.
    fn stop(&mut self, rules: &Rules, outcome: Outcome) -> Option<WantedPage> {
        let blocks = rules.page_requests && self.descriptor.flags().contains(Flags::BLOCK_ON_FAULT);
        if !blocks || outcome.status() != Some(Status::PageFault) {
            return None;
        }
        let nothing = Stage::Work(Task::Nothing);
        match core::mem::replace(&mut self.stage, nothing) {
            Stage::Work(task) => self.stage = Stage::Stopped(task, outcome),
            other => self.stage = other,
        }
        Some(wanted(outcome.record.fault_address, outcome.record.status.write()))
    }

    /// Takes the answer to the page that it needed.
    pub(super) fn answer(&mut self, code: ResponseCode) {
        let nothing = Stage::Work(Task::Nothing);
        self.stage = match core::mem::replace(&mut self.stage, nothing) {
            Stage::Stopped(task, _) if code == ResponseCode::Success => Stage::Work(task),
            Stage::Stopped(_, outcome) => {
                let conclusion = Conclusion::new(outcome);
                Stage::Conclude(conclusion.refused(code, Status::PageRequestInvalid))
            }
            Stage::Conclude(mut conclusion) => {
                conclusion.answer(code);
                Stage::Conclude(conclusion)
            }
            work @ Stage::Work(_) => work,
        };
    }
}

/// The page at `address`, for an access that is a write or not.
pub(super) fn wanted(address: Iova, write: bool) -> WantedPage {
    WantedPage { address, read: !write, write, execute: false }
}

impl Outcome {
    /// The same, ended because a page was refused: with `invalid`, or with a translation error where
    /// the page request interface has failed (which names no direction).
    pub(super) fn refused(mut self, code: ResponseCode, invalid: Status) -> Self {
        self.record.status = match code {
            ResponseCode::Failure => StatusByte::of(Status::TranslationError, false),
            ResponseCode::Success | ResponseCode::Invalid => {
                StatusByte::of(invalid, self.record.status.write())
            }
        };
        self
    }
}
