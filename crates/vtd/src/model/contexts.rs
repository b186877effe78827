//! From a requester to its device context: the walk of root and context tables (3.4).

use iommu::{
    ContextFault, ContextSource, DeviceContext, DomainId, FaultReason, Pasid, PasidTable, StageTwo,
};
use mem::{Gpa, GuestMemory};
use pci::RequesterId;

use super::Caps;
use crate::spec::{
    ContextEntry, RootEntry, RootTableAddress, ScalableContextEntry, ScalableRootHalf, TableMode,
    TranslationType,
};

/// The root table that is in force: an immutable value, so that a lookup takes no lock of the
/// model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootTable {
    address: RootTableAddress,
    caps: Caps,
}

/// Bytes of a root entry, legacy and scalable.
const ROOT_ENTRY: u64 = 16;
/// Bytes of a legacy context entry.
const CONTEXT_ENTRY: u64 = 16;
/// Bytes of a scalable-mode context entry.
const SCALABLE_CONTEXT_ENTRY: u64 = 32;
/// A PASID directory has at least 2 to the power of this entries.
const MIN_DIRECTORY_BITS: u8 = 7;
/// A PASID directory entry covers 2 to the power of this PASIDs.
const PASIDS_PER_ENTRY_BITS: u8 = 6;

impl RootTable {
    pub(super) fn new(address: RootTableAddress, caps: Caps) -> Self {
        Self { address, caps }
    }

    /// The mode of its tables.
    pub fn mode(&self) -> TableMode {
        TableMode::from_field(self.address.mode())
    }

    /// Whether a page number has bits beyond the address width, which are reserved.
    fn is_too_wide(&self, page: u64) -> bool {
        page >> (self.caps.options().address_bits - 12) != 0
    }

    fn legacy(
        &self,
        memory: &dyn GuestMemory,
        requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        let at = entry_at(self.address.page(), requester.bus(), ROOT_ENTRY);
        let words = load(memory, at).map_err(|()| fault(FaultReason::RootAccess))?;
        let root = RootEntry::from_bits(words as u64);
        if !root.present() {
            return Err(fault(FaultReason::RootNotPresent));
        }
        if root.reserved() != 0 || self.is_too_wide(root.table()) || words >> 64 != 0 {
            return Err(fault(FaultReason::RootReserved));
        }
        let at = entry_at(root.table(), requester.devfn(), CONTEXT_ENTRY);
        let words = load(memory, at).map_err(|()| fault(FaultReason::ContextAccess))?;
        let entry = ContextEntry::from_bits(words);
        self.legacy_context(entry)
            .map_err(|reason| ContextFault { reason, fault_disable: entry.fault_disable() })
    }

    fn legacy_context(&self, entry: ContextEntry) -> Result<DeviceContext, FaultReason> {
        if !entry.present() {
            return Err(FaultReason::ContextNotPresent);
        }
        let pass_through = entry.translation() == TranslationType::PassThrough;
        if entry.reserved_low() != 0
            || entry.reserved_middle() != 0
            || entry.reserved_high() != 0
            || (!pass_through && self.is_too_wide(entry.table()))
        {
            return Err(FaultReason::ContextReserved);
        }
        let (domain, fault_disable) = (DomainId(entry.domain()), entry.fault_disable());
        let options = self.caps.options();
        let ats = match entry.translation() {
            TranslationType::Untranslated => false,
            TranslationType::All if options.device_tlb => true,
            TranslationType::PassThrough if options.pass_through => {
                if entry.width() != self.caps.widest_encoding() {
                    return Err(FaultReason::ContextInvalid);
                }
                return Ok(DeviceContext::PassThrough { domain, ats: false, fault_disable });
            }
            _ => return Err(FaultReason::ContextInvalid),
        };
        if options.second_stage_widths >> entry.width() & 1 == 0 {
            return Err(FaultReason::ContextInvalid);
        }
        let table = StageTwo {
            root: Gpa(entry.table() << 12),
            levels: entry.width() + 2,
            accessed_dirty: false,
        };
        Ok(DeviceContext::StageTwo { domain, table, ats, fault_disable })
    }

