//! VT-d scalable mode: the PASID directory, the PASID table and what its entries ask for
//! (specification sections 3.4.3, 9.5 and 9.6).
//!
//! ```text
//!  directory (from the context entry)     PASID table, one page
//!  ┌────────────────┐                     ┌────────────────────┐
//!  │ PASID[19:6] ───┼────────────────────►│ PASID[5:0], 64 B ──┼──► Translation
//!  └────────────────┘ 8 B each            └────────────────────┘
//! ```

use bitfield_struct::bitfield;
use mem::Gpa;
use pgtable::{FirstStage, SecondStage, SecondStageLevels};

use crate::{DomainId, Pasid, StageTwo, TableCaps};

/// Low bits of a PASID that index a PASID table; the others index the directory.
pub const TABLE_INDEX_BITS: u32 = 6;
/// Bytes of a directory entry.
pub const DIRECTORY_ENTRY_SIZE: u64 = 8;
/// Bytes of a PASID-table entry.
pub const PASID_ENTRY_SIZE: u64 = 64;

const PAGE_BITS: u32 = 12;

/// A scalable-mode PASID directory entry (9.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DirectoryEntry {
    /// P: the entry points at a table.
    pub present: bool,
    /// FPD: faults of the PASIDs below are not recorded.
    pub fault_disable: bool,
    /// Reserved, zero.
    #[bits(10)]
    pub reserved: u16,
    /// SMPTBLPTR: page number of the PASID table.
    #[bits(52)]
    pub table_page: u64,
}

impl DirectoryEntry {
    /// A present entry for the table at `table`, a page address.
    pub const fn to_table(table: Gpa) -> Self {
        Self::new().with_present(true).with_table_page(table.0 >> PAGE_BITS)
    }

    /// The table's address.
    pub const fn table(&self) -> Gpa {
        Gpa(self.table_page() << PAGE_BITS)
    }

    /// Where the entry for `pasid` lies in the directory at `directory`; `None` if that is past
    /// the address space.
    pub const fn address(directory: Gpa, pasid: Pasid) -> Option<Gpa> {
        directory.checked_add((pasid.get() >> TABLE_INDEX_BITS) as u64 * DIRECTORY_ENTRY_SIZE)
    }
}

/// Bits 63:0 of a scalable-mode PASID-table entry (9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidWord0 {
    /// P.
    pub present: bool,
    /// FPD: faults are not recorded.
    pub fault_disable: bool,
    /// AW: depth of the second-stage table; 1, 2, 3 for 3, 4, 5 levels.
    #[bits(3)]
    pub address_width: u8,
    /// Reserved, zero.
    #[bits(1)]
    pub reserved_5: u8,
    /// PGTT: the kind of translation; 1 first stage, 2 second stage, 3 nested, 4 pass-through.
    #[bits(3)]
    pub translation_type: u8,
    /// SSADE: accessed and dirty bits in the second stage.
    pub second_stage_accessed_dirty: bool,
    /// Reserved, zero.
    #[bits(2)]
    pub reserved_10: u8,
    /// SSPTPTR: page number of the second-stage root.
    #[bits(52)]
    pub second_stage_page: u64,
}

/// Bits 127:64 of a scalable-mode PASID-table entry (9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidWord1 {
    /// DID: tags what is cached.
    #[bits(16)]
    pub domain: u16,
    /// Reserved, zero.
    #[bits(7)]
    pub reserved_80: u8,
    /// PWSNP: page walks snoop; reserved without ECAP.SMPWC.
    pub page_walk_snoop: bool,
    /// PGSNP: accesses snoop. Everything snoops here.
    pub page_snoop: bool,
    /// CD, EMTE, EMT, PWT, PCD and PAT: memory types; reserved without ECAP.MTS.
    #[bits(39)]
    pub memory_type: u64,
}

/// Bits 191:128 of a scalable-mode PASID-table entry (9.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidWord2 {
    /// SRE: supervisor requests are allowed; reserved without ECAP.SRS.
    pub supervisor: bool,
    /// ERE: execute requests are allowed; reserved without ECAP.ERS.
    pub execute: bool,
    /// FSPM: 0 for 4 first-stage levels, 1 for 5.
    #[bits(2)]
    pub first_stage_mode: u8,
    /// WPE: read-only pages stop supervisor writes too.
    pub write_protect: bool,
    /// NXE: execute-disable bits in first-stage tables have their meaning; else they are ignored.
    pub no_execute: bool,
    /// SMEP.
    pub supervisor_no_execute: bool,
    /// EAFE: extended accessed flag; reserved without ECAP.EAFS.
    pub extended_accessed: bool,
    /// Reserved, zero.
    #[bits(4)]
    pub reserved_136: u8,
    /// FSPTPTR: page number of the first-stage root.
    #[bits(52)]
    pub first_stage_page: u64,
}

