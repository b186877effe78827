//! Sizes, levels, and where an entry has its address: what both stages have in common.

use bitfield_struct::bitfield;

use crate::first_stage::above;
use crate::format::{Entry, InvalidAddress, LeafEntry, ReservedBits, TableEntry, ENTRY_BITS};

/// Size of the smallest page, and of every table but the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Granule {
    /// 4 KiB.
    Kib4 = 12,
    /// 16 KiB.
    Kib16 = 14,
    /// 64 KiB.
    Kib64 = 16,
}

impl Granule {
    /// log2 of its bytes.
    pub const fn bits(self) -> u32 {
        self as u32
    }

    /// The granule that a field TG0 names; also TG of a VTCR.
    pub const fn from_tg0(field: u8) -> Option<Self> {
        match field {
            0 => Some(Self::Kib4),
            1 => Some(Self::Kib64),
            2 => Some(Self::Kib16),
            _ => None,
        }
    }

    /// The granule that a field TG1 names.
    pub const fn from_tg1(field: u8) -> Option<Self> {
        match field {
            1 => Some(Self::Kib16),
            2 => Some(Self::Kib4),
            3 => Some(Self::Kib64),
            _ => None,
        }
    }

    /// Its name in a field TG0.
    pub const fn tg0(self) -> u8 {
        match self {
            Self::Kib4 => 0,
            Self::Kib64 => 1,
            Self::Kib16 => 2,
        }
    }

    /// Its name in a field TG1.
    pub const fn tg1(self) -> u8 {
        match self {
            Self::Kib16 => 1,
            Self::Kib4 => 2,
            Self::Kib64 => 3,
        }
    }

    /// log2 of the entries of a table.
    const fn stride(self) -> u32 {
        self.bits() - ENTRY_BITS
    }
}

/// Output sizes, in the order of their names in the fields IPS, PS and OAS.
const OUTPUT_BITS: [u8; 7] = [32, 36, 40, 42, 44, 48, 52];

/// The number of address bits that a field IPS, PS or OAS names; `None` if it names none.
pub const fn arm_output_bits(field: u8) -> Option<u8> {
    if (field as usize) < OUTPUT_BITS.len() {
        Some(OUTPUT_BITS[field as usize])
    } else {
        None
    }
}

/// The name of a number of address bits in a field IPS, PS or OAS; `None` if it has none.
pub const fn arm_output_field(bits: u8) -> Option<u8> {
    let mut field = 0;
    while let Some(named) = arm_output_bits(field) {
        if named == bits {
            return Some(field);
        }
        field += 1;
    }
    None
}

/// Most tables in a row that make the root of a stage 2.
pub const MAX_CONCATENATED: u32 = 1 << CONCATENATED_BITS;
const CONCATENATED_BITS: u32 = 4;

/// Least number of input address bits (TxSZ = 39).
const MIN_INPUT_BITS: u8 = 25;
/// Most input and output address bits of the layouts that are not [wide](ArmSizes::wide).
const NARROW_BITS: u8 = 48;
/// Most input and output address bits of all.
const WIDE_BITS: u8 = 52;

/// How large a table's pages and addresses are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ArmSizes {
    /// Size of the smallest page.
    pub granule: Granule,
    /// Address bits of what is translated, 64 - TxSZ.
    pub input_bits: u8,
    /// Address bits of what the tables map and of the tables themselves, one of those that
    /// [`arm_output_bits`] gives. 52 is 48 unless the layout is wide.
    pub output_bits: u8,
    /// Whether entries have room for addresses of 52 bits, and one level more may have pages. For
    /// granules of 4 and 16 KiB this is DS (FEAT_LPA2); for 64 KiB, whether the unit knows
    /// addresses of 52 bits (FEAT_LPA).
    pub wide: bool,
}

impl ArmSizes {
    /// These sizes, wide only if they need to be at stage 1 or 2.
    pub const fn new(granule: Granule, input_bits: u8, output_bits: u8) -> Self {
        let wide = input_bits > NARROW_BITS || output_bits > NARROW_BITS;
        Self { granule, input_bits, output_bits, wide }
    }
}

/// Why there is no such table. Whoever chose the numbers chose wrong: the guest, if they are from a
/// context descriptor or a stream table entry of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArmFormatError {
    /// The number of input address bits is not possible.
    #[error("{got} input address bits; {min} to {max} are possible")]
    InputBits {
        /// What was asked for.
        got: u8,
        /// The least.
        min: u8,
        /// The most.
        max: u8,
    },
    /// The number of output address bits is not one that the architecture knows.
    #[error("{got} output address bits")]
    OutputBits {
        /// What was asked for.
        got: u8,
    },
    /// A field names no granule.
    #[error("granule {got} is reserved")]
    Granule {
        /// The field.
        got: u8,
    },
    /// A field names no output size.
    #[error("output size {got} is reserved")]
    OutputSize {
        /// The field.
        got: u8,
    },
    /// A field names no level to start at, for this granule.
    #[error("start level {got} is reserved")]
    StartLevel {
        /// The field.
        got: u8,
    },
    /// A table of so many levels cannot have so many input address bits: the root would have
    /// nothing to look up, or more entries than [`MAX_CONCATENATED`] tables.
    #[error("{levels} levels for {input_bits} input address bits")]
    Inconsistent {
        /// Number of levels.
        levels: u8,
        /// Number of input address bits.
        input_bits: u8,
    },
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Nothing, or an encoding that is reserved: the same to a walk.
    Invalid,
    Table,
    Leaf,
}

