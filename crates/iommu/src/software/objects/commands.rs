//! A guest's SMMUv3 commands, with its identifiers rewritten to the host's (IHI 0070, chapter 4).
//!
//! Only those that can do no harm to others are taken: they name the guest's own devices, by the
//! numbers that it has for them, and its own translations, under the VM's tag.

use super::Objects;
use crate::format::smmuv3::{guest_command, CommandError};
use crate::software::device_tlbs::Asker;
use crate::software::vm::VmShared;
use crate::{InvalidField, Invalidation, ObjectError, Ticket, ViommuId, ViommuKind, Vmid};

impl VmShared {
    /// Carries out a guest's commands.
    pub(in crate::software) fn invalidate_viommu(
        &self,
        viommu: ViommuId,
        commands: &[[u64; 2]],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let mut control = self.control.lock();
        control.check_open().map_err(|error| (0, error))?;
        let kind = control.objects.viommu(viommu).map_err(|error| (0, error))?.kind;
        if kind != ViommuKind::Smmuv3 {
            return Err((0, ObjectError::NotSupported));
        }
        let vmid = control.vmid.as_ref().map(|vmid| Vmid(vmid.id().0));
        let mut ticket = control.ticket(Asker::Guest);
        for (done, &command) in commands.iter().enumerate() {
            let what =
                decode(command, &control.objects, viommu, vmid).map_err(|error| (done, error))?;
            // Without a tag nothing has ever been attached, so nothing is cached.
            let Some(what) = what else { continue };
            ticket = control.invalidate(what);
        }
        Ok(ticket)
    }
}

/// What a command has forgotten; nothing if it is about translations and there is no tag.
fn decode(
    command: [u64; 2],
    objects: &Objects,
    viommu: ViommuId,
    vmid: Option<Vmid>,
) -> Result<Option<Invalidation>, ObjectError> {
    let device = |stream| objects.device_by(viommu, u64::from(stream));
    guest_command(command, vmid, device).map_err(|error| match error {
        CommandError::Opcode { .. } => ObjectError::NotSupported,
        CommandError::Stream { .. } => ObjectError::Invalid(InvalidField::VirtualId),
        CommandError::Size { .. } => ObjectError::Invalid(InvalidField::Range),
    })
}

#[cfg(all(test, not(loom)))]
mod tests;
