//! Completion: counts, then the record or SWERROR, then the interrupt.

use mem::Iova;

use super::check::may_interrupt;
use super::{Parts, Stop};
use crate::model::ops::Outcome;
use crate::model::sabotage::{self, Sabotage};
use crate::model::state::Dispatch;
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

impl Parts {
    /// Completes `descriptor`, which is that of `dispatch` or (`batch_index`) a member of its batch.
    pub(super) fn complete(
        &self,
        dispatch: &Dispatch,
        descriptor: &Descriptor,
        batch_index: Option<u16>,
        outcome: Outcome,
    ) -> Completion {
        let Some(status) = outcome.status() else { return Completion::Abandoned };
        if self.is_cancelled() {
            return Completion::Abandoned;
        }
        self.count(status, &outcome);
        let error = |status, address, write| Failure { status, address, write, batch_index };
        let record = &outcome.record;
        let flags = descriptor.flags();
        let has_record = flags.contains(Flags::RECORD_ADDRESS_VALID);
        if goes_to_swerror(status) || !has_record && is_error(status) {
            let failure = error(status, record.fault_address, record.status.write());
            self.report(dispatch, descriptor, failure);
        } else if has_record && (flags.contains(Flags::REQUEST_RECORD) || is_error(status)) {
            match self.write_record(dispatch, descriptor, &outcome) {
                Ok(()) => {}
                Err(Stop::Detached) => return Completion::Abandoned,
                Err(Stop::Access { status, address, write }) => {
                    // A fault has its own code; what the bus says about the address has none.
                    let status = match status {
                        Status::PageFault => Status::RecordFault,
                        other => other,
                    };
                    self.shared.tally.records_lost.add(1);
                    self.report(dispatch, descriptor, error(status, address, write));
                    return Completion::Lost;
                }
            }
        }
        self.interrupt(dispatch, descriptor, status);
        Completion::Told
    }

    fn count(&self, status: Status, outcome: &Outcome) {
        let tally = &self.shared.tally;
        tally.ended(status);
        tally.bytes.add(outcome.bytes);
        if status == Status::PageFault {
            tally.partial_completions.add(1);
        }
    }

    fn write_record(
        &self,
        dispatch: &Dispatch,
        descriptor: &Descriptor,
        outcome: &Outcome,
    ) -> Result<(), Stop> {
        if sabotage::is(Sabotage::ForgetCompletion) {
            return Ok(());
        }
        let dma = self.dma(dispatch.running.space, &dispatch.rules);
        dma.write_record(descriptor.record, &outcome.record.to_bytes())
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
