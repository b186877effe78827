//! A guest's SMMUv3 commands, with its identifiers rewritten to the host's (IHI 0070, chapter 4).
//!
//! Only those that can do no harm to others are taken: they name the guest's own devices, by the
//! numbers that it has for them, and its own translations, under the VM's tag.

use bitfield_struct::bitfield;
use mem::{Iova, Range};
use pci::RequesterId;

use super::Objects;
use crate::software::vm::VmShared;
use crate::{
    Asid, InvalidField, Invalidation, ObjectError, PageRange, Pasid, SmmuInvalidation, Ticket,
    ViommuId, ViommuKind, Vmid,
};

const PAGE_BITS: u32 = 12;
/// Size of an ATC_INV from which on it covers all addresses.
const ATC_ALL: u8 = 52;

/// Word 0 of a command.
#[bitfield(u64)]
struct Word0 {
    /// What to do.
    opcode: u8,
    #[bits(1)]
    unused: u8,
    /// G of ATC_INV: for all substreams.
    global: bool,
    #[bits(1)]
    unused_10: u8,
    /// SSV: there is a substream.
    has_substream: bool,
    /// SSID; with TLBI, NUM is in the lower bits of it and SCALE further up.
    #[bits(20)]
    substream: u32,
    /// SID; with TLBI, VMID is in the lower half of it and ASID in the upper.
    stream: u32,
}

impl Word0 {
    /// NUM: how many times the range is as long, less one.
    fn number(self) -> u64 {
        u64::from(self.substream() & 0x1f)
    }

    /// SCALE: log2 of the granules in a range.
    fn scale(self) -> u32 {
        self.substream() >> 8 & 0x1f
    }

    fn asid(self) -> Asid {
        Asid((self.stream() >> 16) as u16)
    }
}

/// Word 1 of a command.
#[bitfield(u64)]
struct Word1 {
    /// Leaf: only last-level entries changed.
    leaf: bool,
    #[bits(9)]
    unused: u16,
    /// TG: the granule of a range; zero if the command is about one page.
    #[bits(2)]
    granule: u8,
    /// The address's page.
    #[bits(52)]
    page: u64,
}

impl Word1 {
    /// Size of ATC_INV: log2 of the pages, in the lowest bits.
    fn size(self) -> u8 {
        (self.into_bits() & 0x3f) as u8
    }

    fn address(self) -> u64 {
        self.page() << PAGE_BITS
    }
}

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

/// Commands that a guest may have carried out.
mod opcode {
    pub(super) const CFGI_CD: u8 = 0x05;
    pub(super) const CFGI_CD_ALL: u8 = 0x06;
    pub(super) const TLBI_NH_ALL: u8 = 0x10;
    pub(super) const TLBI_NH_ASID: u8 = 0x11;
    pub(super) const TLBI_NH_VA: u8 = 0x12;
    pub(super) const TLBI_NH_VAA: u8 = 0x13;
    pub(super) const TLBI_NSNH_ALL: u8 = 0x30;
    pub(super) const ATC_INV: u8 = 0x40;
}

#[cfg(all(test, not(loom)))]
mod tests;
