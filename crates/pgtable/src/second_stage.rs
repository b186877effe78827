//! Second-stage tables of VT-d, with 3, 4 or 5 levels.

use bitfield_struct::bitfield;

use crate::first_stage::{above, FRAME_MASK, PAGE_BITS};
use crate::format::{
    Access, Denied, Entry, Format, InvalidAddress, LeafEntry, Request, ReservedBits, Rights,
    TableEntry,
};

/// A second-stage entry (VT-d specification, "Second-Stage Paging Entries"). Bits without an
/// accessor are ignored by the hardware.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SecondStageEntry {
    /// Reads are let through.
    pub readable: bool,
    /// Writes are let through.
    pub writable: bool,
    /// Instruction fetches are let through.
    pub executable: bool,
    #[bits(4)]
    memory_type: u8,
    /// At levels 2 and 3: the entry maps a page. At level 1 ignored, above reserved.
    pub page_size: bool,
    /// The entry was used; ignored unless the flags are enabled (SSADE).
    pub accessed: bool,
    /// The page was written; leaf entries only, ignored unless the flags are enabled (SSADE).
    pub dirty: bool,
    #[bits(1)]
    software: u8,
    /// Accesses snoop the processors' caches; leaf entries only.
    pub snoop: bool,
    /// Address bits 51 to 12 of the page or table.
    #[bits(40)]
    pub frame: u64,
    #[bits(10)]
    ignored: u16,
    /// The mapping is short-lived, a hint to device TLBs; leaf entries only.
    pub transient: bool,
    #[bits(1)]
    ignored_too: u8,
}

/// Depth of a second-stage table: the AW field of a VT-d PASID-table or context entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SecondStageLevels {
    /// 39 address bits.
    Three = 3,
    /// 48 address bits.
    Four = 4,
    /// 57 address bits.
    Five = 5,
}

/// The second-stage format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStage {
    /// Depth (AW).
    pub levels: SecondStageLevels,
    /// Address bits of what the tables map; those above are reserved in entries.
    pub output_bits: u8,
    /// Whether pages of 2 MiB are allowed (CAP.SSLPS bit 0).
    pub two_mib_pages: bool,
    /// Whether pages of 1 GiB are allowed (CAP.SSLPS bit 1).
    pub one_gib_pages: bool,
    /// Whether accessed and dirty flags are maintained (SSADE).
    pub accessed_dirty: bool,
    /// Whether the snoop bit has its meaning (ECAP.SC); else it is reserved.
    pub snoop_control: bool,
    /// Whether the transient-mapping bit has its meaning (ECAP.DT); else it is reserved.
    pub device_tlb: bool,
}

impl SecondStage {
    /// `levels` levels, everything allowed that the format knows.
    pub const fn new(levels: SecondStageLevels) -> Self {
        Self {
            levels,
            output_bits: 52,
            two_mib_pages: true,
            one_gib_pages: true,
            accessed_dirty: true,
            snoop_control: true,
            device_tlb: true,
        }
    }

    fn reserved(&self, level: u8, entry: SecondStageEntry, leaf: bool) -> Option<ReservedBits> {
        let address = entry.frame() << PAGE_BITS;
        let allowed_leaf = match level {
            1 => true,
            2 => self.two_mib_pages,
            3 => self.one_gib_pages,
            _ => false,
        };
        if above(address, self.output_bits) {
            Some(ReservedBits::Address)
        } else if leaf && !allowed_leaf {
            Some(ReservedBits::PageSize)
        } else if leaf && address & ((1 << self.size_bits(level)) - 1) != 0 {
            Some(ReservedBits::Alignment)
        } else if entry.snoop() && !(leaf && self.snoop_control) {
            Some(ReservedBits::Snoop)
        } else if entry.transient() && !(leaf && self.device_tlb) {
            Some(ReservedBits::Transient)
        } else {
            None
        }
    }
}

impl Format for SecondStage {
    fn levels(&self) -> u8 {
        self.levels as u8
    }

    fn check_address(&self, address: u64) -> Result<(), InvalidAddress> {
        if address >> self.input_bits() == 0 {
            Ok(())
        } else {
            Err(InvalidAddress::BeyondWidth)
        }
    }

    fn decode(&self, level: u8, entry: u64) -> Entry {
        let entry = SecondStageEntry::from_bits(entry);
        if !entry.readable() && !entry.writable() {
            return Entry::NotPresent;
        }
        let leaf = level == 1 || entry.page_size();
        if let Some(which) = self.reserved(level, entry, leaf) {
            return Entry::Reserved(which);
        }
        let mut rights = Rights::USER;
        rights.set(Rights::READ, entry.readable());
        rights.set(Rights::WRITE, entry.writable());
        rights.set(Rights::EXECUTE, entry.executable());
        let address = entry.frame() << PAGE_BITS;
        let accessed = entry.accessed() || !self.accessed_dirty;
        if !leaf {
            return Entry::Table(TableEntry { address, rights, accessed });
        }
        let dirty = entry.dirty() || !self.accessed_dirty;
        Entry::Leaf(LeafEntry { address, rights, accessed, dirty, global: false })
    }

    fn mark(&self, entry: u64, dirty: bool) -> u64 {
        let entry = SecondStageEntry::from_bits(entry);
        entry.with_accessed(true).with_dirty(dirty || entry.dirty()).into_bits()
    }

    /// Privilege plays no part in the second stage.
    fn denied(&self, request: &Request, rights: Rights) -> Option<Denied> {
        let denied = match request.access {
            Access::Read => Denied::Read,
            Access::Write => Denied::Write,
            Access::Execute => Denied::Execute,
        };
        (!rights.contains(denied.right())).then_some(denied)
    }

    fn table_entry(&self, address: u64) -> u64 {
        SecondStageEntry::new()
            .with_readable(true)
            .with_writable(true)
            .with_executable(true)
            .with_frame(address >> PAGE_BITS & FRAME_MASK)
            .into_bits()
    }

    fn leaf_entry(&self, level: u8, address: u64, rights: Rights) -> u64 {
        SecondStageEntry::new()
            .with_readable(rights.contains(Rights::READ))
            .with_writable(rights.contains(Rights::WRITE))
            .with_executable(rights.contains(Rights::EXECUTE))
            .with_page_size(level > 1)
            .with_frame(address >> PAGE_BITS & FRAME_MASK)
            .into_bits()
    }
}
