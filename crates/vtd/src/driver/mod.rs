//! The guest side: an operating system that drives a remapping unit.
//!
//! It has the parts of a guest's driver that shared virtual addressing adds. [`VirtualCommands`] is
//! how a guest takes its PASIDs from its host; [`SharedVirtualCommands`] is the same behind a lock,
//! as the source of an [`iommu::pasid::PasidAllocator`]'s numbers. [`PageRequestQueue`] takes what
//! devices ask for, answers it, and drains it when an address space goes;
//! [`InvalidationQueue`] is what it answers through. They reach registers and time by the two traits
//! here, memory by [`mem::GuestMemory`], and have no threads or interrupts of their own.
//!
//! What a unit answers is checked, not believed: each wait has a deadline, each number is looked at
//! before anybody uses it, and what is wrong is a typed error.

mod page_requests;
mod queue;
mod shared;
mod virtual_commands;

#[cfg(test)]
mod tests;

use core::ops::Deref;

pub use page_requests::{
    DrainError, Handled, PageQueueError, PageRequestQueue, DRAIN_ROUNDS, MAX_DEFERRED, MAX_PARTIAL,
};
pub use queue::{
    InvalidationQueue, SubmitError, MAX_DESCRIPTORS, QUEUE_ENTRIES, SUBMISSION_TIMEOUT_NS,
};
pub use shared::SharedVirtualCommands;
pub use virtual_commands::{
    AllocError, CommandError, FreeError, LayoutChoice, ProbeError, VirtualCommands,
    COMMAND_TIMEOUT_NS,
};

/// The register page of a unit. Offsets are those of [`spec::REGISTERS`](crate::spec::REGISTERS)
/// in bytes, multiples of the width.
///
/// An access is done when the call returns, and calls are done in their order: device memory, not
/// cached memory.
pub trait Registers {
    /// Reads a 32-bit register, or half of a 64-bit one.
    fn read32(&self, offset: u16) -> u32;

    /// Writes a 32-bit register, or half of a 64-bit one.
    fn write32(&self, offset: u16, value: u32);

    /// Reads a 64-bit register. Unless implemented by one access: the lower half, then the upper.
    fn read64(&self, offset: u16) -> u64 {
        let low = self.read32(offset);
        u64::from(self.read32(offset + 4)) << 32 | u64::from(low)
    }

    /// Writes a 64-bit register. Unless implemented by one access: the upper half, then the lower,
    /// which has the opcode of a virtual command.
    fn write64(&self, offset: u16, value: u64) {
        self.write32(offset + 4, (value >> 32) as u32);
        self.write32(offset, value as u32);
    }
}

/// A reference or shared pointer to registers is as good as they are.
impl<P> Registers for P
where
    P: Deref,
    P::Target: Registers,
{
    fn read32(&self, offset: u16) -> u32 {
        (**self).read32(offset)
    }

    fn write32(&self, offset: u16, value: u32) {
        (**self).write32(offset, value);
    }

    fn read64(&self, offset: u16) -> u64 {
        (**self).read64(offset)
    }

    fn write64(&self, offset: u16, value: u64) {
        (**self).write64(offset, value);
    }
}

/// Time, and how to let some pass.
pub trait Clock {
    /// Nanoseconds since some moment; never goes back.
    fn now_ns(&self) -> u64;

    /// Called between two looks at a register that is to change.
    fn pause(&self) {
        core::hint::spin_loop();
    }
}

/// A reference or shared pointer to a clock is as good as it is.
impl<P> Clock for P
where
    P: Deref,
    P::Target: Clock,
{
    fn now_ns(&self) -> u64 {
        (**self).now_ns()
    }

    fn pause(&self) {
        (**self).pause();
    }
}