/// A scalable-mode PASID-table entry as it lies in memory (9.6); the rest of its 64 bytes is
/// reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PasidEntry {
    /// Bits 63:0.
    pub word0: PasidWord0,
    /// Bits 127:64.
    pub word1: PasidWord1,
    /// Bits 191:128.
    pub word2: PasidWord2,
    /// Bits 511:192, reserved, zero.
    pub reserved: [u64; 5],
}

/// How requests of one PASID are translated: a PASID-table entry once it is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// By a first-stage table.
    FirstStage(StageOne),
    /// By a second-stage table.
    SecondStage(Gpa, SecondStage),
    /// By a first-stage table whose every address goes through a second-stage table.
    Nested(StageOne, Gpa, SecondStage),
    /// Not at all: addresses are guest physical.
    PassThrough,
}

/// A first-stage table and how it is walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StageOne {
    /// Address of its root; in a nested translation it goes through the second stage, too.
    pub root: Gpa,
    /// Its format.
    pub format: FirstStage,
    /// SRE: whether supervisor requests are allowed.
    pub supervisor: bool,
    /// WPE: whether read-only pages stop supervisor writes too.
    pub write_protect: bool,
}

/// Why a present PASID-table entry cannot be used. The guest's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryError {
    /// A reserved bit is set, or one that is reserved without a capability that is not there.
    #[error("reserved bits in word {word} of the PASID-table entry")]
    Reserved {
        /// Which of its 64-bit words.
        word: u8,
    },
    /// PGTT names no translation type, or one that is not supported.
    #[error("translation type {got} is not supported")]
    TranslationType {
        /// The field.
        got: u8,
    },
    /// AW names no depth, or one that is not supported.
    #[error("second-stage address width {got} is not supported")]
    AddressWidth {
        /// The field.
        got: u8,
    },
    /// FSPM names no mode, or one that is not supported.
    #[error("first-stage paging mode {got} is not supported")]
    PagingMode {
        /// The field.
        got: u8,
    },
}

impl PasidEntry {
    /// Where the entry for `pasid` lies in the PASID table at `table`; `None` if that is past
    /// the address space.
    pub const fn address(table: Gpa, pasid: Pasid) -> Option<Gpa> {
        let index = pasid.get() & ((1 << TABLE_INDEX_BITS) - 1);
        table.checked_add(index as u64 * PASID_ENTRY_SIZE)
    }

