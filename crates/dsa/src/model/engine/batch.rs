//! Batches: the descriptors of a list in memory, one after the other.

use mem::Iova;

use super::check::Place;
use super::complete::Completion;
use super::{Parts, Step, Work};
use crate::model::ops::{Outcome, Scratch, Task};
use crate::model::state::Dispatch;
use crate::spec::{Descriptor, Flags, Status, StatusByte, WqLimits};

/// A batch under way. Members run in order, so a fence has nothing to wait for.
#[derive(Debug)]
pub(super) struct Batch {
    list: Iova,
    count: u32,
    /// Members that are over.
    done: u32,
    /// Whether one of them did not end with success.
    failed: bool,
    member: Option<(Descriptor, Task)>,
}

impl Batch {
    pub(super) fn new(list: Iova, count: u32, limits: WqLimits) -> Result<Self, Status> {
        if list.0 % Descriptor::SIZE as u64 != 0 {
            return Err(Status::ListAlignment);
        }
        if count < 2 || count > 1 << limits.max_batch_shift() {
            return Err(Status::BadBatchCount);
        }
        Ok(Self { list, count, done: 0, failed: false, member: None })
    }

    /// Takes up a member, or does one step of it.
    pub(super) fn step(&mut self, batch: &Dispatch, parts: &Parts, scratch: &mut Scratch) -> Step {
        let (space, rules) = (batch.running.space, &batch.rules);
        let Some((descriptor, task)) = &mut self.member else {
            return self.next_member(batch, parts);
        };
        let descriptor = *descriptor;
        let step = task.step(&parts.dma(space, rules), scratch);
        match step {
            Step::Done(outcome) => self.end_member(batch, parts, &descriptor, outcome),
            other => other,
        }
    }

    /// Reads the next member and gets it ready; ends the batch if there is none.
    fn next_member(&mut self, batch: &Dispatch, parts: &Parts) -> Step {
        if self.done == self.count {
            return Step::Done(self.end());
        }
        let (space, rules) = (batch.running.space, &batch.rules);
        let mut bytes = [0; Descriptor::SIZE];
        let offset = u64::from(self.done) * Descriptor::SIZE as u64;
        let at = Iova(self.list.0.wrapping_add(offset));
        if let Err(short) = parts.dma(space, rules).read(at, &mut bytes) {
            return self.list_fault(Step::stopped(short.stop, self.done));
        }
        let descriptor = Descriptor::from_bytes(&bytes);
        // A fence that finds an error keeps itself and all that follow from running.
        if descriptor.flags().contains(Flags::FENCE) && self.failed {
            return Step::Done(self.end());
        }
        parts.shared.tally.descriptors.add(1);
        match parts.check(&descriptor, rules, space, Place::Batch) {
            Ok(Work::One(task)) => {
                self.member = Some((descriptor, task));
                Step::More
            }
            // `check` lets no batch into a batch.
            Ok(Work::Batch(_)) => {
                let outcome = Outcome::error(Status::BadOpcode);
                self.end_member(batch, parts, &descriptor, outcome)
            }
            Err(outcome) => self.end_member(batch, parts, &descriptor, outcome),
        }
    }

    fn end_member(
        &mut self,
        batch: &Dispatch,
        parts: &Parts,
        descriptor: &Descriptor,
        outcome: Outcome,
    ) -> Step {
        let success = outcome.status() == Some(Status::Success);
        self.member = None;
        let index = self.done as u16;
        match parts.complete(batch, descriptor, Some(index), outcome) {
            Completion::Abandoned => return Step::Detached,
            // A member whose record cannot be written has not ended with success either.
            Completion::Lost => self.failed = true,
            Completion::Told => {}
        }
        self.failed |= !success;
        self.done += 1;
        Step::More
    }

    /// The list cannot be read any further.
    fn list_fault(&self, step: Step) -> Step {
        let Step::Done(mut outcome) = step else { return step };
        if outcome.status() == Some(Status::PageFault) {
            outcome.record.status = StatusByte::of(Status::BatchListFault, false);
        }
        outcome.bytes = 0;
        Step::Done(outcome)
    }

    /// Descriptors completed are given in the place of bytes completed.
    fn end(&self) -> Outcome {
        let status = if self.failed { Status::BatchError } else { Status::Success };
        let mut outcome = Outcome::error(status);
        outcome.record.bytes_completed = self.done;
        outcome
    }
}
