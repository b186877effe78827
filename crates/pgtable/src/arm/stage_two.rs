//! Stage 2: what a hypervisor puts under everything of a guest.

use bitfield_struct::bitfield;

use super::geometry::{
    arm_output_bits, arm_output_field, ArmFormatError, ArmSizes, Geometry, Granule,
};
use super::ArmFlags;
use crate::format::{
    Access, Denied, Entry, Format, InvalidAddress, LeafEntry, Request, Rights, TableEntry,
};

/// A stage-2 entry (Arm ARM, "VMSAv8-64 translation table format descriptors"), except for its
/// address, which lies differently in each layout. Bits without an accessor are ignored here.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ArmStageTwoEntry {
    /// The entry is not invalid.
    pub valid: bool,
    /// Above level 1 a table and not a page; at level 1 set in every page.
    pub table_or_page: bool,
    /// MemAttr: the memory type; leaves only.
    #[bits(4)]
    pub memory_type: u8,
    /// S2AP\[0\]: reads are let through; leaves only.
    pub readable: bool,
    /// S2AP\[1\]: writes are let through; leaves only.
    pub writable: bool,
    /// SH, or address bits 51:50.
    #[bits(2)]
    shareability: u8,
    /// AF: the page was used; leaves only.
    pub accessed: bool,
    no_external: bool,
    #[bits(38)]
    address: u64,
    ignored: bool,
    /// DBM: the page may be made writable by the first write; leaves only.
    pub dirty_modifier: bool,
    contiguous: bool,
    /// XN\[0\], with FEAT_XNX: turns the meaning of XN\[1\] round for fetches with privilege; leaves
    /// only.
    pub execute_never_inverted: bool,
    /// XN\[1\], or XN: no instruction fetches; leaves only.
    pub execute_never: bool,
    #[bits(9)]
    software: u16,
}

/// The fields of a VTCR that say what a stage-2 table looks like; as numbers, whose upper bits
/// count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Vtcr {
    /// T0SZ: 64 less the number of input address bits.
    pub t0sz: u8,
    /// SL0: the level to start at.
    pub sl0: u8,
    /// TG0: the granule.
    pub tg0: u8,
    /// PS: the output size.
    pub ps: u8,
    /// DS with granules of 4 and 16 KiB; see [`ArmSizes::wide`].
    pub wide: bool,
}

/// The stage-2 format.
///
/// Reserved encodings are what they are at [stage 1](super::ArmStageOne). A fetch needs what XN says
/// and nothing else; whether every unit lets it pass where S2AP forbids reads is not certain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArmStageTwo {
    geometry: Geometry,
    flags: ArmFlags,
    execute_by_privilege: bool,
}

impl ArmStageTwo {
    /// A format for `input_bits` and `output_bits` (PS) address bits, wide if it needs to be, with
    /// the default of [`ArmFlags`]. It has as few levels as up to
    /// [`MAX_CONCATENATED`](super::MAX_CONCATENATED) tables at the start level allow.
    ///
    /// # Errors
    ///
    /// See [`ArmFormatError`].
    pub fn new(granule: Granule, input_bits: u8, output_bits: u8) -> Result<Self, ArmFormatError> {
        let sizes = ArmSizes::new(granule, input_bits, output_bits);
        Ok(Self::from_geometry(Geometry::stage_two(&sizes, least_levels(granule))?))
    }

    /// The format that a VTCR describes.
    ///
    /// Not checked, because they depend on what the unit is: the output size against the unit's
    /// own, and the start levels that a unit with few address bits does not have.
    ///
    /// # Errors
    ///
    /// See [`ArmFormatError`]. Start levels of FEAT_TTST (3 with 4 KiB) and those that take SL2
    /// (-1 with 4 KiB) are reserved here.
    pub fn from_vtcr(vtcr: &Vtcr) -> Result<Self, ArmFormatError> {
        let granule =
            Granule::from_tg0(vtcr.tg0).ok_or(ArmFormatError::Granule { got: vtcr.tg0 })?;
        let output_bits =
            arm_output_bits(vtcr.ps).ok_or(ArmFormatError::OutputSize { got: vtcr.ps })?;
        let input_bits = 64u8.saturating_sub(vtcr.t0sz);
        let sizes = ArmSizes { granule, input_bits, output_bits, wide: vtcr.wide };
        let most = if granule == Granule::Kib16 && vtcr.wide { 3 } else { 2 };
        if vtcr.sl0 > most {
            return Err(ArmFormatError::StartLevel { got: vtcr.sl0 });
        }
        let levels = vtcr.sl0 + least_levels(granule);
        Ok(Self::from_geometry(Geometry::stage_two_from(&sizes, levels)?))
    }