    /// The entry of these 64-bit words, in the order of their addresses.
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [word0, word1, word2, reserved @ ..] = words;
        Self {
            word0: PasidWord0::from_bits(word0),
            word1: PasidWord1::from_bits(word1),
            word2: PasidWord2::from_bits(word2),
            reserved,
        }
    }

    /// Its 64-bit words, in the order of their addresses.
    pub const fn words(&self) -> [u64; 8] {
        let [r3, r4, r5, r6, r7] = self.reserved;
        let words = (self.word0.into_bits(), self.word1.into_bits(), self.word2.into_bits());
        [words.0, words.1, words.2, r3, r4, r5, r6, r7]
    }

    /// The domain that tags what is cached under this entry.
    pub const fn domain(&self) -> DomainId {
        DomainId(self.word1.domain())
    }

    /// What a present entry asks for, given what is supported.
    ///
    /// Fields that the translation type does not use are ignored, as the hardware does: Linux
    /// leaves an address width in first-stage entries.
    ///
    /// # Errors
    ///
    /// See [`EntryError`].
    pub fn decode(&self, caps: &TableCaps) -> Result<Translation, EntryError> {
        self.check_reserved(caps)?;
        let got = self.word0.translation_type();
        match got {
            1 if caps.first_stage => Ok(Translation::FirstStage(self.stage_one(caps, true)?)),
            2 if caps.second_stage => {
                let (root, format) = self.stage_two(caps)?;
                Ok(Translation::SecondStage(root, format))
            }
            3 if caps.nested && caps.first_stage && caps.second_stage => {
                let (root, format) = self.stage_two(caps)?;
                Ok(Translation::Nested(self.stage_one(caps, false)?, root, format))
            }
            4 if caps.pass_through => Ok(Translation::PassThrough),
            _ => Err(EntryError::TranslationType { got }),
        }
    }

    fn check_reserved(&self, caps: &TableCaps) -> Result<(), EntryError> {
        let (word0, word1, word2) = (self.word0, self.word1, self.word2);
        let bad = [
            word0.reserved_5() != 0
                || word0.reserved_10() != 0
                || (word0.second_stage_accessed_dirty() && !caps.second_stage_accessed_dirty),
            word1.reserved_80() != 0
                || word1.memory_type() != 0
                || (word1.page_walk_snoop() && !caps.page_walk_snoop),
            word2.reserved_136() != 0
                || word2.extended_accessed()
                || word2.execute()
                || (word2.supervisor() && !caps.supervisor),
            self.reserved != [0; 5],
        ];
        match bad.iter().position(|&bad| bad) {
            Some(word) => Err(EntryError::Reserved { word: word as u8 }),
            None => Ok(()),
        }
    }

    /// `physical`: whether the root is a physical address and not one for the second stage.
    fn stage_one(&self, caps: &TableCaps, physical: bool) -> Result<StageOne, EntryError> {
        let word = self.word2;
        let five_level = match word.first_stage_mode() {
            0 => false,
            1 if caps.first_stage_5_level => true,
            got => return Err(EntryError::PagingMode { got }),
        };
        let root = Gpa(word.first_stage_page() << PAGE_BITS);
        if physical && exceeds(root, caps.address_bits) {
            return Err(EntryError::Reserved { word: 2 });
        }
        // What a nested first stage maps is an input of the second stage, which checks its width.
        let output_bits = if physical { caps.address_bits } else { NESTED_OUTPUT_BITS };
        let format = FirstStage {
            five_level,
            output_bits,
            one_gib_pages: caps.first_stage_1g,
            // Execute requests are refused, so NXE decides nothing; and bit 63 of a table entry is
            // not reserved without it: Linux binds processes, whose tables are full of it, with
            // NXE clear.
            no_execute: true,
        };
        let (supervisor, write_protect) = (word.supervisor(), word.write_protect());
        Ok(StageOne { root, format, supervisor, write_protect })
    }

    fn stage_two(&self, caps: &TableCaps) -> Result<(Gpa, SecondStage), EntryError> {
        let got = self.word0.address_width();
        let levels = match got {
            1 => SecondStageLevels::Three,
            2 => SecondStageLevels::Four,
            3 => SecondStageLevels::Five,
            _ => return Err(EntryError::AddressWidth { got }),
        };
        if caps.second_stage_levels & (1 << got) == 0 {
            return Err(EntryError::AddressWidth { got });
        }
        let root = Gpa(self.word0.second_stage_page() << PAGE_BITS);
        if exceeds(root, caps.address_bits) {
            return Err(EntryError::Reserved { word: 0 });
        }
        let format = SecondStage {
            output_bits: caps.address_bits,
            two_mib_pages: caps.second_stage_large & 1 != 0,
            one_gib_pages: caps.second_stage_large & 2 != 0,
            accessed_dirty: self.word0.second_stage_accessed_dirty(),
            ..SecondStage::new(levels)
        };
        Ok((root, format))
    }
}

/// Address bits of a page-table entry, all of which a nested first stage may use.
const NESTED_OUTPUT_BITS: u8 = 52;

/// Whether `address` has a bit from `bits` on.
pub(crate) const fn exceeds(address: Gpa, bits: u8) -> bool {
    bits < 64 && address.0 >> bits != 0
}

impl StageTwo {
    /// The format of the table, for a model whose context entries name it directly; `None` if the
    /// number of levels is not 3 to 5.
    ///
    /// Such a context does not say what the hardware supports, so all page sizes and 52 address
    /// bits are allowed: an address beyond the guest's memory is refused as no memory.
    pub(crate) fn format(&self) -> Option<SecondStage> {
        let levels = match self.levels {
            3 => SecondStageLevels::Three,
            4 => SecondStageLevels::Four,
            5 => SecondStageLevels::Five,
            _ => return None,
        };
        Some(SecondStage { accessed_dirty: self.accessed_dirty, ..SecondStage::new(levels) })
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