/// The bits of both stages' entries that say what an entry is and where it leads. Which of them
/// belong to the address depends on the layout.
#[bitfield(u64)]
struct Common {
    valid: bool,
    /// Above level 1 a table and not a page; at level 1 set in every page.
    table_or_page: bool,
    #[bits(6)]
    __: u8,
    /// Shareability; wide with 4 or 16 KiB: address bits 51:50.
    #[bits(2)]
    bits_9_8: u64,
    #[bits(2)]
    __: u8,
    /// Address bits 15:12; wide with 64 KiB: address bits 51:48.
    #[bits(4)]
    bits_15_12: u64,
    /// Address bits 47:16.
    #[bits(32)]
    bits_47_16: u64,
    /// Reserved; wide with 4 or 16 KiB: address bits 49:48.
    #[bits(2)]
    bits_49_48: u64,
    #[bits(14)]
    __: u16,
}

/// An output address, cut where entries cut it.
#[bitfield(u64)]
struct OutputAddress {
    #[bits(12)]
    __: u16,
    #[bits(4)]
    bits_15_12: u64,
    #[bits(32)]
    bits_47_16: u64,
    #[bits(2)]
    bits_49_48: u64,
    #[bits(2)]
    bits_51_50: u64,
    #[bits(12)]
    __: u16,
}

/// Sizes that go together, and the number of levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    sizes: ArmSizes,
    levels: u8,
}

impl Geometry {
    /// Stage 1: as many levels as the input needs.
    pub(super) fn stage_one(sizes: &ArmSizes) -> Result<Self, ArmFormatError> {
        // What 52 input bits take is FEAT_LVA with 64 KiB, and has nothing to do with entries.
        let large = sizes.wide || sizes.granule == Granule::Kib64;
        let sizes = check(sizes, if large { WIDE_BITS } else { NARROW_BITS })?;
        Ok(Self { sizes, levels: levels_for(&sizes, 0) })
    }

    /// Stage 2 with as few levels as concatenated roots allow, and not fewer than `least`.
    pub(super) fn stage_two(sizes: &ArmSizes, least: u8) -> Result<Self, ArmFormatError> {
        let sizes = check_stage_two(sizes)?;
        Ok(Self { sizes, levels: levels_for(&sizes, CONCATENATED_BITS).max(least) })
    }

    /// Stage 2 with `levels` levels.
    pub(super) fn stage_two_from(sizes: &ArmSizes, levels: u8) -> Result<Self, ArmFormatError> {
        let sizes = check_stage_two(sizes)?;
        let geometry = Self { sizes, levels };
        let input_bits = sizes.input_bits;
        let below = geometry.size_bits(levels);
        let most = below + sizes.granule.stride() + CONCATENATED_BITS;
        if u32::from(input_bits) <= below || u32::from(input_bits) > most {
            return Err(ArmFormatError::Inconsistent { levels, input_bits });
        }
        Ok(geometry)
    }

    pub(super) fn sizes(&self) -> &ArmSizes {
        &self.sizes
    }

    pub(super) fn levels(&self) -> u8 {
        self.levels
    }

    /// See [`Format::index_bits`](crate::Format::index_bits).
    pub(super) fn index_bits(&self, level: u8) -> u32 {
        if level == self.levels {
            u32::from(self.sizes.input_bits) - self.size_bits(level)
        } else {
            self.sizes.granule.stride()
        }
    }

    /// See [`Format::size_bits`](crate::Format::size_bits).
    pub(super) fn size_bits(&self, level: u8) -> u32 {
        let granule = self.sizes.granule;
        granule.bits() + granule.stride() * u32::from(level.saturating_sub(1))
    }

    /// See [`Format::check_address`](crate::Format::check_address).
    pub(super) fn check_address(&self, address: u64) -> Result<(), InvalidAddress> {
        if above(address, self.sizes.input_bits) {
            Err(InvalidAddress::BeyondWidth)
        } else {
            Ok(())
        }
    }

