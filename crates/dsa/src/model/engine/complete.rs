//! Completion: counts, then the record or SWERROR, then the interrupt.

use iommu::ResponseCode;
use mem::Iova;

use super::check::may_interrupt;
use super::unit::{wanted, Turn};
use super::{Parts, Stop};
use crate::model::counters::Tally;
use crate::model::ops::Outcome;
use crate::model::sabotage::{self, Sabotage};
use crate::model::schedule::Dispatch;
use crate::spec::{Descriptor, Flags, Status, SwError, SwErrorHead};

/// What became of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Completion {
    /// The submitter can learn of it, as far as it wanted to.
    Told,
    /// The record could not be written: SWERROR says so.
    Lost,
    /// It was abandoned before anything was written.
    Abandoned,
}

/// How a descriptor ended, while it is told to those who want to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conclusion {
    outcome: Outcome,
    /// Whether a page response said failure, which SWERROR tells besides.
    interface_failed: bool,
    /// Whether it is counted.
    counted: bool,
    /// Where the record could not be written for want of a page, if that was asked for.
    fault: Option<Iova>,
    /// What is the matter with the record, if it cannot be written.
    lost: Option<Status>,
}

impl Conclusion {
    pub(super) fn new(outcome: Outcome) -> Self {
        Self { outcome, interface_failed: false, counted: false, fault: None, lost: None }
    }

    /// The same, ended by a page that was refused.
    pub(super) fn refused(self, code: ResponseCode, invalid: Status) -> Self {
        let outcome = self.outcome.refused(code, invalid);
        Self { outcome, interface_failed: code == ResponseCode::Failure, ..self }
    }

    pub(super) fn status(&self) -> Option<Status> {
        self.outcome.status()
    }

    /// Takes the answer to the page of the record.
    pub(super) fn answer(&mut self, code: ResponseCode) {
        self.lost = match code {
            ResponseCode::Success => None,
            ResponseCode::Invalid => Some(Status::RecordFault),
            ResponseCode::Failure => Some(Status::TranslationError),
        };
    }

    /// Counts it, once.
    fn count(&mut self, tally: &Tally) {
        let Some(status) = self.status().filter(|_| !self.counted) else { return };
        self.counted = true;
        tally.ended(status);
        tally.bytes.add(self.outcome.bytes);
        if status == Status::PageFault {
            tally.partial_completions.add(1);
        }
    }
}

impl Parts {
    /// Concludes `descriptor`, which is that of `dispatch` or (`batch_index`) a member of its batch.
    pub(super) fn conclude(
        &self,
        dispatch: &Dispatch,
        descriptor: &Descriptor,
        batch_index: Option<u16>,
        conclusion: &mut Conclusion,
    ) -> Turn<Completion> {
        let Some(status) = conclusion.status().filter(|_| !self.is_cancelled()) else {
            return Turn::Over(Completion::Abandoned);
        };
        let tally = &self.shared.tally;
        let error = |status, address, write| Failure { status, address, write, batch_index };
        let record = conclusion.outcome.record;
        let flags = descriptor.flags();
        let has_record = flags.contains(Flags::RECORD_ADDRESS_VALID);
        if goes_to_swerror(status) || !has_record && is_error(status) {
            conclusion.count(tally);
            let failure = error(status, record.fault_address, record.status.write());
            self.report(dispatch, descriptor, failure);
        } else if has_record && (flags.contains(Flags::REQUEST_RECORD) || is_error(status)) {
            match self.write_record(dispatch, descriptor, conclusion) {
                Ok(()) => {}
                Err(Stop::Detached) => return Turn::Over(Completion::Abandoned),
                Err(Stop::Access { status: Status::PageFault, address, .. })
                    if dispatch.rules.page_requests =>
                {
                    conclusion.fault = Some(address);
                    return Turn::Blocked(wanted(address, true));
                }
                Err(Stop::Access { status, address, write }) => {
                    // A fault has its own code; what the bus says about the address has none.
                    let status = match status {
                        Status::PageFault => Status::RecordFault,
                        other => other,
                    };
                    conclusion.count(tally);
                    tally.records_lost.add(1);
                    self.report(dispatch, descriptor, error(status, address, write));
                    return Turn::Over(Completion::Lost);
                }
            }
            if conclusion.interface_failed {
                self.report(dispatch, descriptor, error(status, record.fault_address, false));
            }
        }
        conclusion.count(tally);
        self.interrupt(dispatch, descriptor, status);
        Turn::Over(Completion::Told)
    }

    /// Writes the record, and counts the descriptor before that can be seen.
    fn write_record(
        &self,
        dispatch: &Dispatch,
        descriptor: &Descriptor,
        conclusion: &mut Conclusion,
    ) -> Result<(), Stop> {
        if let (Some(status), Some(address)) = (conclusion.lost, conclusion.fault) {
            return Err(Stop::Access { status, address, write: true });
        }
        if sabotage::is(Sabotage::ForgetCompletion) {
            return Ok(());
        }
        let dma = self.dma(dispatch.running.space, &dispatch.rules);
        let record = conclusion.outcome.record.to_bytes();
        let tally = &self.shared.tally;
        dma.write_record(descriptor.record, &record, || conclusion.count(tally))
    }

    fn interrupt(&self, dispatch: &Dispatch, descriptor: &Descriptor, status: Status) {
        let space = dispatch.running.space;
        let asked = descriptor.flags().contains(Flags::REQUEST_INTERRUPT);
        let allowed = status != Status::BadInterruptHandle && may_interrupt(&dispatch.rules, space);
        if !asked || !allowed || self.is_cancelled() {
            return;
        }
        let handle = descriptor.interrupt_handle();
        if self.interrupt_permission(handle, space) == Some(true) {
            self.shared.raise(handle);
        }
    }

    /// Records a failure that the descriptor's submitter cannot be told of.
    fn report(&self, dispatch: &Dispatch, descriptor: &Descriptor, failure: Failure) {
        let space = dispatch.running.space;
        let head = SwErrorHead::new()
            .with_descriptor_valid(true)
            .with_wq_valid(true)
            .with_batch(failure.batch_index.is_some())
            .with_write(failure.write)
            .with_privileged(space.privileged)
            .with_code(failure.status as u8)
            .with_wq(dispatch.rules.wq)
            .with_opcode(descriptor.control.opcode())
            .with_pasid(space.pasid.map_or(0, |pasid| pasid.get()));
        let batch_index = failure.batch_index.unwrap_or(0);
        let error = SwError { head, batch_index, address: failure.address };
        self.shared.change(|state, fx| {
            // A reset may have come meanwhile, and has nothing to do with this.
            if !self.is_cancelled() {
                state.software_error(error, fx);
            }
        });
    }
}

/// What goes into SWERROR.
struct Failure {
    status: Status,
    address: Iova,
    write: bool,
    batch_index: Option<u16>,
}

/// Whether the record is written though it was not asked for.
fn is_error(status: Status) -> bool {
    !matches!(status, Status::Success | Status::FalsePredicate | Status::BatchError)
}

/// Whether the failure is one of the record address itself, or of who may name one.
fn goes_to_swerror(status: Status) -> bool {
    matches!(status, Status::RecordFault | Status::RecordAlignment | Status::PrivilegeDisabled)
}
