//! Reading the guest's PASID directories and tables: any of it may be anything.

use iommu::format::vtd::{DirectoryEntry, EntryError, PasidEntry, StageOne, Translation};
use iommu::nesting::Entry;
use iommu::{
    ContextFault, DomainId, FaultReason, Pasid, PasidTable, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory};

use super::device::Tag;

/// A valid PASID-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GuestEntry {
    pub(super) tag: Tag,
    pub(super) translation: Entry,
}

impl GuestEntry {
    /// What stands for the guest's tables while translation is off.
    pub(super) const PASS_THROUGH: Self = Self {
        tag: Tag { domain: DomainId(0), fault_disable: false },
        translation: Entry::PassThrough,
    };
}

/// A PASID table, as a present directory entry names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Leaf {
    table: Gpa,
    fault_disable: bool,
}

/// The PASID table that `pasid` is in.
///
/// # Errors
///
/// Why a request with the PASID faults.
pub(super) fn leaf(
    memory: &dyn GuestMemory,
    table: &PasidTable,
    pasid: Pasid,
) -> Result<Leaf, ContextFault> {
    let at = DirectoryEntry::address(table.directory, pasid);
    let Some(word) = at.and_then(|at| memory.load_u64(at).ok()) else {
        let reason = FaultReason::PasidDirectoryAccess;
        return Err(ContextFault { reason, fault_disable: table.fault_disable });
    };
    let entry = DirectoryEntry::from_bits(word);
    let fault_disable = table.fault_disable | entry.fault_disable();
    let reason = if !entry.present() {
        FaultReason::PasidDirectoryNotPresent
    } else if entry.reserved() != 0 || exceeds(entry.table(), table.caps.address_bits) {
        FaultReason::PasidDirectoryReserved
    } else {
        return Ok(Leaf { table: entry.table(), fault_disable });
    };
    Err(ContextFault { reason, fault_disable })
}

/// The entry of `pasid`, which is in `leaf`.
///
/// # Errors
///
/// Why a request with the PASID faults.
pub(super) fn entry(
    memory: &dyn GuestMemory,
    table: &PasidTable,
    leaf: &Leaf,
    pasid: Pasid,
) -> Result<GuestEntry, ContextFault> {
    let refuse = |reason, fault_disable| Err(ContextFault { reason, fault_disable });
    let Some(entry) = load(memory, leaf.table, pasid) else {
        return refuse(FaultReason::PasidEntryAccess, leaf.fault_disable);
    };
    let fault_disable = leaf.fault_disable | entry.word0.fault_disable();
    if !entry.word0.present() {
        return refuse(FaultReason::PasidEntryNotPresent, fault_disable);
    }
    let translation = match entry.decode(&table.caps) {
        Ok(Translation::FirstStage(stage)) => Entry::StageOne(stage_one(&stage)),
        Ok(Translation::PassThrough) => Entry::PassThrough,
        Err(EntryError::Reserved { .. }) => {
            return refuse(FaultReason::PasidEntryReserved, fault_disable);
        }
        // A second stage of the guest's is not offered.
        Ok(Translation::SecondStage(..) | Translation::Nested(..)) | Err(_) => {
            return refuse(FaultReason::PasidEntryInvalid, fault_disable);
        }
    };
    Ok(GuestEntry { tag: Tag { domain: entry.domain(), fault_disable }, translation })
}

/// Loads an entry; only its first word if that says that it is not present. That word comes
/// first: a guest that sets P last is never seen half way, and one that rewrites a present entry
/// has to say so afterwards.
fn load(memory: &dyn GuestMemory, table: Gpa, pasid: Pasid) -> Option<PasidEntry> {
    let at = PasidEntry::address(table, pasid)?;
    let mut words = [memory.load_u64(at).ok()?, 0, 0, 0, 0, 0, 0, 0];
    if words[0] & 1 != 0 {
        for (index, word) in (0..).zip(&mut words).skip(1) {
            *word = memory.load_u64(at.checked_add(8 * index)?).ok()?;
        }
    }
    Some(PasidEntry::from_words(words))
}

fn stage_one(stage: &StageOne) -> VtdStageOne {
    let mut flags = VtdStageOneFlags::empty();
    if stage.supervisor {
        flags |= VtdStageOneFlags::SRE;
        // Without supervisor requests there are no writes that it stops.
        flags.set(VtdStageOneFlags::WPE, stage.write_protect);
    }
    let address_width = if stage.format.five_level { 57 } else { 48 };
    VtdStageOne { flags, root: stage.root, address_width }
}

/// Whether `address` has a bit from `bits` on.
fn exceeds(address: Gpa, bits: u8) -> bool {
    address.0.checked_shr(bits.into()).is_some_and(|high| high != 0)
}
