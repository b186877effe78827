//! Batches: the descriptors of a list in memory, one after the other.

use iommu::ResponseCode;
use mem::Iova;

use super::check::Place;
use super::complete::{Completion, Conclusion};
use super::unit::{wanted, Turn, Unit};
use super::{Parts, Work};
use crate::model::ops::{Outcome, Scratch, Step};
use crate::model::schedule::Dispatch;
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
    member: Option<Unit>,
    /// What it ends with if the page of the list that it waits for cannot be had.
    list_fault: Option<Outcome>,
    /// It has ended so.
    refused: Option<Conclusion>,
}

/// How a batch ended; `None` if it was abandoned.
type End = Option<Conclusion>;

impl Batch {
    pub(super) fn new(list: Iova, count: u32, limits: WqLimits) -> Result<Self, Status> {
        if list.0 % Descriptor::SIZE as u64 != 0 {
            return Err(Status::ListAlignment);
        }
        if count < 2 || count > 1 << limits.max_batch_shift() {
            return Err(Status::BadBatchCount);
        }
        let batch = Self {
            list,
            count,
            done: 0,
            failed: false,
            member: None,
            list_fault: None,
            refused: None,
        };
        Ok(batch)
    }

    /// Takes up a member, or does one step of it.
    pub(super) fn step(
        &mut self,
        batch: &Dispatch,
        parts: &Parts,
        scratch: &mut Scratch,
    ) -> Turn<End> {
        if let Some(member) = &mut self.member {
            let turn = member.step(batch, parts, scratch);
            return self.after(turn);
        }
        let mut member = match self.next_member(batch, parts) {
            Ok(member) => member,
            Err(turn) => return turn,
        };
        // What the checks ended is over at once.
        let turn = match member.is_concluding() {
            true => member.step(batch, parts, scratch),
            false => Turn::More,
        };
        self.member = Some(member);
        self.after(turn)
    }

    /// Takes in what a turn of the member led to.
    fn after(&mut self, turn: Turn<Completion>) -> Turn<End> {
        let completion = match turn {
            Turn::More => return Turn::More,
            Turn::Blocked(page) => return Turn::Blocked(page),
            Turn::Over(completion) => completion,
        };
        let success = self.member.take().is_some_and(|member| member.succeeded());
        if completion == Completion::Abandoned {
            return Turn::Over(None);
        }
        // A member whose record cannot be written has not ended with success either.
        self.failed |= !success || completion == Completion::Lost;
        self.done += 1;
        Turn::More
    }

    /// Takes the answer to the page that it, or its member, needed.
    pub(super) fn answer(&mut self, code: ResponseCode) {
        if let Some(member) = &mut self.member {
            return member.answer(code);
        }
        let fault = self.list_fault.take().filter(|_| code != ResponseCode::Success);
        self.refused =
            fault.map(|outcome| Conclusion::new(outcome).refused(code, Status::BatchListFault));
    }

    /// Reads the next member and gets it ready; ends the batch if there is none.
    fn next_member(&mut self, batch: &Dispatch, parts: &Parts) -> Result<Unit, Turn<End>> {
        if let Some(refused) = self.refused.take() {
            return Err(Turn::Over(Some(refused)));
        }
        let over = |outcome| Turn::Over(Some(Conclusion::new(outcome)));
        if self.done == self.count {
            return Err(over(self.end()));
        }
        let (space, rules) = (batch.running.space, &batch.rules);
        let mut bytes = [0; Descriptor::SIZE];
        let offset = u64::from(self.done) * Descriptor::SIZE as u64;
        let at = Iova(self.list.0.wrapping_add(offset));
        if let Err(short) = parts.dma(space, rules).read(at, &mut bytes) {
            let Some(outcome) = list_fault(Step::stopped(short.stop, self.done)) else {
                return Err(Turn::Over(None));
            };
            if outcome.status() == Some(Status::BatchListFault) && rules.page_requests {
                self.list_fault = Some(outcome);
                return Err(Turn::Blocked(wanted(outcome.record.fault_address, false)));
            }
            return Err(over(outcome));
        }
        let descriptor = Descriptor::from_bytes(&bytes);
        // A fence that finds an error keeps itself and all that follow from running.
        if descriptor.flags().contains(Flags::FENCE) && self.failed {
            return Err(over(self.end()));
        }
        parts.shared.tally.descriptors.add(1);
        let work =
            parts.check(&descriptor, rules, space, Place::Batch).and_then(|work| match work {
                Work::One(task) => Ok(task),
                // `check` lets no batch into a batch.
                Work::Batch(_) => Err(Outcome::error(Status::BadOpcode)),
            });
        Ok(Unit::new(descriptor, Some(self.done as u16), work))
    }

    /// Descriptors completed are given in the place of bytes completed.
    fn end(&self) -> Outcome {
        let status = if self.failed { Status::BatchError } else { Status::Success };
        let mut outcome = Outcome::error(status);
        outcome.record.bytes_completed = self.done;
        outcome
    }
}

/// What a batch ends with when its list cannot be read any further; `None` if there is no memory any
/// more.
fn list_fault(step: Step) -> Option<Outcome> {
    let Step::Done(mut outcome) = step else { return None };
    if outcome.status() == Some(Status::PageFault) {
        outcome.record.status = StatusByte::of(Status::BatchListFault, false);
    }
    outcome.bytes = 0;
    Some(outcome)
}
