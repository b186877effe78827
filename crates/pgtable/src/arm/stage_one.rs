//! Stage 1: the tables of one half of an address space.

use bitfield_struct::bitfield;

use super::geometry::{ArmFormatError, ArmSizes, Geometry, Granule};
use super::ArmFlags;
use crate::format::{
    Access, Denied, Entry, Format, InvalidAddress, LeafEntry, Request, Rights, TableEntry,
};

/// A stage-1 entry (Arm ARM, "VMSAv8-64 translation table format descriptors"), except for its
/// address, which lies differently in each layout. Bits without an accessor are ignored here.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ArmStageOneEntry {
    /// The entry is not invalid.
    pub valid: bool,
    /// Above level 1 a table and not a page; at level 1 set in every page.
    pub table_or_page: bool,
    /// AttrIndx: which of the memory types of MAIR; leaves only.
    #[bits(3)]
    pub memory_type: u8,
    non_secure: bool,
    /// AP\[1\]: data accesses without privilege are let through; leaves only.
    pub user: bool,
    /// AP\[2\]: writes are not let through; leaves only.
    pub read_only: bool,
    /// SH, or address bits 51:50.
    #[bits(2)]
    shareability: u8,
    /// AF: the page was used; leaves only.
    pub accessed: bool,
    /// nG: the page is not the same in every address space; leaves only.
    pub not_global: bool,
    #[bits(38)]
    address: u64,
    guarded: bool,
    /// DBM: the page may be made writable by the first write; leaves only.
    pub dirty_modifier: bool,
    contiguous: bool,
    /// PXN: no instruction fetches with privilege; leaves only.
    pub privileged_execute_never: bool,
    /// UXN: no instruction fetches without privilege; leaves only.
    pub user_execute_never: bool,
    #[bits(4)]
    software: u8,
    /// PXNTable: PXN for everything below; table entries only.
    pub privileged_execute_never_below: bool,
    /// UXNTable: UXN for everything below; table entries only.
    pub user_execute_never_below: bool,
    /// APTable\[0\]: no data accesses without privilege below; table entries only.
    pub no_user_below: bool,
    /// APTable\[1\]: no writes below; table entries only.
    pub read_only_below: bool,
    non_secure_below: bool,
}

/// The stage-1 format of one half of an address space, for a regime with two privilege levels.
///
/// Addresses are offsets in the half: [`ArmRegime`](super::ArmRegime) makes them.
///
/// Pages that may be written without privilege cannot be executed with it, as the architecture
/// has it; WXN and the like are not there. Fetches without privilege need UXN to be clear and
/// nothing else: a page may be for them alone.
///
/// Encodings that are reserved (a page at level 1 with type 0b01, a page at a level that has none)
/// map nothing, as the architecture has it: no [`ReservedBits`](crate::ReservedBits) but those of an address beyond the
/// output size. Address bits 51:48 are ignored in layouts that are not wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArmStageOne {
    geometry: Geometry,
    flags: ArmFlags,
    hierarchical: bool,
}

impl ArmStageOne {
    /// A format for `input_bits` (64 - TxSZ) and `output_bits` (IPS) address bits, wide if it needs
    /// to be, with the default of [`ArmFlags`] and with permissions in table entries.
    ///
    /// # Errors
    ///
    /// See [`ArmFormatError`].
    pub fn new(granule: Granule, input_bits: u8, output_bits: u8) -> Result<Self, ArmFormatError> {
        Self::with_sizes(&ArmSizes::new(granule, input_bits, output_bits))
    }

    /// Like [`new`](Self::new), with all sizes given.
    ///
    /// # Errors
    ///
    /// See [`ArmFormatError`].
    pub fn with_sizes(sizes: &ArmSizes) -> Result<Self, ArmFormatError> {
        let geometry = Geometry::stage_one(sizes)?;
        Ok(Self { geometry, flags: ArmFlags::default(), hierarchical: true })
    }

