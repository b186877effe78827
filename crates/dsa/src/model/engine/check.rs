//! The checks that come before any work (section "Descriptor checks").

use alloc::boxed::Box;

use iommu::AddressSpace;

use super::batch::Batch;
use super::{Parts, Work};
use crate::model::caps::Caps;
use crate::model::ops::{Outcome, Task};
use crate::model::schedule::Rules;
use crate::spec::{CompletionRecord, Descriptor, Flags, Opcode, Operation, Status};

/// Where a descriptor comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Queue,
    Batch,
}

impl Parts {
    /// Checks `descriptor` and gets its work ready.
    ///
    /// # Errors
    ///
    /// What it ends with.
    pub(super) fn check(
        &self,
        descriptor: &Descriptor,
        rules: &Rules,
        space: AddressSpace,
        place: Place,
    ) -> Result<Work, Outcome> {
        let flags = descriptor.flags();
        let has_record = flags.contains(Flags::RECORD_ADDRESS_VALID);
        if has_record && descriptor.record.0 % CompletionRecord::SIZE as u64 != 0 {
            return Err(Outcome::error(Status::RecordAlignment));
        }
        let operation = descriptor.operation().map_err(|_| Outcome::error(Status::BadOpcode))?;
        let opcode = operation.opcode();
        let nested = matches!(opcode, Opcode::Batch | Opcode::Drain);
        if place == Place::Batch && nested {
            return Err(Outcome::error(Status::BadOpcode));
        }
        if place == Place::Queue && space.privileged && !rules.privileged_enable {
            return Err(Outcome::error(Status::PrivilegeDisabled));
        }
        let wrong = wrong_flags(opcode, flags, rules, space, place);
        if !wrong.is_empty() {
            return Err(Outcome::bad_flags(wrong));
        }
        // The submitter's field counts only in shared queues, and in a batch only the batch's.
        let shared = place == Place::Queue && !rules.mode.dedicated();
        let reserved = shared && descriptor.submitter.reserved() != 0;
        if reserved || descriptor.has_reserved(&operation) {
            return Err(Outcome::error(Status::ReservedField));
        }
        if flags.contains(Flags::REQUEST_INTERRUPT) {
            let handle = descriptor.interrupt_handle();
            if self.interrupt_permission(handle, space).is_none() {
                return Err(Outcome::error(Status::BadInterruptHandle));
            }
        }
        match operation {
            Operation::Batch { list, count } => {
                Batch::new(list, count, rules.limits).map(Box::new).map(Work::Batch)
            }
            _ => Task::new(&operation, flags, rules.limits).map(Work::One),
        }
        .map_err(Outcome::error)
    }

    /// Whether descriptors in `space` may use `handle`, and whether interrupts come of it.
    pub(super) fn interrupt_permission(&self, handle: u16, space: AddressSpace) -> Option<bool> {
        self.shared.change(|state, _| state.interrupt_permission(handle, space))
    }
}

/// Whether descriptors in `space` may ask for interrupts at all.
pub(super) fn may_interrupt(rules: &Rules, space: AddressSpace) -> bool {
    rules.user_interrupts || space.pasid.is_none() || space.privileged
}

/// The flags that are set and must not be, and those that are missing.
fn wrong_flags(
    opcode: Opcode,
    flags: Flags,
    rules: &Rules,
    space: AddressSpace,
    place: Place,
) -> Flags {
    let mut allowed = Flags::allowed(opcode);
    if place == Place::Queue {
        allowed.remove(Flags::FENCE);
    }
    if !rules.mode.block_on_fault() {
        allowed.remove(Flags::BLOCK_ON_FAULT);
    }
    if !may_interrupt(rules, space) {
        allowed.remove(Flags::REQUEST_INTERRUPT);
    }
    if !flags.contains(Flags::RECORD_ADDRESS_VALID) {
        allowed.remove(Flags::REQUEST_RECORD | Flags::RECORD_TC);
    }
    if opcode == Opcode::Drain {
        // No readback addresses (GENCAP), so there is nothing for these to be about.
        const { assert!(!Caps::DRAIN_READBACK) };
        allowed.remove(Flags::DRAIN_READBACK1 | Flags::DRAIN_READBACK2);
        allowed.remove(Flags::DRAIN_NO_READBACK_A | Flags::DRAIN_NO_READBACK_B);
        allowed.remove(Flags::ADDRESS1_TC | Flags::ADDRESS2_TC);
    }
    let seeded = matches!(opcode, Opcode::Crc | Opcode::CopyCrc);
    if seeded && !flags.contains(Flags::CRC_READ_SEED) {
        allowed.remove(Flags::ADDRESS3_TC);
    }
    let mut missing = Flags::required(opcode).difference(flags);
    let heard = flags.intersects(Flags::REQUEST_RECORD | Flags::REQUEST_INTERRUPT);
    if opcode == Opcode::Drain && !heard {
        missing |= Flags::REQUEST_RECORD | Flags::REQUEST_INTERRUPT;
    }
    flags.difference(allowed) | missing
}
