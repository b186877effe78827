//! Submissions of a VM's processors.

use alloc::sync::Arc;
use core::fmt;

use super::layout::{CommandWord, Ia32Pasid, COMMAND_SIZE};
use super::Shared;
use crate::sabotage::{self, Sabotage};
use crate::{GuestPasid, HostPasid, Pasid};

/// A processor of a VM, as it submits to shared queues: one for each, given back when dropped.
///
/// What it writes to the device is done while it is marked as submitting, and whoever unbinds the
/// PASID waits for that: so the device's answer must not wait for anything that an unbind holds up.
pub struct Vcpu {
    shared: Arc<Shared>,
    slot: usize,
}

/// What a device answers to a deferrable memory write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeferrableWrite {
    /// It has taken the command.
    Accepted,
    /// It has not: try again.
    Retry,
}

/// How a submission ended that was no error of the program's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Enqueued {
    /// The device has the command.
    Accepted,
    /// The device has not taken it.
    Retry,
    /// There is no translation, so no device has seen it. Hardware leaves the guest (exit reasons
    /// 72 and 73); here the submitter is refused, as if the device had done so.
    Untranslatable,
}

impl Enqueued {
    /// RFLAGS.ZF after the instruction: the command was not taken.
    pub const fn zero_flag(self) -> bool {
        !matches!(self, Self::Accepted)
    }
}

/// A program's error: the processor raises #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeneralProtection {
    /// IA32_PASID holds no PASID, so nothing may be submitted in a user's name.
    #[error("IA32_PASID is not valid: {0:#x}")]
    NoPasid(u64),
    /// Bits of the command are set that have to be zero: with ENQCMD the low 32, with ENQCMDS bits
    /// 30 to 20.
    #[error("the command begins with {0:#x}")]
    Reserved(u32),
}

impl Vcpu {
    pub(super) fn new(shared: Arc<Shared>) -> Option<Self> {
        let slot = shared.marks.take()?;
        Some(Self { shared, slot })
    }

    /// ENQCMD of `command` with IA32_PASID holding `pasid`: in a user's name, whoever runs it.
    /// `write` brings it to the device, with the host's PASID in it.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`]; no device has seen the command.
    pub fn enqcmd(
        &mut self,
        pasid: Ia32Pasid,
        command: &[u8; COMMAND_SIZE],
        write: impl FnOnce(&[u8; COMMAND_SIZE]) -> DeferrableWrite,
    ) -> Result<Enqueued, GeneralProtection> {
        if !pasid.valid() {
            return Err(self.protect(GeneralProtection::NoPasid(pasid.into_bits())));
        }
        let word = CommandWord::of(command);
        if word.into_bits() != 0 {
            return Err(self.protect(GeneralProtection::Reserved(word.into_bits())));
        }
        Ok(self.submit(word.with_pasid(pasid.pasid()), command, write))
    }

    /// ENQCMDS of `command`, which holds the PASID and the privilege.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`]; no device has seen the command.
    pub fn enqcmds(
        &mut self,
        command: &[u8; COMMAND_SIZE],
        write: impl FnOnce(&[u8; COMMAND_SIZE]) -> DeferrableWrite,
    ) -> Result<Enqueued, GeneralProtection> {
        let word = CommandWord::of(command);
        if word.reserved() != 0 {
            return Err(self.protect(GeneralProtection::Reserved(word.into_bits())));
        }
        Ok(self.submit(word, command, write))
    }

    /// Calls `f` with the host's number of a PASID, marked as submitting; `None` if there is none.
    #[inline]
    pub fn translated<R>(
        &mut self,
        guest: GuestPasid,
        f: impl FnOnce(HostPasid) -> R,
    ) -> Option<R> {
        let mark = self.shared.marks.get(self.slot)?;
        let _marked = mark.begin();
        let host = self.shared.table.load(guest).host()?;
        Some(f(host))
    }

    fn submit(
        &mut self,
        word: CommandWord,
        command: &[u8; COMMAND_SIZE],
        write: impl FnOnce(&[u8; COMMAND_SIZE]) -> DeferrableWrite,
    ) -> Enqueued {
        let guest = GuestPasid(Pasid::from_field(word.pasid()));
        let answer = self.translated(guest, |host| {
            let host = if sabotage::is(Sabotage::SubmitGuestPasid) { guest.0 } else { host.0 };
            write(&word.with_pasid(host.get()).put(command))
        });
        let outcome = match answer {
            Some(DeferrableWrite::Accepted) => Enqueued::Accepted,
            Some(DeferrableWrite::Retry) => Enqueued::Retry,
            None => Enqueued::Untranslatable,
        };
        if let Some(mark) = self.shared.marks.get(self.slot) {
            let counter = match outcome {
                Enqueued::Accepted => &mark.counts.accepted,
                Enqueued::Retry => &mark.counts.retried,
                Enqueued::Untranslatable => &mark.counts.untranslatable,
            };
            counter.add(1);
        }
        outcome
    }

    fn protect(&mut self, error: GeneralProtection) -> GeneralProtection {
        if let Some(mark) = self.shared.marks.get(self.slot) {
            mark.counts.protection.add(1);
        }
        error
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.marks.give(self.slot);
    }
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("slot", &self.slot).finish_non_exhaustive()
    }
}