    /// The same with these flags.
    #[must_use]
    pub const fn with_flags(self, flags: ArmFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same with or without permissions in table entries (HPD of a TCR, HAD of a context
    /// descriptor turn them off).
    #[must_use]
    pub const fn with_hierarchical(self, hierarchical: bool) -> Self {
        Self { hierarchical, ..self }
    }

    /// Its sizes, as they take effect.
    pub fn sizes(&self) -> &ArmSizes {
        self.geometry.sizes()
    }

    /// What becomes of access flags and dirty state.
    pub const fn flags(&self) -> ArmFlags {
        self.flags
    }

    /// Whether permissions in table entries count.
    pub const fn hierarchical(&self) -> bool {
        self.hierarchical
    }

    fn table(&self, entry: ArmStageOneEntry, address: u64) -> TableEntry {
        let mut rights = Rights::all();
        if self.hierarchical {
            rights.set(Rights::USER, !entry.no_user_below());
            rights.set(Rights::WRITE, !entry.read_only_below());
            rights.set(Rights::EXECUTE_USER, !entry.user_execute_never_below());
            rights.set(Rights::EXECUTE_PRIVILEGED, !entry.privileged_execute_never_below());
        }
        TableEntry { address, rights, accessed: true }
    }

    fn leaf(&self, entry: ArmStageOneEntry, address: u64) -> LeafEntry {
        let made_writable = self.flags.sets_dirty() && entry.dirty_modifier();
        let mut rights = Rights::READ;
        rights.set(Rights::USER, entry.user());
        rights.set(Rights::WRITE, !entry.read_only() || made_writable);
        rights.set(Rights::EXECUTE_USER, !entry.user_execute_never());
        rights.set(Rights::EXECUTE_PRIVILEGED, !entry.privileged_execute_never());
        LeafEntry {
            address,
            rights,
            accessed: self.flags.is_accessed(entry.accessed()),
            dirty: !made_writable || !entry.read_only(),
            global: !entry.not_global(),
        }
    }
}

impl Format for ArmStageOne {
    fn page_bits(&self) -> u32 {
        self.sizes().granule.bits()
    }

    fn index_bits(&self, level: u8) -> u32 {
        self.geometry.index_bits(level)
    }

    fn levels(&self) -> u8 {
        self.geometry.levels()
    }

    fn check_address(&self, address: u64) -> Result<(), InvalidAddress> {
        self.geometry.check_address(address)
    }

    fn decode(&self, level: u8, entry: u64) -> Entry {
        let fields = ArmStageOneEntry::from_bits(entry);
        let table = |address| self.table(fields, address);
        self.geometry.decode(level, entry, table, |address| self.leaf(fields, address))
    }

    fn sets_accessed(&self) -> bool {
        self.flags.sets_accessed()
    }

    fn mark(&self, entry: u64, dirty: bool) -> u64 {
        let entry = ArmStageOneEntry::from_bits(entry);
        let made_writable = dirty && self.flags.sets_dirty() && entry.dirty_modifier();
        entry
            .with_accessed(entry.accessed() || self.flags.sets_accessed())
            .with_read_only(entry.read_only() && !made_writable)
            .into_bits()
    }

    /// Write protection and SMEP are x86's, and play no part.
    fn denied(&self, request: &Request, rights: Rights) -> Option<Denied> {
        let writable_for_users = rights.contains(Rights::USER | Rights::WRITE);
        let denied = match (request.access, request.privileged) {
            // Without privilege, a page may be for fetches alone.
            (Access::Execute, false) => Denied::Execute,
            (Access::Execute, true) if writable_for_users => {
                return Some(Denied::ExecutePrivileged)
            }
            (Access::Execute, true) => Denied::ExecutePrivileged,
            (_, false) if !rights.contains(Rights::USER) => Denied::User,
            (Access::Read, _) => Denied::Read,
            (Access::Write, _) => Denied::Write,
        };
        (!rights.contains(denied.right())).then_some(denied)
    }

    fn table_entry(&self, address: u64) -> u64 {
        self.geometry.entry(1, false, address)
    }

    fn leaf_entry(&self, level: u8, address: u64, rights: Rights) -> u64 {
        let write = rights.contains(Rights::WRITE);
        let clean = write && self.flags.sets_dirty();
        ArmStageOneEntry::from_bits(self.geometry.entry(level, true, address))
            .with_valid(rights.contains(Rights::READ))
            .with_user(rights.contains(Rights::USER))
            .with_read_only(clean || !write)
            .with_dirty_modifier(clean)
            .with_accessed(self.flags.of_new_leaf())
            .with_not_global(true)
            .with_user_execute_never(!rights.contains(Rights::EXECUTE_USER))
            .with_privileged_execute_never(!rights.contains(Rights::EXECUTE_PRIVILEGED))
            .into_bits()
    }
}
