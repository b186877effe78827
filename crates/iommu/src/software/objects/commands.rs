//! A guest's SMMUv3 commands, with its identifiers rewritten to the host's: the devices are those that
//! it has numbers for in the vIOMMU, and the tag is the VM's.

use super::Objects;
use crate::channel::Batch;
use crate::format::smmuv3::{guest_command, CommandError};
use crate::software::vm::VmShared;
use crate::{InvalidField, Invalidation, ObjectError, Ticket, ViommuId, ViommuKind, Vmid};

/// The tag of a VM to which nothing has been attached: no translation has it.
const UNUSED: Vmid = Vmid(0);

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
        let vmid = control.vmid.as_ref().map_or(UNUSED, |vmid| Vmid(vmid.id().0));
        let mut ticket = Ticket(control.sequence);
        for (done, &command) in commands.iter().enumerate() {
            let what = rewritten(command, &control.objects, viommu, vmid);
            let what = what.map_err(|error| (done, error))?;
            control.history.invalidations += 1;
            let forget = |batch: &mut Batch| batch.forget(what);
            ticket = control.post(|channel| what.concerns(channel.requester), forget).0;
        }
        Ok(ticket)
    }
}

/// What a command has forgotten.
fn rewritten(
    command: [u64; 2],
    objects: &Objects,
    viommu: ViommuId,
    vmid: Vmid,
) -> Result<Invalidation, ObjectError> {
    let device = |stream| objects.device_by(viommu, u64::from(stream));
    guest_command(command, vmid, device).map_err(|error| match error {
        CommandError::Opcode { .. } => ObjectError::NotSupported,
        CommandError::Stream { .. } => ObjectError::Invalid(InvalidField::VirtualId),
        CommandError::Size { .. } => ObjectError::Invalid(InvalidField::Range),
    })
}