    fn scalable(
        &self,
        memory: &dyn GuestMemory,
        requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        let root = entry_at(self.address.page(), requester.bus(), ROOT_ENTRY);
        let at = if requester.devfn() & 0x80 == 0 { root } else { Gpa(root.0 | 8) };
        let word = memory.load_u64(at).map_err(|_| fault(FaultReason::RootAccess))?;
        let root = ScalableRootHalf::from_bits(word);
        if !root.present() {
            return Err(fault(FaultReason::RootNotPresent));
        }
        if root.reserved() != 0 || self.is_too_wide(root.table()) {
            return Err(fault(FaultReason::RootReserved));
        }
        let index = requester.devfn() & 0x7f;
        let at = entry_at(root.table(), index, SCALABLE_CONTEXT_ENTRY);
        let access = |()| fault(FaultReason::ContextAccess);
        let words = load(memory, at).map_err(access)?;
        let rest = load(memory, Gpa(at.0 | 16)).map_err(access)?;
        let entry = ScalableContextEntry::from_bits(words);
        self.scalable_context(entry, rest)
            .map_err(|reason| ContextFault { reason, fault_disable: entry.fault_disable() })
    }

    fn scalable_context(
        &self,
        entry: ScalableContextEntry,
        rest: u128,
    ) -> Result<DeviceContext, FaultReason> {
        if !entry.present() {
            return Err(FaultReason::ContextNotPresent);
        }
        let options = self.caps.options();
        // Privileged requests without PASID are not offered: their bit is reserved, as are those
        // of every other feature that is off.
        if entry.reserved_low() != 0
            || entry.reserved_high() != 0
            || rest != 0
            || (entry.page_requests() && !options.page_requests)
            || entry.rid_privileged()
            || (entry.pasid() && options.pasid_bits.is_none())
            || (entry.device_tlb() && !options.device_tlb)
            || (entry.rid_pasid() != 0 && !options.rid_pasid)
            || self.is_too_wide(entry.directory())
        {
            return Err(FaultReason::ContextReserved);
        }
        let directory_bits = entry.directory_size() + MIN_DIRECTORY_BITS + PASIDS_PER_ENTRY_BITS;
        if entry.rid_pasid() >> directory_bits != 0 {
            return Err(FaultReason::ContextInvalid);
        }
        Ok(DeviceContext::PasidTable(PasidTable {
            directory: Gpa(entry.directory() << 12),
            pasid_bits: directory_bits.min(options.pasid_bits.unwrap_or(directory_bits)),
            rid_pasid: Pasid::from_field(entry.rid_pasid()),
            rid_privileged: entry.rid_privileged(),
            pasid_enable: entry.pasid(),
            ats: entry.device_tlb(),
            // A device without a device TLB has nothing to ask for.
            page_requests: entry.page_requests() && entry.device_tlb(),
            fault_disable: entry.fault_disable(),
            caps: self.caps.tables(),
        }))
    }
}

impl ContextSource for RootTable {
    fn lookup(
        &self,
        memory: &dyn GuestMemory,
        requester: RequesterId,
    ) -> Result<DeviceContext, ContextFault> {
        match self.mode() {
            TableMode::Legacy if !self.caps.host_owned() => self.legacy(memory, requester),
            TableMode::Scalable if self.caps.options().scalable_mode => {
                self.scalable(memory, requester)
            }
            _ => Err(fault(FaultReason::RootPointer)),
        }
    }
}

/// Address of an entry in a one-page table; `index` × `size` is less than a page.
fn entry_at(table: u64, index: u8, size: u64) -> Gpa {
    Gpa((table << 12) | (u64::from(index) * size))
}

/// A fault that no entry may keep from being recorded.
fn fault(reason: FaultReason) -> ContextFault {
    ContextFault { reason, fault_disable: false }
}

/// 128 bits at an aligned address. The low word, which has the present bit, is loaded first: an
/// entry that is made present after its other fields is never seen half-made.
fn load(memory: &dyn GuestMemory, at: Gpa) -> Result<u128, ()> {
    let low = memory.load_u64(at).map_err(drop)?;
    let high = memory.load_u64(Gpa(at.0 | 8)).map_err(drop)?;
    Ok(u128::from(low) | u128::from(high) << 64)
}
