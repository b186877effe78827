//! Virtual commands: the guest asks, and the VM grants or takes back PASIDs.
//!
//! A write of the command register sets IP, and nothing else; the next poll carries the command
//! out and clears it. So a register access stays as short as any other, whatever the host has to
//! do for a PASID, and a guest that does not wait for IP to clear finds out on this unit too.

use iommu::{GuestPasid, Pasid, PasidRange, Vm};

use super::registers::Write;
use super::{Effects, Model};
use crate::spec::{registers_in, Register, RegisterId, VcmdLayout, VirtualCommand, VirtualStatus};

/// The registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct VirtualCommands {
    /// VCMD, as last written while IP was clear.
    command: u64,
    /// VCRSP.
    response: u64,
    /// IP: the command is not carried out yet.
    in_progress: bool,
    /// Nothing is bound any more to the PASID that is to be given back.
    unbound: bool,
}

impl VirtualCommands {
    pub(super) fn command(&self) -> u64 {
        self.command
    }

    pub(super) fn response(&self) -> u64 {
        self.response
    }
}

impl<V: Vm> Model<V> {
    /// Whether a write is of a VCMD, of either layout, that this unit does not have.
    pub(super) fn lacks_command(&self, offset: u64, len: usize) -> bool {
        let has_command = |layout| {
            registers_in(Some(layout), offset, len).any(|r| r.id == RegisterId::VirtualCommand)
        };
        self.caps.options().virtual_commands.is_none()
            && VcmdLayout::ALL.into_iter().any(has_command)
    }

    /// A write of VCMD. The opcode's byte gives the command, so that a guest without 64-bit
    /// accesses writes the upper half first.
    pub(super) fn virtual_command(
        &mut self,
        register: &Register,
        write: Write,
        effects: &mut Effects,
    ) {
        let Some(layout) = self.caps.options().virtual_commands else { return };
        if self.virtual_commands.in_progress {
            self.counters.virtual_commands_refused += 1;
            return;
        }
        self.virtual_commands.command = write.merge(register, self.virtual_commands.command);
        if write.has_low_byte() {
            self.virtual_commands.response = layout.encode_in_progress();
            self.virtual_commands.in_progress = true;
            effects.schedule = true;
        }
    }

    /// Carries out the command that is under way, if one is.
    pub(super) fn run_virtual_command(&mut self) {
        let Some(layout) = self.caps.options().virtual_commands else { return };
        if !self.virtual_commands.in_progress || self.unbinds_first(layout) {
            return;
        }
        self.virtual_commands.in_progress = false;
        self.virtual_commands.unbound = false;
        let (status, result) = self.answer(layout);
        self.virtual_commands.response = layout.encode_response(status, result);
    }

    /// Whether a virtual command waits for what reads the guest's tables.
    pub(super) fn virtual_command_waits(&self) -> bool {
        self.virtual_commands.in_progress
    }

    /// Has what is bound to a PASID unbound that is to be given back; whether that is not over.
    fn unbinds_first(&mut self, layout: VcmdLayout) -> bool {
        let command = layout.decode_command(self.virtual_commands.command);
        let Ok(VirtualCommand::FreePasid(pasid)) = command else { return false };
        if !self.caps.host_owned() {
            return false;
        }
        if self.is_reading() {
            return true;
        }
        let Some(shadow) = &mut self.shadow else { return false };
        let begun = !core::mem::replace(&mut self.virtual_commands.unbound, true);
        if begun {
            shadow.release(GuestPasid(pasid));
        }
        begun
    }

    fn answer(&mut self, layout: VcmdLayout) -> (VirtualStatus, Option<Pasid>) {
        self.counters.virtual_commands += 1;
        match layout.decode_command(self.virtual_commands.command) {
            Ok(VirtualCommand::AllocatePasid) => self.allocate_pasid(),
            Ok(VirtualCommand::FreePasid(pasid)) => (self.free_pasid(pasid), None),
            Err(error) => {
                self.counters.virtual_commands_invalid += 1;
                (error.status(), None)
            }
        }
    }

    /// Why there is none (a quota, the space, the host's memory) is the host's to know: the guest
    /// learns that there is none.
    fn allocate_pasid(&mut self) -> (VirtualStatus, Option<Pasid>) {
        let granted = self.pasid_range().and_then(|range| self.vm.alloc_pasid(range).ok());
        match granted {
            Some(GuestPasid(pasid)) => {
                self.counters.pasids_allocated += 1;
                (VirtualStatus::Success, Some(pasid))
            }
            None => {
                self.counters.pasids_unavailable += 1;
                (VirtualStatus::NoPasidAvailable, None)
            }
        }
    }

    fn free_pasid(&mut self, pasid: Pasid) -> VirtualStatus {
        match self.vm.free_pasid(GuestPasid(pasid)) {
            Ok(()) => {
                self.counters.pasids_freed += 1;
                VirtualStatus::Success
            }
            Err(_) => {
                self.counters.pasid_frees_refused += 1;
                VirtualStatus::InvalidPasid
            }
        }
    }

    /// What the guest's tables have room for (ECAP.PSS). Not PASID 0: that is the usual RID_PASID.
    fn pasid_range(&self) -> Option<PasidRange> {
        let bits = self.caps.options().pasid_bits?;
        let last = Pasid::new(1u32.checked_shl(bits.into())? - 1)?;
        PasidRange::ALL.intersection(&PasidRange::new(Pasid::from_field(0), last)?)
    }
}