    /// See [`Format::decode`](crate::Format::decode). What the stage's own fields say of the table or the page at an
    /// address, `table` and `leaf` tell.
    #[inline]
    pub(super) fn decode(
        &self,
        level: u8,
        entry: u64,
        table: impl FnOnce(u64) -> TableEntry,
        leaf: impl FnOnce(u64) -> LeafEntry,
    ) -> Entry {
        let kind = self.kind(level, entry);
        let size_of = if kind == Kind::Leaf { level } else { 1 };
        let address = self.address(size_of, entry);
        match kind {
            Kind::Invalid => Entry::NotPresent,
            _ if above(address, self.sizes.output_bits) => Entry::Reserved(ReservedBits::Address),
            Kind::Table => Entry::Table(table(address)),
            Kind::Leaf => Entry::Leaf(leaf(address)),
        }
    }

    /// What an entry of level `level` is.
    fn kind(&self, level: u8, entry: u64) -> Kind {
        let entry = Common::from_bits(entry);
        match (entry.valid(), entry.table_or_page()) {
            (true, true) if level == 1 => Kind::Leaf,
            (true, true) => Kind::Table,
            (true, false) if self.has_blocks(level) => Kind::Leaf,
            _ => Kind::Invalid,
        }
    }

    /// Whether pages larger than the granule lie at `level`.
    fn has_blocks(&self, level: u8) -> bool {
        match (self.sizes.granule, level) {
            (_, 2) | (Granule::Kib4, 3) => true,
            (Granule::Kib4, 4) | (_, 3) => self.sizes.wide,
            _ => false,
        }
    }

    /// The address in a table entry, or in a leaf of level `level`. Bits below the table's or the
    /// page's size are reserved and ignored.
    fn address(&self, level: u8, entry: u64) -> u64 {
        let entry = Common::from_bits(entry);
        let (low, high) = match (self.sizes.wide, self.sizes.granule) {
            (false, _) => (entry.bits_15_12(), 0),
            (true, Granule::Kib64) => (0, entry.bits_15_12()),
            (true, _) => (entry.bits_15_12(), entry.bits_9_8() << 2 | entry.bits_49_48()),
        };
        let address = OutputAddress::new()
            .with_bits_15_12(low)
            .with_bits_47_16(entry.bits_47_16())
            .with_bits_49_48(high & 3)
            .with_bits_51_50(high >> 2);
        address.into_bits() & !((1 << self.size_bits(level)) - 1)
    }

    /// A table entry for the table at `address`, or with `leaf` a leaf of level `level` for the
    /// page there. What there is no room for in the address is left out.
    pub(super) fn entry(&self, level: u8, leaf: bool, address: u64) -> u64 {
        let address = OutputAddress::from_bits(address);
        let entry = Common::new()
            .with_valid(true)
            .with_table_or_page(!leaf || level == 1)
            .with_bits_47_16(address.bits_47_16());
        let entry = match (self.sizes.wide, self.sizes.granule) {
            (false, _) => entry.with_bits_15_12(address.bits_15_12()),
            (true, Granule::Kib64) => {
                entry.with_bits_15_12(address.bits_51_50() << 2 | address.bits_49_48())
            }
            (true, _) => entry
                .with_bits_15_12(address.bits_15_12())
                .with_bits_49_48(address.bits_49_48())
                .with_bits_9_8(address.bits_51_50()),
        };
        if leaf && self.has_shareability() {
            entry.with_bits_9_8(INNER_SHAREABLE).into_bits()
        } else {
            entry.into_bits()
        }
    }

    /// Whether bits 9:8 are the shareability and not part of the address.
    fn has_shareability(&self) -> bool {
        !self.sizes.wide || self.sizes.granule == Granule::Kib64
    }
}

/// The shareability that leaves are entered with.
const INNER_SHAREABLE: u64 = 3;

fn check_stage_two(sizes: &ArmSizes) -> Result<ArmSizes, ArmFormatError> {
    check(sizes, if sizes.wide { WIDE_BITS } else { NARROW_BITS })
}

/// Checks each size by itself, and gives the sizes that take effect.
fn check(sizes: &ArmSizes, max: u8) -> Result<ArmSizes, ArmFormatError> {
    let got = sizes.input_bits;
    if !(MIN_INPUT_BITS..=max).contains(&got) {
        return Err(ArmFormatError::InputBits { got, min: MIN_INPUT_BITS, max });
    }
    let got = sizes.output_bits;
    if arm_output_field(got).is_none() {
        return Err(ArmFormatError::OutputBits { got });
    }
    let most = if sizes.wide { WIDE_BITS } else { NARROW_BITS };
    Ok(ArmSizes { output_bits: got.min(most), ..*sizes })
}

/// The fewest levels for these sizes, if a root may have 2^`concatenated_bits` tables in a row.
fn levels_for(sizes: &ArmSizes, concatenated_bits: u32) -> u8 {
    let granule = sizes.granule;
    let bits = u32::from(sizes.input_bits).saturating_sub(granule.bits() + concatenated_bits);
    bits.div_ceil(granule.stride()).max(1) as u8
}
