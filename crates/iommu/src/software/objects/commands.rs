//! A guest's SMMUv3 commands, with its identifiers rewritten to the host's (IHI 0070, chapter 4).
//!
//! Only those that can do no harm to others are taken: they name the guest's own devices, by the
//! numbers that it has for them, and its own translations, under the VM's tag.

use mem::{Iova, Range};
use pci::RequesterId;

use super::Objects;
use crate::format::smmuv3::{opcode, CommandWord0 as Word0, CommandWord1 as Word1};
use crate::software::vm::VmShared;
use crate::{
    InvalidField, Invalidation, ObjectError, PageRange, Pasid, SmmuInvalidation, Ticket, ViommuId,
    ViommuKind, Vmid,
};

const PAGE_BITS: u32 = 12;
/// Size of an ATC_INV from which on it covers all addresses.
const ATC_ALL: u8 = 52;

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
        let mut ticket = Ticket(control.sequence);
        for (done, &command) in commands.iter().enumerate() {
            let what =
                decode(command, &control.objects, viommu, vmid).map_err(|error| (done, error))?;
            // Without a tag nothing has ever been attached, so nothing is cached.
            let Some(what) = what else { continue };
            control.history.invalidations += 1;
            let forget = |batch: &mut crate::channel::Batch| batch.forget(what);
            ticket = control.post(|channel| what.concerns(channel.requester), forget).0;
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
    let (word0, word1) = (Word0::from_bits(command[0]), Word1::from_bits(command[1]));
    let device = || {
        let device = objects.device_by(viommu, u64::from(word0.stream()));
        device.ok_or(ObjectError::Invalid(InvalidField::VirtualId))
    };
    let substream = Pasid::from_field(word0.substream());
    let what = match word0.opcode() {
        opcode::CFGI_CD => SmmuInvalidation::Descriptor { requester: device()?, substream },
        opcode::CFGI_CD_ALL => SmmuInvalidation::DescriptorAll { requester: device()? },
        opcode::ATC_INV => return Ok(Some(device_tlb(word0, word1, device()?))),
        // All of everybody is all of this guest's.
        opcode::TLBI_NH_ALL | opcode::TLBI_NSNH_ALL => {
            return Ok(vmid.map(SmmuInvalidation::StageOneAll).map(Invalidation::Smmuv3));
        }
        opcode::TLBI_NH_ASID | opcode::TLBI_NH_VA | opcode::TLBI_NH_VAA => {
            let Some(vmid) = vmid else { return Ok(None) };
            stage_one(word0, word1, vmid)
        }
        _ => return Err(ObjectError::NotSupported),
    };
    Ok(Some(Invalidation::Smmuv3(what)))
}

fn stage_one(word0: Word0, word1: Word1, vmid: Vmid) -> SmmuInvalidation {
    let asid = word0.asid();
    if word0.opcode() == opcode::TLBI_NH_ASID {
        return SmmuInvalidation::StageOneAsid { vmid, asid };
    }
    let pages = PageRange { range: range(word0, word1), leaf_only: word1.leaf() };
    let asid = (word0.opcode() == opcode::TLBI_NH_VA).then_some(asid);
    SmmuInvalidation::StageOnePages { vmid, asid, pages }
}

/// The addresses of a command by address; of a page, those of the smallest.
fn range(word0: Word0, word1: Word1) -> Range<Iova> {
    let len = match word1.granule() {
        0 => 1 << PAGE_BITS,
        granule => (word0.number() + 1) << (word0.scale() + 10 + 2 * u32::from(granule)),
    };
    from(word1.address(), len)
}

/// The addresses from `start`, as many as there are up to `len`.
fn from(start: u64, len: u64) -> Range<Iova> {
    Range { start: Iova(start), last: Iova(start.saturating_add(len - 1)) }
}

fn device_tlb(word0: Word0, word1: Word1, requester: RequesterId) -> Invalidation {
    let range = match word1.size() {
        size if size >= ATC_ALL => Range { start: Iova(0), last: Iova(u64::MAX) },
        size => {
            let len = 1 << (PAGE_BITS + u32::from(size));
            from(word1.address() & !(len - 1), len)
        }
    };
    if !word0.has_substream() {
        return Invalidation::DeviceTlb { requester, range };
    }
    let pasid = (!word0.global()).then(|| Pasid::from_field(word0.substream()));
    Invalidation::DeviceTlbPasid { requester, pasid, range }
}

#[cfg(all(test, not(loom)))]
mod tests;