    const fn from_geometry(geometry: Geometry) -> Self {
        Self { geometry, flags: ArmFlags::Fault, execute_by_privilege: false }
    }

    /// The fields of a VTCR that describe this format.
    pub fn vtcr(&self) -> Vtcr {
        let sizes = self.sizes();
        Vtcr {
            t0sz: 64 - sizes.input_bits,
            sl0: self.geometry.levels() - least_levels(sizes.granule),
            tg0: sizes.granule.tg0(),
            // Every format has an output size with a name.
            ps: arm_output_field(sizes.output_bits).unwrap_or(0),
            wide: sizes.wide,
        }
    }

    /// The same with these flags (S2HA, S2HD and S2AFFD of a stream table entry).
    #[must_use]
    pub const fn with_flags(self, flags: ArmFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same with or without a say over fetches by their privilege (FEAT_XNX).
    #[must_use]
    pub const fn with_execute_by_privilege(self, execute_by_privilege: bool) -> Self {
        Self { execute_by_privilege, ..self }
    }

    /// Its sizes, as they take effect.
    pub fn sizes(&self) -> &ArmSizes {
        self.geometry.sizes()
    }

    /// What becomes of access flags and dirty state.
    pub const fn flags(&self) -> ArmFlags {
        self.flags
    }

    /// Whether entries have a say over fetches by their privilege.
    pub const fn execute_by_privilege(&self) -> bool {
        self.execute_by_privilege
    }

    fn leaf(&self, entry: ArmStageTwoEntry, address: u64) -> LeafEntry {
        let made_writable = self.flags.sets_dirty() && entry.dirty_modifier();
        let inverted = self.execute_by_privilege && entry.execute_never_inverted();
        let mut rights = Rights::USER;
        rights.set(Rights::READ, entry.readable());
        rights.set(Rights::WRITE, entry.writable() || made_writable);
        rights.set(Rights::EXECUTE_USER, !entry.execute_never());
        rights.set(Rights::EXECUTE_PRIVILEGED, entry.execute_never() == inverted);
        LeafEntry {
            address,
            rights,
            accessed: self.flags.is_accessed(entry.accessed()),
            dirty: !made_writable || entry.writable(),
            global: false,
        }
    }
}

/// The fewest levels that SL0 can ask for, as 0.
const fn least_levels(granule: Granule) -> u8 {
    match granule {
        Granule::Kib4 => 2,
        Granule::Kib16 | Granule::Kib64 => 1,
    }
}

impl Format for ArmStageTwo {
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
        let table = |address| TableEntry { address, rights: Rights::all(), accessed: true };
        let leaf = |address| self.leaf(ArmStageTwoEntry::from_bits(entry), address);
        self.geometry.decode(level, entry, table, leaf)
    }

    fn sets_accessed(&self) -> bool {
        self.flags.sets_accessed()
    }

    fn mark(&self, entry: u64, dirty: bool) -> u64 {
        let entry = ArmStageTwoEntry::from_bits(entry);
        let made_writable = dirty && self.flags.sets_dirty() && entry.dirty_modifier();
        entry
            .with_accessed(entry.accessed() || self.flags.sets_accessed())
            .with_writable(entry.writable() || made_writable)
            .into_bits()
    }

    /// Privilege plays no part in data accesses.
    fn denied(&self, request: &Request, rights: Rights) -> Option<Denied> {
        let denied = match (request.access, request.privileged) {
            (Access::Read, _) => Denied::Read,
            (Access::Write, _) => Denied::Write,
            (Access::Execute, false) => Denied::Execute,
            (Access::Execute, true) => Denied::ExecutePrivileged,
        };
        (!rights.contains(denied.right())).then_some(denied)
    }

    fn table_entry(&self, address: u64) -> u64 {
        self.geometry.entry(1, false, address)
    }

    fn leaf_entry(&self, level: u8, address: u64, rights: Rights) -> u64 {
        let write = rights.contains(Rights::WRITE);
        let clean = write && self.flags.sets_dirty();
        let (user, privileged) =
            (rights.contains(Rights::EXECUTE_USER), rights.contains(Rights::EXECUTE_PRIVILEGED));
        ArmStageTwoEntry::from_bits(self.geometry.entry(level, true, address))
            .with_valid(rights.contains(Rights::USER))
            .with_memory_type(WRITE_BACK)
            .with_readable(rights.contains(Rights::READ))
            .with_writable(write && !clean)
            .with_dirty_modifier(clean)
            .with_accessed(self.flags.of_new_leaf())
            .with_execute_never(!user)
            .with_execute_never_inverted(user != privileged)
            .into_bits()
    }
}

/// MemAttr of normal memory, cached everywhere.
const WRITE_BACK: u8 = 0xf;
