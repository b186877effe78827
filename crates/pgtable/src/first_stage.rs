//! First-stage tables: those of x86-64 with 4 or 5 levels, as VT-d's scalable mode walks them.
//!
//! Accessed and dirty flags are always maintained. The extended-accessed flag (EAFE of a
//! PASID-table entry) is not: a unit over this format keeps ECAP.EAFS clear.

use bitfield_struct::bitfield;

use crate::format::{
    Access, Denied, Entry, Format, InvalidAddress, LeafEntry, Request, ReservedBits, Rights,
    TableEntry,
};

/// A first-stage entry (VT-d specification, "First-Stage Paging Entries"). Bits without an
/// accessor are ignored by the hardware.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FirstStageEntry {
    /// The entry maps something.
    pub present: bool,
    /// Writes are let through.
    pub writable: bool,
    /// Requests without privilege are let through.
    pub user: bool,
    #[bits(2)]
    memory_type: u8,
    /// The entry was used.
    pub accessed: bool,
    /// The page was written; leaf entries only.
    pub dirty: bool,
    /// At levels 2 and 3: the entry maps a page. At level 1 a memory-type bit, above reserved.
    pub page_size: bool,
    /// The page is the same in every address space; leaf entries only.
    pub global: bool,
    #[bits(3)]
    software: u8,
    /// Address bits 51 to 12 of the page or table. In large pages bit 0 is a memory-type bit.
    #[bits(40)]
    pub frame: u64,
    #[bits(11)]
    ignored: u16,
    /// No instruction fetches; reserved while no-execute is off.
    pub execute_disable: bool,
}

/// The first-stage format. All of it is visible to the guest: through CAP, and through its own
/// PASID-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstStage {
    /// Five levels and 57 address bits instead of four and 48 (FSPM).
    pub five_level: bool,
    /// Address bits of what the tables map; those above are reserved in entries.
    pub output_bits: u8,
    /// Whether pages of 1 GiB are allowed (CAP.FL1GP).
    pub one_gib_pages: bool,
    /// Whether the execute-disable bit has its meaning (NXE); else it is reserved.
    pub no_execute: bool,
}

impl FirstStage {
    /// Four levels, everything allowed that the format knows.
    pub const FOUR_LEVEL: Self =
        Self { five_level: false, output_bits: 52, one_gib_pages: true, no_execute: true };
    /// Five levels, everything allowed that the format knows.
    pub const FIVE_LEVEL: Self = Self { five_level: true, ..Self::FOUR_LEVEL };

    fn reserved(&self, level: u8, entry: FirstStageEntry, leaf: bool) -> Option<ReservedBits> {
        let address = entry.frame() << PAGE_BITS;
        let allowed_leaf = level <= 2 || (level == 3 && self.one_gib_pages);
        // Bit 12 of a large page is its memory type, the rest below its size must be zero.
        let below_size = ((1 << self.size_bits(level)) - 1) & !(1 << PAGE_BITS);
        if above(address, self.output_bits) {
            Some(ReservedBits::Address)
        } else if entry.execute_disable() && !self.no_execute {
            Some(ReservedBits::ExecuteDisable)
        } else if leaf && !allowed_leaf {
            Some(ReservedBits::PageSize)
        } else if leaf && address & below_size != 0 {
            Some(ReservedBits::Alignment)
        } else {
            None
        }
    }
}

impl Format for FirstStage {
    fn levels(&self) -> u8 {
        if self.five_level {
            5
        } else {
            4
        }
    }

    fn check_address(&self, address: u64) -> Result<(), InvalidAddress> {
        // All bits from the topmost translated one on are equal.
        let unused = 64 - self.input_bits();
        let extended = ((address << unused) as i64 >> unused) as u64;
        if extended == address {
            Ok(())
        } else {
            Err(InvalidAddress::NonCanonical)
        }
    }

    fn decode(&self, level: u8, entry: u64) -> Entry {
        let entry = FirstStageEntry::from_bits(entry);
        if !entry.present() {
            return Entry::NotPresent;
        }
        let leaf = level == 1 || entry.page_size();
        if let Some(which) = self.reserved(level, entry, leaf) {
            return Entry::Reserved(which);
        }
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, entry.writable());
        rights.set(Rights::USER, entry.user());
        rights.set(Rights::EXECUTE, !entry.execute_disable());
        let (frame, accessed) = (entry.frame() << PAGE_BITS, entry.accessed());
        if !leaf {
            return Entry::Table(TableEntry { address: frame, rights, accessed });
        }
        Entry::Leaf(LeafEntry {
            address: frame & !((1 << self.size_bits(level)) - 1),
            rights,
            accessed,
            dirty: entry.dirty(),
            global: entry.global(),
        })
    }

    fn mark(&self, entry: u64, dirty: bool) -> u64 {
        let entry = FirstStageEntry::from_bits(entry);
        entry.with_accessed(true).with_dirty(dirty || entry.dirty()).into_bits()
    }

    fn denied(&self, request: &Request, rights: Rights) -> Option<Denied> {
        if !request.privileged && !rights.contains(Rights::USER) {
            return Some(Denied::User);
        }
        let ignores_read_only = request.privileged && !request.write_protect;
        let kept_from_user_code =
            request.privileged && request.smep && rights.contains(Rights::USER);
        let denied = match request.access {
            Access::Read => return None,
            Access::Write if rights.contains(Rights::WRITE) || ignores_read_only => return None,
            Access::Write => Denied::Write,
            Access::Execute if rights.contains(Rights::EXECUTE) && !kept_from_user_code => {
                return None
            }
            Access::Execute => Denied::Execute,
        };
        Some(denied)
    }

    fn table_entry(&self, address: u64) -> u64 {
        FirstStageEntry::new()
            .with_present(true)
            .with_writable(true)
            .with_user(true)
            .with_frame(address >> PAGE_BITS & FRAME_MASK)
            .into_bits()
    }

    fn leaf_entry(&self, level: u8, address: u64, rights: Rights) -> u64 {
        FirstStageEntry::new()
            .with_present(rights.contains(Rights::READ))
            .with_writable(rights.contains(Rights::WRITE))
            .with_user(rights.contains(Rights::USER))
            .with_page_size(level > 1)
            .with_frame(address >> PAGE_BITS & FRAME_MASK)
            .with_execute_disable(self.no_execute && !rights.contains(Rights::EXECUTE))
            .into_bits()
    }
}

/// log2 of the size of the smallest page.
pub(crate) const PAGE_BITS: u32 = 12;

/// The bits that a frame number of an entry has.
pub(crate) const FRAME_MASK: u64 = (1 << 40) - 1;

/// Whether `address` has a bit set from bit `bits` on.
pub(crate) fn above(address: u64, bits: u8) -> bool {
    address.checked_shr(u32::from(bits)).unwrap_or(0) != 0
}
